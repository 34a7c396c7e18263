//! The lines that `check --live` prints.

use std::io::Write;

/// How serious a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Ok,
    Warn,
    Fail,
}

/// Prints lines and counts the serious ones.
pub struct LiveReport<'a, W> {
    out: &'a mut W,
    pub warnings: usize,
    pub failures: usize,
}

impl<'a, W: Write> LiveReport<'a, W> {
    pub fn new(out: &'a mut W) -> LiveReport<'a, W> {
        LiveReport {
            out,
            warnings: 0,
            failures: 0,
        }
    }

    /// Prints one line.
    ///
    /// # Errors
    /// The output can't be written.
    pub fn line(&mut self, level: Level, subject: &str, text: &str) -> std::io::Result<()> {
        let word = match level {
            Level::Ok => "ok",
            Level::Warn => {
                self.warnings += 1;
                "warn"
            }
            Level::Fail => {
                self.failures += 1;
                "FAIL"
            }
        };
        writeln!(self.out, "{word:<5} {subject}: {text}")?;
        // The next question may take seconds.
        self.out.flush()
    }
}

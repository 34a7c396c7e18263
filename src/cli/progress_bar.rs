//! A progress bar: one line on a terminal, redrawn by the caller.
//!
//! No crate for it: configuring one would take more code than this.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

const WIDTH: u64 = 30;

/// The bar on standard error, if that is a terminal; dropping it clears the line.
pub struct ProgressBar {
    start: Instant,
    shown: bool,
}

impl ProgressBar {
    pub fn start() -> ProgressBar {
        ProgressBar {
            start: Instant::now(),
            shown: io::stderr().is_terminal(),
        }
    }

    /// Whether it is drawn at all.
    pub fn shown(&self) -> bool {
        self.shown
    }

    /// Draws it, over what it showed before.
    pub fn draw(&self, done: u64, total: u64) {
        if self.shown {
            // A terminal that can't be written to is no reason to stop.
            let _ = write!(
                io::stderr().lock(),
                "\r{}\x1b[K",
                line(done, total, self.start.elapsed())
            );
        }
    }

    /// Clears its line.
    pub fn clear(&self) {
        if self.shown {
            let _ = write!(io::stderr().lock(), "\r\x1b[K");
        }
    }
}

impl Drop for ProgressBar {
    fn drop(&mut self) {
        self.clear();
    }
}

fn line(done: u64, total: u64, elapsed: Duration) -> String {
    let part = |of: u64| {
        (u128::from(of) * u128::from(done.min(total)))
            .checked_div(u128::from(total))
            .unwrap_or(0) as usize
    };
    let full = part(WIDTH);
    let rate = done as f64 / elapsed.as_secs_f64().max(0.001);
    format!(
        "[{}{}] {:3} %  {done}/{total}  {rate:.0}/s",
        "#".repeat(full),
        "-".repeat(WIDTH as usize - full),
        part(100)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let second = Duration::from_secs(1);
        let cases = [
            (0, 10, "[------------------------------]   0 %  0/10  0/s"),
            (5, 10, "[###############---------------]  50 %  5/10  5/s"),
            (10, 10, "[##############################] 100 %  10/10  10/s"),
            (0, 0, "[------------------------------]   0 %  0/0  0/s"),
        ];
        for (done, total, wanted) in cases {
            assert_eq!(line(done, total, second), wanted);
        }
    }
}

//! Standard output, whose reader may go away (`| head` is not an error), and messages on standard error.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
};

use crate::plain::{Passes, Plain, escaped};

/// Writes a line with the program's name to standard error. A failure is ignored, so that it changes neither what the
/// command does nor its exit code.
pub fn say(what: impl fmt::Display) {
    let what = escaped(&what.to_string(), Passes::Lines);
    let _ = writeln!(io::stderr(), "cmc-bridge: {what}");
}

/// Standard output. Once its reader is gone, what is written is discarded. A terminal receives no control characters.
pub struct Output {
    out: Box<dyn Write>,
    closed: bool,
}

impl Output {
    pub fn new() -> Output {
        let out = io::BufWriter::new(io::stdout());
        Output {
            out: match io::stdout().is_terminal() {
                true => Box::new(Plain::new(out)),
                false => Box::new(out),
            },
            closed: false,
        }
    }

    /// Whether the reader is gone.
    pub fn closed(&self) -> bool {
        self.closed
    }

    fn note<T>(&mut self, result: io::Result<T>, instead: T) -> io::Result<T> {
        match result {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(instead)
            }
            other => other,
        }
    }
}

impl Default for Output {
    fn default() -> Output {
        Output::new()
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.closed {
            return Ok(bytes.len());
        }
        let result = self.out.write(bytes);
        self.note(result, bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.closed {
            return Ok(());
        }
        let result = self.out.flush();
        self.note(result, ())
    }
}

//! Standard output and standard error, whose readers may go at any time: `mayfly jobs | head -1`.
//!
//! A reader that has gone had what it wanted. What is written afterwards goes nowhere, and the verb
//! ends as if it had been read; the standard library's macros would panic.

use std::fmt::Display;
use std::io::{self, ErrorKind, StdoutLock, Write};

use crate::failure::{Code, Failure};

/// Standard output can't be written, and not because nobody reads it.
#[derive(Debug, thiserror::Error)]
#[error("can't write standard output")]
pub(super) struct OutputError(#[from] io::Error);

impl Failure for OutputError {
    fn code(&self) -> Code {
        Code::CannotWrite
    }
}

/// Standard output.
pub(super) struct Output<W = StdoutLock<'static>>(W);

/// Standard output, which this thread alone writes to until it is dropped.
pub(super) fn stdout() -> Output {
    Output(io::stdout().lock())
}

impl<W: Write> Output<W> {
    /// Writes a line.
    pub(super) fn line(&mut self, line: impl Display) -> Result<(), OutputError> {
        Ok(writeln!(self, "{line}")?)
    }
}

impl<W: Write> Write for Output<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        unless_unread(self.0.write(bytes), bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        unless_unread(self.0.flush(), ())
    }
}

fn unless_unread<T>(written: io::Result<T>, all: T) -> io::Result<T> {
    match written {
        Err(error) if is_unread(&error) => Ok(all),
        other => other,
    }
}

/// Whether a write failed because nobody reads any more.
pub(super) fn is_unread(error: &io::Error) -> bool {
    error.kind() == ErrorKind::BrokenPipe
}

/// Writes a line to standard error, coloured where that is a terminal. There is nowhere to report
/// that it can't be written.
pub(super) fn tell(line: impl Display) {
    let _ = writeln!(anstream::stderr().lock(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails at every write.
    struct Broken(ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(self.0.into())
        }
    }

    #[test]
    fn a_reader_that_has_gone_is_no_failure_and_a_full_disk_is() {
        let mut unread = Output(Broken(ErrorKind::BrokenPipe));
        unread.line("nobody reads it").unwrap();
        unread.flush().unwrap();
        let error = Output(Broken(ErrorKind::StorageFull)).line("no room").unwrap_err();
        assert_eq!(error.code(), Code::CannotWrite);
    }
}

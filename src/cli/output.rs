//! Standard output and standard error. Their readers may exit at any time: `mayfly jobs | head -1`.
//!
//! A closed pipe is not an error: output is discarded and the command continues. The macros of the
//! standard library would panic instead.

use std::fmt::Display;
use std::io::{self, ErrorKind, StdoutLock, Write};

use mayfly_failure::{Code, Failure};

/// A write to standard output failed for another reason than a closed pipe.
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

/// Locks standard output for this thread.
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
        ignore_broken_pipe(self.0.write(bytes), bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        ignore_broken_pipe(self.0.flush(), ())
    }
}

fn ignore_broken_pipe<T>(written: io::Result<T>, all: T) -> io::Result<T> {
    match written {
        Err(error) if is_broken_pipe(&error) => Ok(all),
        other => other,
    }
}

/// Returns whether a write failed because the reader has closed the pipe.
pub(super) fn is_broken_pipe(error: &io::Error) -> bool {
    error.kind() == ErrorKind::BrokenPipe
}

/// Writes a line to standard error, with colors if that is a terminal. Ignores errors, since
/// nothing can report them.
pub(super) fn print_stderr(line: impl Display) {
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
    fn a_closed_pipe_is_not_an_error_and_a_full_disk_is() {
        let mut unread = Output(Broken(ErrorKind::BrokenPipe));
        unread.line("nobody reads it").unwrap();
        unread.flush().unwrap();
        let error = Output(Broken(ErrorKind::StorageFull)).line("no room").unwrap_err();
        assert_eq!(error.code(), Code::CannotWrite);
    }
}

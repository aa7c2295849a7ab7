//! What a detached microVM's job writes, in files of bounded size.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::detached::Detached;

/// The file with standard output and error, as they came.
pub const OUTPUT: &str = "output.log";

/// The file with the archive of the `index`-th tree that was copied out.
pub fn copy(directory: &Path, index: u16) -> PathBuf {
    directory.join(format!("copy-{index}.tar"))
}

/// The file that the `index`-th tree is copied in from; whoever gives the job puts it there before.
pub fn source(directory: &Path, index: u16) -> PathBuf {
    directory.join(format!("in-{index}.tar"))
}

/// The log of a job, for both of its streams.
#[derive(Clone)]
pub(super) struct OutputLog(Arc<Mutex<Bounded>>);

impl OutputLog {
    pub(super) fn create(directory: &Path, detached: Detached) -> io::Result<Self> {
        let bounded = Bounded::create(&directory.join(OUTPUT), detached.output.0)?;
        Ok(Self(Arc::new(Mutex::new(bounded))))
    }
}

/// Takes everything: what is beyond the bound, or what the disk has no room for, is not kept, and
/// that is no concern of the job's.
impl Write for OutputLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut bounded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !bounded.over && bounded.write_all(bytes).is_err() {
            bounded.over = true;
            let limit = bounded.limit;
            // Without room for it the log ends without a mark.
            let _ = write!(bounded.file, "\n[mayfly: output cut here, {limit} bytes are kept]\n");
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file that takes only so many bytes; more are an error, after those that it takes.
pub(super) struct Bounded {
    file: File,
    limit: u64,
    left: u64,
    over: bool,
}

impl Bounded {
    pub(super) fn create(path: &Path, limit: u64) -> io::Result<Self> {
        let file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        Ok(Self { file, limit, left: limit, over: false })
    }
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        if room == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let written = self.file.write(&bytes[..room])?;
        self.left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::size::Size;

    #[test]
    fn a_log_that_is_full_is_cut_once_with_a_mark() {
        let directory = tempfile::tempdir().unwrap();
        let detached = Detached { output: Size(10), ..Detached::default() };
        let mut log = OutputLog::create(directory.path(), detached).unwrap();
        let mut other = log.clone();
        log.write_all(b"0123").unwrap();
        other.write_all(b"45678").unwrap();
        log.write_all(b"9abc").unwrap();
        other.write_all(b"def").unwrap();
        let text = std::fs::read_to_string(directory.path().join(OUTPUT)).unwrap();
        assert_eq!(text, "0123456789\n[mayfly: output cut here, 10 bytes are kept]\n");
    }

    #[test]
    fn a_log_that_is_just_full_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let detached = Detached { output: Size(4), ..Detached::default() };
        OutputLog::create(directory.path(), detached).unwrap().write_all(b"0123").unwrap();
        assert_eq!(std::fs::read(directory.path().join(OUTPUT)).unwrap(), b"0123");
    }
}

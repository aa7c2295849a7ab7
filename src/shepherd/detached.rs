//! What makes a shepherd *detached*: it outlives the front end that started it.
//!
//! The front end makes the microVM's directory, locks it, and listens at a socket in it, all
//! before the shepherd exists; the shepherd inherits lock and listener. So there is no moment at
//! which a directory looks dead that has a shepherd, or at which a shepherd can't be reached.
//!
//! The socket is also what says whose the directory is: while it is there, the directory belongs
//! to the daemon, and nobody else removes it ([`super::record::owned`]). Its name can't be guessed,
//! so that a process that may not list the directory, as any QEMU, can't connect to it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::process::FRONT;
use super::record;
use crate::host::size::Size;

/// The descriptor of the listener.
const LISTENER: RawFd = FRONT + 1;
/// The descriptor of the directory, which holds its lock.
const LOCK: RawFd = FRONT + 2;

/// How the names of the sockets begin.
const PREFIX: &str = "front-";

/// What a shepherd needs to know to do without a front end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detached {
    /// How much of the job's output is kept, in bytes.
    pub output: Size,
    /// How much of each tree that is copied out is kept, in bytes of its archive.
    pub copies: Size,
}

impl Default for Detached {
    fn default() -> Self {
        Self { output: Size::mebibytes(64), copies: Size::mebibytes(64) }
    }
}

/// A directory that a shepherd can be given.
pub(super) struct Place {
    directory: PathBuf,
    lock: File,
    listener: UnixListener,
}

impl Place {
    /// Makes the directory, its lock and its socket; all or nothing.
    pub(super) fn make(directory: &Path) -> io::Result<Self> {
        DirBuilder::new().mode(0o700).create(directory)?;
        let made = Self::furnish(directory);
        if made.is_err() {
            // What can't be removed either is an empty black box.
            let _ = fs::remove_dir_all(directory);
        }
        made
    }

    fn furnish(directory: &Path) -> io::Result<Self> {
        let lock = record::lock_new(directory)?;
        let random = data_encoding::HEXLOWER.encode(&crate::host::random::<16>()?);
        let listener = UnixListener::bind(short(&lock, &format!("{PREFIX}{random}")))?;
        Ok(Self { directory: directory.to_owned(), lock, listener })
    }

    /// The descriptors that the shepherd inherits, in their order, behind that of the connection.
    pub(super) fn descriptors(&self) -> [RawFd; 2] {
        [self.listener.as_raw_fd(), self.lock.as_raw_fd()]
    }

    /// Where its shepherd listens.
    #[cfg(test)]
    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// There is no shepherd that has it any more.
    pub(super) fn abandon(self) {
        let _ = fs::remove_dir_all(self.directory);
    }
}

/// In the shepherd: the listener and the lock, as they were inherited. To be called once.
pub(super) fn inherited() -> io::Result<(tokio::net::UnixListener, OwnedFd)> {
    // SAFETY: whoever starts a detached shepherd gives it these two, and nothing else uses them.
    let listener = unsafe { UnixListener::from_raw_fd(LISTENER) };
    // SAFETY: as above.
    let lock = unsafe { OwnedFd::from_raw_fd(LOCK) };
    listener.set_nonblocking(true)?;
    Ok((tokio::net::UnixListener::from_std(listener)?, lock))
}

/// Connects to the shepherd of a directory; an error where it has none any more.
pub(super) fn connect(directory: &Path) -> io::Result<UnixStream> {
    let name = socket(directory)?.ok_or(io::ErrorKind::NotFound)?;
    UnixStream::connect(short(&File::open(directory)?, &name))
}

/// The name of the socket in a directory, if there is one.
pub(super) fn socket(directory: &Path) -> io::Result<Option<String>> {
    for entry in fs::read_dir(directory)? {
        match entry?.file_name().into_string() {
            Ok(name) if name.starts_with(PREFIX) => return Ok(Some(name)),
            _ => {}
        }
    }
    Ok(None)
}

/// A path of a file in an open directory that is short enough for a socket's address (108 bytes,
/// `unix(7)`), however long the directory's own is.
fn short(directory: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_locked_and_can_be_reached_however_long_its_path_is() {
        let root = tempfile::tempdir().unwrap();
        let parent = root.path().join("x".repeat(200));
        fs::create_dir(&parent).unwrap();
        let directory = parent.join("m-0123456789");
        let place = Place::make(&directory).unwrap();
        assert!(record::is_living(&directory).unwrap());
        connect(&directory).unwrap();
        assert!(Place::make(&directory).is_err(), "one that is there is not taken over");
        assert!(directory.is_dir());
        drop(place);
        assert!(!record::is_living(&directory).unwrap());
        assert!(connect(&directory).is_err());
        assert!(socket(&directory).unwrap().is_some(), "it still belongs to someone");
    }
}

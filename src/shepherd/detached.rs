//! *Detached* shepherds, which outlive the front end that started them.
//!
//! The front end creates the microVM's directory, locks it and listens at a socket in it, all
//! before it starts the shepherd, which inherits lock and listener. So the directory of a running
//! shepherd never looks abandoned, and the shepherd can be reached at any time.
//!
//! The socket also shows the owner of the directory: while it exists, the directory belongs to the
//! daemon, and no other process removes it ([`super::record::uncollected`]). Its name can't be
//! guessed, so that a process that may not list the directory, such as QEMU, can't connect to it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::process::FRONT_END_FD;
use super::record;
use mayfly_host::size::Size;

/// Descriptor of the listener.
const LISTENER_FD: RawFd = FRONT_END_FD + 1;
/// Descriptor of the directory, which holds the lock.
const LOCK_FD: RawFd = FRONT_END_FD + 2;

/// Prefix of the sockets' names.
const SOCKET_PREFIX: &str = "front-";

/// Output limits of a detached microVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DetachedLimits {
    /// Maximum size of the job's output, in bytes.
    pub output: Size,
    /// Maximum size of each copied-out tree, in bytes of its archive.
    pub copies: Size,
}

impl Default for DetachedLimits {
    fn default() -> Self {
        Self { output: Size::mebibytes(64), copies: Size::mebibytes(64) }
    }
}

/// A microVM's directory with its lock and its listener, before a shepherd inherits them.
pub(super) struct MicrovmDirectory {
    directory: PathBuf,
    lock: File,
    listener: UnixListener,
}

impl MicrovmDirectory {
    /// Creates the directory, its lock and its socket. On error nothing remains.
    pub(super) fn create(directory: &Path) -> io::Result<Self> {
        DirBuilder::new().mode(0o700).create(directory)?;
        let created = Self::populate(directory);
        if created.is_err() {
            // A directory that can't be removed remains as an empty black box.
            let _ = fs::remove_dir_all(directory);
        }
        created
    }

    fn populate(directory: &Path) -> io::Result<Self> {
        let lock = record::lock_created(directory)?;
        let random = data_encoding::HEXLOWER.encode(&mayfly_host::random::<16>()?);
        let listener = UnixListener::bind(socket_path(&lock, &format!("{SOCKET_PREFIX}{random}")))?;
        Ok(Self { directory: directory.to_owned(), lock, listener })
    }

    /// Returns the descriptors that the shepherd inherits after its connection, in order.
    pub(super) fn descriptors(&self) -> [RawFd; 2] {
        [self.listener.as_raw_fd(), self.lock.as_raw_fd()]
    }

    /// Returns the listener.
    #[cfg(test)]
    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Removes the directory after the shepherd failed to start.
    pub(super) fn remove(self) {
        let _ = fs::remove_dir_all(self.directory);
    }
}

/// Takes the inherited listener and lock, in the shepherd. Must be called once.
pub(super) fn take_inherited() -> io::Result<(tokio::net::UnixListener, OwnedFd)> {
    // SAFETY: the starting process gives it these two, and nothing else uses them.
    let listener = unsafe { UnixListener::from_raw_fd(LISTENER_FD) };
    // SAFETY: as above.
    let lock = unsafe { OwnedFd::from_raw_fd(LOCK_FD) };
    listener.set_nonblocking(true)?;
    Ok((tokio::net::UnixListener::from_std(listener)?, lock))
}

/// Connects to the shepherd of a directory.
pub(super) fn connect(directory: &Path) -> io::Result<UnixStream> {
    let name = socket_name(directory)?.ok_or(io::ErrorKind::NotFound)?;
    UnixStream::connect(socket_path(&File::open(directory)?, &name))
}

/// Returns the name of the socket in a directory, if there is one.
pub(super) fn socket_name(directory: &Path) -> io::Result<Option<String>> {
    for entry in fs::read_dir(directory)? {
        match entry?.file_name().into_string() {
            Ok(name) if name.starts_with(SOCKET_PREFIX) => return Ok(Some(name)),
            _ => {}
        }
    }
    Ok(None)
}

/// Returns a path to a file in an open directory that is short enough for a socket address (108
/// bytes, `unix(7)`), regardless of the directory's own path.
fn socket_path(directory: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_with_a_long_path_is_locked_and_can_be_reached() {
        let root = tempfile::tempdir().unwrap();
        let parent = root.path().join("x".repeat(200));
        fs::create_dir(&parent).unwrap();
        let directory = parent.join("m-0123456789");
        let created = MicrovmDirectory::create(&directory).unwrap();
        assert!(record::is_locked(&directory).unwrap());
        connect(&directory).unwrap();
        assert!(MicrovmDirectory::create(&directory).is_err(), "an existing one is not taken over");
        assert!(directory.is_dir());
        drop(created);
        assert!(!record::is_locked(&directory).unwrap());
        assert!(connect(&directory).is_err());
        assert!(socket_name(&directory).unwrap().is_some(), "it still belongs to the daemon");
    }
}

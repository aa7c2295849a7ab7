//! Locks that mark images as in use.
//!
//! A process that boots an image holds a shared lock on its directory. The kernel releases the lock
//! with the process, so an image that [`Store::collect`] can lock exclusively is unused.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::Image;
#[cfg(doc)]
use super::Store;
use mayfly_host::lock;

/// How long to wait for a collection that checks whether the image is in use, which takes
/// microseconds.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// Marks an image as in use for as long as the value lives.
#[derive(Debug)]
pub struct Hold {
    _lock: Flock<File>,
}

impl Hold {
    /// Locks the image in a directory.
    ///
    /// # Errors
    ///
    /// The image does not exist or was removed.
    pub fn take(directory: &Path) -> io::Result<Self> {
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            let file = File::open(directory)?;
            let opened = file.metadata()?;
            match Flock::lock(file, FlockArg::LockSharedNonblock) {
                Ok(lock) => {
                    // It may have been removed and recreated between open and lock.
                    let now = fs::metadata(directory)?;
                    if (now.dev(), now.ino()) == (opened.dev(), opened.ino()) {
                        return Ok(Self { _lock: lock });
                    }
                }
                Err((_, errno)) if errno != Errno::EWOULDBLOCK => return Err(errno.into()),
                Err(_) => {}
            }
            if Instant::now() > deadline {
                return Err(Errno::EWOULDBLOCK.into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A published image that is not yet the current build of its name. No collection removes it for as
/// long as the value lives.
#[derive(Debug)]
pub struct Candidate {
    /// The image.
    pub image: Image,
    pub(super) _hold: Hold,
}

/// Locks the directory of an image exclusively; `None` if the image is in use.
pub(super) fn lock_if_unused(directory: &Path) -> io::Result<Option<Flock<File>>> {
    lock::try_exclusive(File::open(directory)?)
}

//! Who uses an image, as the kernel knows it.
//!
//! Whoever boots an image holds a shared lock on its directory. The kernel drops the lock with the
//! process, however that ends, so what [`Store::collect`] can lock for itself nobody uses.

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

/// How long to wait for a collection that looks whether the image is in use; it takes
/// microseconds.
const PATIENCE: Duration = Duration::from_secs(2);

/// An image is in use for as long as this value lives.
#[derive(Debug)]
pub struct Hold {
    _lock: Flock<File>,
}

impl Hold {
    /// Holds the image in a directory.
    ///
    /// # Errors
    ///
    /// It is not there, or not any more.
    pub fn take(directory: &Path) -> io::Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let file = File::open(directory)?;
            let opened = file.metadata()?;
            match Flock::lock(file, FlockArg::LockSharedNonblock) {
                Ok(lock) => {
                    // It may have been removed between the two, and be there again.
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

/// An image that was published and that its name does not mean yet. No collection removes it for
/// as long as this value lives.
#[derive(Debug)]
pub struct Candidate {
    /// The image.
    pub image: Image,
    pub(super) _hold: Hold,
}

/// The directory of an image that nobody uses, locked so that nobody begins to.
pub(super) fn unused(directory: &Path) -> io::Result<Option<Flock<File>>> {
    match Flock::lock(File::open(directory)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
    }
}

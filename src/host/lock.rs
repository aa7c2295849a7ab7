//! Locks of files and directories (`flock(2)`), which the kernel releases with the process.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Locks an open file or directory exclusively; `None` if another process or descriptor has it
/// locked.
pub fn try_exclusive(file: File) -> io::Result<Option<Flock<File>>> {
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_has_the_lock() {
        let directory = tempfile::tempdir().unwrap();
        let open = || File::open(directory.path()).unwrap();
        let lock = try_exclusive(open()).unwrap();
        assert!(lock.is_some());
        assert!(try_exclusive(open()).unwrap().is_none());
        drop(lock);
        assert!(try_exclusive(open()).unwrap().is_some());
    }
}

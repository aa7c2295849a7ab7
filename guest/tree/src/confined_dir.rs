//! A directory that confines path resolution: the kernel resolves every path relative to an open
//! descriptor (`openat2(2)`), whatever changes in the tree meanwhile.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::tree_path::TreePath;

/// An open directory, and the subdirectory that was used last.
pub(crate) struct ConfinedDir {
    root: OwnedFd,
    resolve: ResolveFlag,
    last: Option<(TreePath, OwnedFd)>,
}

/// The treatment of symbolic links in a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SymlinkPolicy {
    /// They are an error.
    Reject,
    /// They are followed, as if the directory were the root of the file system.
    ResolveInRoot,
}

/// The root has no parent; asking for it is the caller's error.
const NO_PARENT: Errno = Errno::EINVAL;

impl ConfinedDir {
    /// Opens a directory. Follows symbolic links in `path`, because the caller is trusted.
    pub(crate) fn open(path: &Path, symlinks: SymlinkPolicy) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let resolve = match symlinks {
            SymlinkPolicy::Reject => {
                ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS
            }
            SymlinkPolicy::ResolveInRoot => ResolveFlag::RESOLVE_IN_ROOT,
        };
        let resolve = resolve | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        Ok(Self { root: openat(AT_FDCWD, path, flags, Mode::empty())?, resolve, last: None })
    }

    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens a subdirectory for reading.
    pub(crate) fn open_directory(&self, name: &TreePath) -> Result<OwnedFd, Errno> {
        self.resolve(name, OFlag::O_RDONLY)
    }

    /// Opens a subdirectory only for path resolution: it need not be readable.
    pub(crate) fn open_path(&self, name: &TreePath) -> Result<OwnedFd, Errno> {
        self.resolve(name, OFlag::O_PATH)
    }

    fn resolve(&self, name: &TreePath, flags: OFlag) -> Result<OwnedFd, Errno> {
        let path = if name.is_root() { b"." } else { name.as_bytes() };
        let flags = flags | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        openat2(&self.root, path, OpenHow::new().flags(flags).resolve(self.resolve))
    }

    /// Returns the parent directory of a path, and its last component.
    pub(crate) fn parent<'n>(
        &mut self,
        name: &'n TreePath,
    ) -> Result<(BorrowedFd<'_>, &'n [u8]), Errno> {
        let (directory, component) = name.split().ok_or(NO_PARENT)?;
        if self.last.as_ref().is_none_or(|(last, _)| *last != directory) {
            let open = self.open_path(&directory)?;
            self.last = Some((directory, open));
        }
        let (_, open) = self.last.as_ref().ok_or(NO_PARENT)?;
        Ok((open.as_fd(), component))
    }
}

/// Returns the status of a file, without following a symbolic link.
pub(crate) fn status(directory: BorrowedFd<'_>, name: &[u8]) -> Result<FileStat, Errno> {
    fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)
}

/// Returns the file type in a file's mode.
pub(crate) fn file_type(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// Removes an existing file or link of this name, so that a new one can be created. Returns an
/// error for anything else.
pub(crate) fn remove_existing(directory: BorrowedFd<'_>, name: &[u8]) -> Result<(), ReplaceError> {
    match status(directory, name).map(|stat| file_type(&stat)) {
        Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(ReplaceError::Failed(error)),
        Ok(SFlag::S_IFREG | SFlag::S_IFLNK) => {
            unlinkat(directory, name, UnlinkatFlags::NoRemoveDir).map_err(ReplaceError::Failed)
        }
        Ok(SFlag::S_IFDIR) => Err(ReplaceError::Directory),
        Ok(_) => Err(ReplaceError::Special),
    }
}

/// The reason why an existing entry can't be replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReplaceError {
    /// It is a directory.
    Directory,
    /// It is a device, pipe, or socket.
    Special,
    /// It can't be read or removed.
    Failed(Errno),
}

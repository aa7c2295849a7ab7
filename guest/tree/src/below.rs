//! A directory that nothing done through it leaves: every path is resolved by the kernel relative
//! to an open descriptor (`openat2(2)`), however the tree changes meanwhile.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::name::Name;

/// An open directory, and the directory below it that was used last.
pub(crate) struct Below {
    root: OwnedFd,
    resolve: ResolveFlag,
    last: Option<(Name, OwnedFd)>,
}

/// What is done with symbolic links on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// There is no way through one.
    Refused,
    /// They are followed, as if the directory were the root of the file system.
    Inside,
}

/// A name that can't be cut up is an error of the caller's.
const NO_NAME: Errno = Errno::EINVAL;

impl Below {
    /// Opens a directory. Links that lead to it are followed: the caller has named it.
    pub(crate) fn open(path: &Path, links: Links) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let resolve = match links {
            Links::Refused => ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS,
            Links::Inside => ResolveFlag::RESOLVE_IN_ROOT,
        };
        let resolve = resolve | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        Ok(Self { root: openat(AT_FDCWD, path, flags, Mode::empty())?, resolve, last: None })
    }

    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens a directory below, to be read.
    pub(crate) fn directory(&self, name: &Name) -> Result<OwnedFd, Errno> {
        self.resolve(name, OFlag::O_RDONLY)
    }

    /// Opens a directory below, only to go through it: it need not be readable.
    pub(crate) fn pass(&self, name: &Name) -> Result<OwnedFd, Errno> {
        self.resolve(name, OFlag::O_PATH)
    }

    fn resolve(&self, name: &Name, flags: OFlag) -> Result<OwnedFd, Errno> {
        let path = if name.is_root() { b"." } else { name.as_bytes() };
        let flags = flags | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        openat2(&self.root, path, OpenHow::new().flags(flags).resolve(self.resolve))
    }

    /// The directory that something is in, and its name there.
    pub(crate) fn parent<'n>(
        &mut self,
        name: &'n Name,
    ) -> Result<(BorrowedFd<'_>, &'n [u8]), Errno> {
        let (directory, component) = name.split().ok_or(NO_NAME)?;
        if self.last.as_ref().is_none_or(|(last, _)| *last != directory) {
            let open = self.pass(&directory)?;
            self.last = Some((directory, open));
        }
        let (_, open) = self.last.as_ref().ok_or(NO_NAME)?;
        Ok((open.as_fd(), component))
    }
}

/// What is there, itself and not what it links to.
pub(crate) fn look(directory: BorrowedFd<'_>, name: &[u8]) -> Result<FileStat, Errno> {
    fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)
}

/// The kind that a file's mode says.
pub(crate) fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// Makes way for something new: removes a file or link of this name. Anything else stays, and is
/// the error that is given.
pub(crate) fn make_way(directory: BorrowedFd<'_>, name: &[u8]) -> Result<(), InTheWay> {
    match look(directory, name).map(|stat| kind(&stat)) {
        Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(InTheWay::Failed(error)),
        Ok(SFlag::S_IFREG | SFlag::S_IFLNK) => {
            unlinkat(directory, name, UnlinkatFlags::NoRemoveDir).map_err(InTheWay::Failed)
        }
        Ok(SFlag::S_IFDIR) => Err(InTheWay::Directory),
        Ok(_) => Err(InTheWay::Special),
    }
}

/// Why a name can't be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InTheWay {
    /// It is a directory's.
    Directory,
    /// It is that of a device, pipe or socket.
    Special,
    /// The system refused to look or to remove.
    Failed(Errno),
}

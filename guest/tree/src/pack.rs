//! Packs a tree, relative to open directories: whatever happens to the tree meanwhile, nothing
//! outside it is read.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use tar::EntryType;

use crate::below::{Below, Links, kind, look};
use crate::holes::{self, Segment};
use crate::name::Name;
use crate::read::SOCKET;
use crate::write::{Facts, Writer};
use crate::{Notes, PIECE, TreeError};

/// Which side packs, and with that what becomes of what is neither file, directory nor link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packer {
    /// The host, for a guest: pipes are sent; sockets and devices are left out and noted.
    Host,
    /// The guest, for a host: all are told of, and whoever unpacks leaves them out and notes it.
    Guest,
}

/// Bytes of paths that are kept to find other names of the same file. A file whose names are
/// beyond is packed once for each.
const MOST_LINKED: usize = 16 << 20;

/// Says whether something can be packed, as far as can be seen without reading it.
pub fn check(path: &Path) -> Result<(), TreeError> {
    let bytes = path.as_os_str().as_bytes();
    let there = fs::metadata(path).map_err(TreeError::failed("read", bytes))?.file_type();
    if there.is_dir() || there.is_file() {
        return Ok(());
    }
    Err(TreeError::refused(
        bytes,
        if there.is_fifo() || there.is_socket() {
            "is a pipe or socket: only files and directories are copied"
        } else {
            "is a device: only files and directories are copied"
        },
    ))
}

/// Packs a file or directory. Links that lead to it are followed, none that are in it are.
///
/// # Errors
///
/// What can't be read, or changes in a way that would give a file that never was. The archive then
/// has no end. A file that is gone before it was read is noted.
pub fn pack(path: &Path, to: impl Write, packer: Packer) -> Result<Notes, TreeError> {
    check(path)?;
    let bytes = path.as_os_str().as_bytes();
    let mut packing = Packing::new(to, packer);
    if path.is_dir() {
        let below = Below::open(path, Links::Refused).map_err(TreeError::failed("read", bytes))?;
        packing.tree(&below)?;
    } else {
        let name = path.file_name().map(OsStrExt::as_bytes).unwrap_or_default();
        let name = Name::default().join(name).map_err(|why| TreeError::refused(bytes, why))?;
        let file = File::open(path).map_err(TreeError::failed("read", bytes))?;
        let stat = fstat(&file).map_err(TreeError::failed("read", bytes))?;
        packing.content(&name, &file, &stat)?;
    }
    packing.writer.end()?;
    Ok(packing.notes)
}

struct Packing<W: Write> {
    writer: Writer<W>,
    packer: Packer,
    notes: Notes,
    /// Files with more names than one, by device and inode: the first name, and how many are to
    /// come.
    linked: HashMap<(u64, u64), (Name, u64)>,
    linked_bytes: usize,
}

/// A directory that was packed, and the directories in it that were not yet.
struct Level {
    name: Name,
    waiting: Vec<Name>,
}

impl<W: Write> Packing<W> {
    fn new(to: W, packer: Packer) -> Self {
        let (writer, linked) = (Writer::new(to), HashMap::new());
        Self { writer, packer, notes: Notes::default(), linked, linked_bytes: 0 }
    }

    /// Each directory is followed by all that is in it.
    fn tree(&mut self, below: &Below) -> Result<(), TreeError> {
        let mut levels = vec![self.directory(below, &Name::default())?];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.waiting.pop() else {
                levels.pop();
                continue;
            };
            match self.directory(below, &name) {
                Ok(level) => levels.push(level),
                Err(TreeError::Failed { error, .. }) if is_gone(&error) => self.gone(&name),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn directory(&mut self, below: &Below, name: &Name) -> Result<Level, TreeError> {
        let failed = |error: Errno| TreeError::failed("read", name.as_bytes())(error);
        let open = below.directory(name).map_err(failed)?;
        let stat = fstat(&open).map_err(failed)?;
        self.writer.entry(EntryType::Directory, name, b"", facts(&stat))?;
        let mut level = Level { name: name.clone(), waiting: Vec::new() };
        let mut entries = duplicate(&open).and_then(Dir::from_fd).map_err(failed)?;
        for entry in entries.iter() {
            let entry = entry.map_err(failed)?;
            let component = entry.file_name().to_bytes();
            if component == b"." || component == b".." {
                continue;
            }
            let child = name.join(component).map_err(|why| {
                TreeError::refused(&[name.as_bytes(), b"/", component].concat(), why)
            })?;
            self.child(open.as_fd(), component, child, &mut level)?;
        }
        Ok(level)
    }

    fn child(
        &mut self,
        directory: BorrowedFd<'_>,
        component: &[u8],
        name: Name,
        level: &mut Level,
    ) -> Result<(), TreeError> {
        debug_assert!(name.is_in(&level.name));
        let stat = match look(directory, component) {
            Err(Errno::ENOENT) => {
                self.gone(&name);
                return Ok(());
            }
            stat => stat.map_err(TreeError::failed("read", name.as_bytes()))?,
        };
        match kind(&stat) {
            SFlag::S_IFDIR => {
                level.waiting.push(name);
                Ok(())
            }
            SFlag::S_IFREG => self.file(directory, component, &name, &stat),
            SFlag::S_IFLNK => match readlinkat(directory, component) {
                Ok(target) => {
                    let target = target.as_bytes();
                    self.writer.entry(EntryType::Symlink, &name, target, facts(&stat))
                }
                // It was replaced by something else.
                Err(Errno::ENOENT | Errno::EINVAL) => {
                    self.gone(&name);
                    Ok(())
                }
                Err(error) => Err(TreeError::failed("read", name.as_bytes())(error)),
            },
            special => self.special(special, &name, &stat),
        }
    }

    fn special(&mut self, kind: SFlag, name: &Name, stat: &FileStat) -> Result<(), TreeError> {
        let (entry, target, why) = match kind {
            SFlag::S_IFIFO => (EntryType::Fifo, &b""[..], ""),
            SFlag::S_IFSOCK => (EntryType::Fifo, SOCKET, "is a socket, and was left out"),
            SFlag::S_IFCHR => (EntryType::Char, &b""[..], "is a device, and was left out"),
            _ => (EntryType::Block, &b""[..], "is a device, and was left out"),
        };
        if self.packer == Packer::Guest || why.is_empty() {
            return self.writer.entry(entry, name, target, facts(stat));
        }
        self.notes.add(name.as_bytes(), why);
        Ok(())
    }

    fn file(
        &mut self,
        directory: BorrowedFd<'_>,
        component: &[u8],
        name: &Name,
        stat: &FileStat,
    ) -> Result<(), TreeError> {
        if self.is_known(name, stat)? {
            return Ok(());
        }
        // Not to wait for a pipe that took the file's place.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let open = match openat(directory, component, flags, Mode::empty()) {
            Ok(open) => open,
            Err(Errno::ENOENT | Errno::ELOOP) => {
                self.gone(name);
                return Ok(());
            }
            Err(error) => return Err(TreeError::failed("read", name.as_bytes())(error)),
        };
        let stat = fstat(&open).map_err(TreeError::failed("read", name.as_bytes()))?;
        if kind(&stat) != SFlag::S_IFREG {
            self.gone(name);
            return Ok(());
        }
        self.content(name, &File::from(open), &stat)?;
        if stat.st_nlink > 1 && self.linked_bytes < MOST_LINKED {
            self.linked_bytes += name.as_bytes().len();
            // Narrower on some architectures.
            #[allow(clippy::useless_conversion)]
            let more = u64::from(stat.st_nlink).saturating_sub(1);
            self.linked.insert((stat.st_dev, stat.st_ino), (name.clone(), more));
        }
        Ok(())
    }

    /// Packs another name of a file that was packed, if it is one.
    fn is_known(&mut self, name: &Name, stat: &FileStat) -> Result<bool, TreeError> {
        let key = (stat.st_dev, stat.st_ino);
        let Some((first, more)) = self.linked.get_mut(&key) else { return Ok(false) };
        let target = first.as_bytes().to_vec();
        *more -= 1;
        if *more == 0 {
            self.linked_bytes = self.linked_bytes.saturating_sub(target.len());
            self.linked.remove(&key);
        }
        self.writer.entry(EntryType::Link, name, &target, facts(stat)).map(|()| true)
    }

    /// A file's entry and content: as long as it was when it was opened, whatever is appended.
    fn content(&mut self, name: &Name, file: &File, stat: &FileStat) -> Result<(), TreeError> {
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        let allocated = u64::try_from(stat.st_blocks).unwrap_or_default().saturating_mul(512);
        let whole = Segment { offset: 0, length: size };
        let segments =
            if allocated < size { holes::segments(file.as_fd(), size) } else { vec![whole] };
        if segments == [whole] || size == 0 {
            self.writer.file(name, size, facts(stat))?;
        } else {
            self.writer.sparse(name, size, &segments, facts(stat))?;
        }
        let mut piece = vec![0; PIECE];
        let mut total = 0;
        for Segment { offset, length } in segments {
            let (mut at, end) = (offset, offset + length);
            total += length;
            while at < end {
                let most = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
                let count = match file.read_at(&mut piece[..most], at) {
                    Ok(0) => {
                        let why = "became shorter while it was copied";
                        return Err(TreeError::refused(name.as_bytes(), why));
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    read => read.map_err(TreeError::failed("read", name.as_bytes()))?,
                };
                self.writer.content(&piece[..count])?;
                at += count as u64;
            }
        }
        self.writer.fill_up(total)
    }

    fn gone(&mut self, name: &Name) {
        self.notes.add(name.as_bytes(), "was gone before it could be copied");
    }
}

fn facts(stat: &FileStat) -> Facts {
    // What was last changed before 1970 was changed then.
    Facts { mode: stat.st_mode & 0o7777, modified: u64::try_from(stat.st_mtime).unwrap_or(0) }
}

fn is_gone(error: &io::Error) -> bool {
    // Or it is none any more, or a link.
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP))
}

fn duplicate(open: &OwnedFd) -> Result<OwnedFd, Errno> {
    open.try_clone().map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or_default()))
}

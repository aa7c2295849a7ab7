//! Packs a tree, relative to open directories: whatever changes in the tree meanwhile, the packer
//! reads nothing outside it.

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

use crate::confined_dir::{ConfinedDir, SymlinkPolicy, file_type, status};
use crate::holes::{self, DataRange};
use crate::read::SOCKET;
use crate::tree_path::TreePath;
use crate::write::{EntryMetadata, Writer};
use crate::{BUFFER_SIZE, Notes, TreeError};

/// The side that packs, which decides how pipes, sockets, and devices are handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packer {
    /// The host, for a guest: sends pipes; skips sockets and devices with a note.
    Host,
    /// The guest, for a host: sends an entry for each; the host skips them with a note.
    Guest,
}

/// The most bytes of paths that are stored to detect hard links. Beyond that, each name of a file
/// is packed as a file of its own.
const MAX_LINKED_BYTES: usize = 16 << 20;

/// Checks whether `path` can be packed, without reading its contents.
pub fn check(path: &Path) -> Result<(), TreeError> {
    let bytes = path.as_os_str().as_bytes();
    let there = fs::metadata(path).map_err(TreeError::failed("read", bytes))?.file_type();
    if there.is_dir() || there.is_file() {
        return Ok(());
    }
    Err(TreeError::rejected(
        bytes,
        if there.is_fifo() || there.is_socket() {
            "is a pipe or socket: only files and directories can be copied"
        } else {
            "is a device: only files and directories can be copied"
        },
    ))
}

/// Packs a file or directory. Follows symbolic links in `path`, but none within the tree.
///
/// # Errors
///
/// If something can't be read, or changes in a way that would produce an inconsistent file. The
/// archive then has no end. A file that disappears before it is read is only noted.
pub fn pack(path: &Path, to: impl Write, packer: Packer) -> Result<Notes, TreeError> {
    check(path)?;
    let bytes = path.as_os_str().as_bytes();
    let mut state = PackState::new(to, packer);
    if path.is_dir() {
        let dir = ConfinedDir::open(path, SymlinkPolicy::Reject)
            .map_err(TreeError::failed("read", bytes))?;
        state.pack_tree(&dir)?;
    } else {
        let name = path.file_name().map(OsStrExt::as_bytes).unwrap_or_default();
        let name = TreePath::default().join(name).map_err(|why| TreeError::rejected(bytes, why))?;
        let file = File::open(path).map_err(TreeError::failed("read", bytes))?;
        let stat = fstat(&file).map_err(TreeError::failed("read", bytes))?;
        state.pack_content(&name, &file, &stat)?;
    }
    state.writer.finish()?;
    Ok(state.notes)
}

struct PackState<W: Write> {
    writer: Writer<W>,
    packer: Packer,
    notes: Notes,
    /// Files with several names, by device and inode: the first name, and the number of names
    /// still to come.
    hard_links: HashMap<(u64, u64), (TreePath, u64)>,
    hard_link_bytes: usize,
}

/// A packed directory, and its subdirectories that are not packed yet.
struct Level {
    name: TreePath,
    waiting: Vec<TreePath>,
}

impl<W: Write> PackState<W> {
    fn new(to: W, packer: Packer) -> Self {
        let (writer, hard_links) = (Writer::new(to), HashMap::new());
        Self { writer, packer, notes: Notes::default(), hard_links, hard_link_bytes: 0 }
    }

    /// Packs a directory tree depth first: each directory is followed by its contents.
    fn pack_tree(&mut self, dir: &ConfinedDir) -> Result<(), TreeError> {
        let mut levels = vec![self.pack_directory(dir, &TreePath::default())?];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.waiting.pop() else {
                levels.pop();
                continue;
            };
            match self.pack_directory(dir, &name) {
                Ok(level) => levels.push(level),
                Err(TreeError::Failed { error, .. }) if is_gone(&error) => {
                    self.note_disappeared(&name);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn pack_directory(&mut self, dir: &ConfinedDir, name: &TreePath) -> Result<Level, TreeError> {
        let failed = |error: Errno| TreeError::failed("read", name.as_bytes())(error);
        let open = dir.open_directory(name).map_err(failed)?;
        let stat = fstat(&open).map_err(failed)?;
        self.writer.write_entry(EntryType::Directory, name, b"", metadata(&stat))?;
        let mut level = Level { name: name.clone(), waiting: Vec::new() };
        let mut entries = duplicate(&open).and_then(Dir::from_fd).map_err(failed)?;
        for entry in entries.iter() {
            let entry = entry.map_err(failed)?;
            let component = entry.file_name().to_bytes();
            if component == b"." || component == b".." {
                continue;
            }
            let child = name.join(component).map_err(|why| {
                TreeError::rejected(&[name.as_bytes(), b"/", component].concat(), why)
            })?;
            self.pack_child(open.as_fd(), component, child, &mut level)?;
        }
        Ok(level)
    }

    fn pack_child(
        &mut self,
        directory: BorrowedFd<'_>,
        component: &[u8],
        name: TreePath,
        level: &mut Level,
    ) -> Result<(), TreeError> {
        debug_assert!(name.is_in(&level.name));
        let stat = match status(directory, component) {
            Err(Errno::ENOENT) => {
                self.note_disappeared(&name);
                return Ok(());
            }
            stat => stat.map_err(TreeError::failed("read", name.as_bytes()))?,
        };
        match file_type(&stat) {
            SFlag::S_IFDIR => {
                level.waiting.push(name);
                Ok(())
            }
            SFlag::S_IFREG => self.pack_file(directory, component, &name, &stat),
            SFlag::S_IFLNK => match readlinkat(directory, component) {
                Ok(target) => {
                    let target = target.as_bytes();
                    self.writer.write_entry(EntryType::Symlink, &name, target, metadata(&stat))
                }
                // Something else has replaced it.
                Err(Errno::ENOENT | Errno::EINVAL) => {
                    self.note_disappeared(&name);
                    Ok(())
                }
                Err(error) => Err(TreeError::failed("read", name.as_bytes())(error)),
            },
            special => self.pack_special(special, &name, &stat),
        }
    }

    fn pack_special(
        &mut self,
        kind: SFlag,
        name: &TreePath,
        stat: &FileStat,
    ) -> Result<(), TreeError> {
        let (entry, target, why) = match kind {
            SFlag::S_IFIFO => (EntryType::Fifo, &b""[..], ""),
            SFlag::S_IFSOCK => (EntryType::Fifo, SOCKET, "is a socket and was skipped"),
            SFlag::S_IFCHR => (EntryType::Char, &b""[..], "is a device and was skipped"),
            _ => (EntryType::Block, &b""[..], "is a device and was skipped"),
        };
        if self.packer == Packer::Guest || why.is_empty() {
            return self.writer.write_entry(entry, name, target, metadata(stat));
        }
        self.notes.add(name.as_bytes(), why);
        Ok(())
    }

    fn pack_file(
        &mut self,
        directory: BorrowedFd<'_>,
        component: &[u8],
        name: &TreePath,
        stat: &FileStat,
    ) -> Result<(), TreeError> {
        if self.pack_hard_link(name, stat)? {
            return Ok(());
        }
        // Without O_NONBLOCK, a pipe that replaced the file would block.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let open = match openat(directory, component, flags, Mode::empty()) {
            Ok(open) => open,
            Err(Errno::ENOENT | Errno::ELOOP) => {
                self.note_disappeared(name);
                return Ok(());
            }
            Err(error) => return Err(TreeError::failed("read", name.as_bytes())(error)),
        };
        let stat = fstat(&open).map_err(TreeError::failed("read", name.as_bytes()))?;
        if file_type(&stat) != SFlag::S_IFREG {
            self.note_disappeared(name);
            return Ok(());
        }
        self.pack_content(name, &File::from(open), &stat)?;
        if stat.st_nlink > 1 && self.hard_link_bytes < MAX_LINKED_BYTES {
            self.hard_link_bytes += name.as_bytes().len();
            // Narrower on some architectures.
            #[allow(clippy::useless_conversion)]
            let more = u64::from(stat.st_nlink).saturating_sub(1);
            self.hard_links.insert((stat.st_dev, stat.st_ino), (name.clone(), more));
        }
        Ok(())
    }

    /// Packs a hard link if the file was already packed under another name. Returns whether it was.
    fn pack_hard_link(&mut self, name: &TreePath, stat: &FileStat) -> Result<bool, TreeError> {
        let key = (stat.st_dev, stat.st_ino);
        let Some((first, more)) = self.hard_links.get_mut(&key) else { return Ok(false) };
        let target = first.as_bytes().to_vec();
        *more -= 1;
        if *more == 0 {
            self.hard_link_bytes = self.hard_link_bytes.saturating_sub(target.len());
            self.hard_links.remove(&key);
        }
        self.writer.write_entry(EntryType::Link, name, &target, metadata(stat)).map(|()| true)
    }

    /// Packs a file's entry and content, with the size at the time of opening, even if it grows.
    fn pack_content(
        &mut self,
        name: &TreePath,
        file: &File,
        stat: &FileStat,
    ) -> Result<(), TreeError> {
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        let allocated = u64::try_from(stat.st_blocks).unwrap_or_default().saturating_mul(512);
        let whole = DataRange { offset: 0, length: size };
        let ranges =
            if allocated < size { holes::data_ranges(file.as_fd(), size) } else { vec![whole] };
        if ranges == [whole] || size == 0 {
            self.writer.write_file_header(name, size, metadata(stat))?;
        } else {
            self.writer.write_sparse_header(name, size, &ranges, metadata(stat))?;
        }
        let mut buffer = vec![0; BUFFER_SIZE];
        let mut total = 0;
        for DataRange { offset, length } in ranges {
            let (mut at, end) = (offset, offset + length);
            total += length;
            while at < end {
                let most = usize::try_from(end - at).unwrap_or(BUFFER_SIZE).min(BUFFER_SIZE);
                let count = match file.read_at(&mut buffer[..most], at) {
                    Ok(0) => {
                        let why = "was truncated while it was copied";
                        return Err(TreeError::rejected(name.as_bytes(), why));
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    read => read.map_err(TreeError::failed("read", name.as_bytes()))?,
                };
                self.writer.write_content(&buffer[..count])?;
                at += count as u64;
            }
        }
        self.writer.write_padding(total)
    }

    fn note_disappeared(&mut self, name: &TreePath) {
        self.notes.add(name.as_bytes(), "disappeared before it could be copied");
    }
}

fn metadata(stat: &FileStat) -> EntryMetadata {
    // Times before 1970 become 1970.
    EntryMetadata {
        mode: stat.st_mode & 0o7777,
        modified: u64::try_from(stat.st_mtime).unwrap_or(0),
    }
}

fn is_gone(error: &io::Error) -> bool {
    // Also if it has become another type of file, or a link.
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP))
}

fn duplicate(open: &OwnedFd) -> Result<OwnedFd, Errno> {
    open.try_clone().map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or_default()))
}

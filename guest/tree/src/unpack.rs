//! Unpacks an archive.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{
    Mode, SFlag, UtimensatFlags, fchmod, fstat, futimens, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat, linkat, symlinkat};

use crate::confined_dir::{ConfinedDir, ReplaceError, SymlinkPolicy, remove_existing, status};
use crate::destination::{Destination, create_missing};
use crate::holes::DataRange;
use crate::origin::ArchiveOrigin;
use crate::quota::{DiskQuota, disk_size};
use crate::read::{ArchiveEntry, EntryKind, TreeReader};
use crate::tree_path::TreePath;
use crate::{BUFFER_SIZE, Notes, TreeError};

/// Unpacks an archive, up to its end. Returns notes about skipped entries.
///
/// Calls `confine` with the path of the directory that will contain everything, once it exists. If
/// an entry is rejected, the entries before it remain.
pub fn unpack(
    archive: impl Read,
    destination: Destination<'_>,
    origin: ArchiveOrigin,
    confine: impl FnOnce(&Path) -> io::Result<()>,
) -> Result<Notes, TreeError> {
    let mut reader = TreeReader::new(BufReader::with_capacity(BUFFER_SIZE, archive));
    let first = reader.next_entry()?.ok_or(TreeError::Damaged("it is empty"))?;
    match &first.kind {
        EntryKind::Directory if first.name.is_root() => {
            let path = destination.for_directory()?;
            let mut unpacker = Unpacker::open(&path, origin, confine)?;
            if unpacker.is_new {
                let made = fstat(unpacker.dir.root()).map_err(TreeError::failed("open", b""))?;
                let mode = origin.directory_mode(origin.mode(first.mode), &made);
                unpacker.open.push(UnfinishedDir::new(&first, mode));
            }
            let unpacked = unpacker.unpack_entries(&mut reader);
            // Also after an error.
            let finished = unpacker.finish_directories(None);
            unpacked.and(finished)?;
            Ok(unpacker.notes)
        }
        EntryKind::File { .. } if !first.name.is_root() => {
            let (directory, name) = destination.for_file(&first.name)?;
            let mut unpacker = Unpacker::open(&directory, origin, confine)?;
            unpacker.write_entry(&ArchiveEntry { name, ..first }, &mut reader)?;
            match reader.next_entry()? {
                None => Ok(unpacker.notes),
                Some(second) => {
                    Err(TreeError::rejected(second.name.as_bytes(), "follows the single file"))
                }
            }
        }
        _ => Err(TreeError::rejected(first.name.as_bytes(), "is neither a file nor a directory")),
    }
}

/// A directory whose mode and time are set after its contents are unpacked: its mode may not allow
/// writing.
struct UnfinishedDir {
    name: TreePath,
    mode: u32,
    modified: u64,
}

impl UnfinishedDir {
    fn new(entry: &ArchiveEntry, mode: u32) -> Self {
        Self { name: entry.name.clone(), mode, modified: entry.modified }
    }
}

struct Unpacker {
    dir: ConfinedDir,
    origin: ArchiveOrigin,
    quota: DiskQuota,
    /// Whether the root directory was created by this unpacking.
    is_new: bool,
    /// The new directories above the last entry.
    open: Vec<UnfinishedDir>,
    /// The files of this archive, by device and inode: hard links to other files are rejected.
    files: HashSet<(u64, u64)>,
    notes: Notes,
}

impl Unpacker {
    fn open(
        path: &Path,
        origin: ArchiveOrigin,
        confine: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<Self, TreeError> {
        let shown = path.as_os_str().as_bytes();
        let is_new = create_missing(path, origin.owner());
        let is_new = is_new.map_err(TreeError::failed("create", shown))?;
        let symlinks = match origin {
            ArchiveOrigin::Guest { .. } => SymlinkPolicy::Reject,
            // An image contains some, such as /bin.
            ArchiveOrigin::Host { .. } => SymlinkPolicy::ResolveInRoot,
        };
        let dir = ConfinedDir::open(path, symlinks).map_err(TreeError::failed("open", shown))?;
        let quota = DiskQuota::new(&dir.root(), origin.limit())?;
        confine(path).map_err(TreeError::failed("restrict access to", shown))?;
        let (open, files, notes) = (Vec::new(), HashSet::new(), Notes::default());
        Ok(Self { dir, origin, quota, is_new, open, files, notes })
    }

    fn unpack_entries(&mut self, reader: &mut TreeReader<impl Read>) -> Result<(), TreeError> {
        while let Some(entry) = reader.next_entry()? {
            if entry.name.is_root() {
                return Err(TreeError::rejected(b"", "is a duplicate"));
            }
            self.finish_directories(Some(&entry.name))?;
            self.write_entry(&entry, reader)?;
        }
        Ok(())
    }

    /// Sets the mode and time of the directories that `next` is not in.
    fn finish_directories(&mut self, next: Option<&TreePath>) -> Result<(), TreeError> {
        let is_left = |last: &mut UnfinishedDir| next.is_none_or(|next| !next.is_in(&last.name));
        while let Some(UnfinishedDir { name, mode, modified }) = self.open.pop_if(is_left) {
            let failed = |error| TreeError::failed("set the mode of", name.as_bytes())(error);
            let directory = self.dir.open_directory(&name).map_err(failed)?;
            if fstat(&directory).map_err(failed)?.st_mode & 0o7777 != mode {
                fchmod(&directory, Mode::from_bits_truncate(mode)).map_err(failed)?;
            }
            set_time(&directory, modified);
        }
        Ok(())
    }

    fn write_entry(
        &mut self,
        entry: &ArchiveEntry,
        reader: &mut TreeReader<impl Read>,
    ) -> Result<(), TreeError> {
        let name = &entry.name;
        let data = match &entry.kind {
            EntryKind::File { ranges, .. } => {
                ranges.iter().map(|range| disk_size(range.offset, range.length)).sum()
            }
            _ => 0,
        };
        self.quota.reserve_entry(data)?;
        match &entry.kind {
            EntryKind::Directory => self.create_directory(entry),
            EntryKind::File { size, ranges } => self.create_file(entry, *size, ranges, reader),
            EntryKind::Symlink(target) => self.create_symlink(entry, target),
            EntryKind::HardLink(target) => self.create_hard_link(name, target),
            EntryKind::Pipe { socket: false }
                if matches!(self.origin, ArchiveOrigin::Host { .. }) =>
            {
                self.create_pipe(entry)
            }
            EntryKind::Pipe { .. } | EntryKind::Device => {
                let why = match entry.kind {
                    EntryKind::Pipe { socket: true } => "is a socket and was skipped",
                    EntryKind::Pipe { socket: false } => "is a pipe and was skipped",
                    _ => "is a device and was skipped",
                };
                self.notes.add(name.as_bytes(), why);
                Ok(())
            }
        }
    }

    fn create_directory(&mut self, entry: &ArchiveEntry) -> Result<(), TreeError> {
        let ArchiveEntry { name, .. } = entry;
        let mode = self.origin.mode(entry.mode);
        let failed = |error| TreeError::failed("create", name.as_bytes())(error);
        let (directory, last) = self.dir.parent(name).map_err(failed)?;
        // Writable until its contents are unpacked.
        match mkdirat(directory, last, Mode::from_bits_truncate(mode & 0o777 | 0o700)) {
            Err(Errno::EEXIST) => return self.accept_existing(name),
            made => made.map_err(failed)?,
        }
        let made = status(directory, last).map_err(failed)?;
        self.open.push(UnfinishedDir::new(entry, self.origin.directory_mode(mode, &made)));
        self.set_owner(name)
    }

    /// Accepts an existing directory, which keeps its mode. In a guest it may be a link to one,
    /// such as `/bin`.
    fn accept_existing(&mut self, name: &TreePath) -> Result<(), TreeError> {
        match self.dir.open_path(name) {
            Ok(_) => Ok(()),
            Err(_) => Err(TreeError::rejected(name.as_bytes(), "exists and is not a directory")),
        }
    }

    fn create_file(
        &mut self,
        entry: &ArchiveEntry,
        size: u64,
        ranges: &[DataRange],
        reader: &mut TreeReader<impl Read>,
    ) -> Result<(), TreeError> {
        let ArchiveEntry { name, modified, .. } = entry;
        let mode = self.origin.mode(entry.mode);
        let created = create_entry(&mut self.dir, name, |directory, last| {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
            openat(
                directory,
                last,
                flags | OFlag::O_CLOEXEC,
                Mode::from_bits_truncate(mode & 0o777),
            )
        });
        let file = File::from(created.map_err(|error| error.into_tree_error(name))?);
        let failed = |step| move |error: io::Error| TreeError::failed(step, name.as_bytes())(error);
        let mut buffer = vec![0; BUFFER_SIZE];
        for DataRange { offset, length } in ranges {
            let (mut at, end) = (*offset, offset + length);
            while at < end {
                let most = usize::try_from(end - at).unwrap_or(BUFFER_SIZE).min(BUFFER_SIZE);
                let count = reader.read_content(&mut buffer[..most])?;
                self.quota.reserve_bytes(disk_size(at, count as u64))?;
                file.write_all_at(&buffer[..count], at).map_err(failed("write"))?;
                at += count as u64;
            }
        }
        if ranges.last().is_none_or(|last| last.offset + last.length < size) {
            file.set_len(size).map_err(failed("write"))?;
        }
        if let ArchiveOrigin::Host { owner } = self.origin {
            let owned = owner.map_or(Ok(()), |(user, group)| {
                fchown(&file, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))
            });
            let set = owned.and_then(|()| fchmod(&file, Mode::from_bits_truncate(mode)));
            set.map_err(TreeError::failed("set the owner and mode of", name.as_bytes()))?;
        }
        set_time(&file, *modified);
        let stat =
            fstat(&file).map_err(TreeError::failed("read the status of", name.as_bytes()))?;
        self.files.insert((stat.st_dev, stat.st_ino));
        Ok(())
    }

    fn create_symlink(&mut self, entry: &ArchiveEntry, target: &[u8]) -> Result<(), TreeError> {
        let name = &entry.name;
        if matches!(self.origin, ArchiveOrigin::Guest { .. }) && !name.link_stays_inside(target) {
            let why = "is a link that leads out of the tree and was skipped";
            self.notes.add(name.as_bytes(), why);
            return Ok(());
        }
        let created = create_entry(&mut self.dir, name, |directory, last| {
            symlinkat(target, directory, last)?;
            set_link_time(directory, last, entry.modified);
            Ok(())
        });
        created.map_err(|error| error.into_tree_error(name))?;
        self.set_owner(name)
    }

    fn create_hard_link(&mut self, name: &TreePath, target: &TreePath) -> Result<(), TreeError> {
        let rejected =
            || TreeError::rejected(name.as_bytes(), "is a hard link to a file outside the archive");
        if name == target || target.is_root() {
            return Err(rejected());
        }
        // Opened once, so that the check and the link use the same directory.
        let (directory, last) = target.split().ok_or_else(rejected)?;
        let directory = self.dir.open_path(&directory).map_err(|_| rejected())?;
        let directory = directory.as_fd();
        let stat = status(directory, last).map_err(|_| rejected())?;
        if !self.files.contains(&(stat.st_dev, stat.st_ino)) {
            return Err(rejected());
        }
        let created = create_entry(&mut self.dir, name, |to, new| {
            linkat(directory, last, to, new, AtFlags::empty())
        });
        created.map_err(|error| error.into_tree_error(name))
    }

    fn create_pipe(&mut self, entry: &ArchiveEntry) -> Result<(), TreeError> {
        let name = &entry.name;
        let mode = Mode::from_bits_truncate(entry.mode & 0o777);
        let created = create_entry(&mut self.dir, name, |directory, last| {
            mknodat(directory, last, SFlag::S_IFIFO, mode, 0)?;
            set_link_time(directory, last, entry.modified);
            Ok(())
        });
        created.map_err(|error| error.into_tree_error(name))?;
        self.set_owner(name)
    }

    /// Sets the owner of a new entry.
    fn set_owner(&mut self, name: &TreePath) -> Result<(), TreeError> {
        let Some((user, group)) = self.origin.owner() else { return Ok(()) };
        let failed = TreeError::failed::<Errno>("set the owner of", name.as_bytes());
        let owned = self.dir.parent(name).and_then(|(directory, last)| {
            let (user, group) = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
            fchownat(directory, last, user, group, AtFlags::AT_SYMLINK_NOFOLLOW)
        });
        owned.map_err(failed)
    }
}

/// An error of creating an entry.
enum CreateError {
    Replace(ReplaceError),
    Failed(Errno),
}

impl CreateError {
    fn into_tree_error(self, name: &TreePath) -> TreeError {
        match self {
            Self::Replace(ReplaceError::Directory) => {
                TreeError::rejected(name.as_bytes(), "exists and is a directory")
            }
            Self::Replace(ReplaceError::Special) => {
                TreeError::rejected(name.as_bytes(), "exists and is not a file")
            }
            Self::Replace(ReplaceError::Failed(error)) | Self::Failed(error) => {
                TreeError::failed("create", name.as_bytes())(error)
            }
        }
    }
}

/// Creates an entry in its directory. Replaces an existing file or link of the same name, but never
/// a directory or a special file.
fn create_entry<T>(
    dir: &mut ConfinedDir,
    name: &TreePath,
    step: impl Fn(BorrowedFd<'_>, &[u8]) -> Result<T, Errno>,
) -> Result<T, CreateError> {
    let (directory, last) = dir.parent(name).map_err(CreateError::Failed)?;
    match step(directory, last) {
        Err(Errno::EEXIST) => {
            remove_existing(directory, last).map_err(CreateError::Replace)?;
            step(directory, last).map_err(CreateError::Failed)
        }
        created => created.map_err(CreateError::Failed),
    }
}

/// Sets the modification time. A file system may reject a time; the current one then stays.
fn set_time(file: &impl AsFd, modified: u64) {
    let _ = futimens(file, &TimeSpec::UTIME_NOW, &time_spec(modified));
}

/// Sets the modification time of an entry that can't be opened. A file system may not support times
/// of links.
fn set_link_time(directory: BorrowedFd<'_>, name: &[u8], modified: u64) {
    let (now, time) = (TimeSpec::UTIME_NOW, time_spec(modified));
    let _ = utimensat(directory, name, &now, &time, UtimensatFlags::NoFollowSymlink);
}

fn time_spec(seconds: u64) -> TimeSpec {
    TimeSpec::new(i64::try_from(seconds).unwrap_or_default(), 0)
}

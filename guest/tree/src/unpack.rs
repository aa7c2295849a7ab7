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

use crate::below::{Below, InTheWay, Links, look, make_way};
use crate::holes::Segment;
use crate::name::Name;
use crate::origin::Origin;
use crate::place::{Destination, create_missing};
use crate::read::{Entry, Kind, Reader};
use crate::room::Room;
use crate::{Notes, PIECE, TreeError};

/// Unpacks an archive, up to its end. What was left out is noted.
///
/// `confine` is called as soon as the one directory is there below which everything will be, with
/// its path. Where the archive is refused in the middle, what came before it stays.
pub fn unpack(
    archive: impl Read,
    destination: Destination<'_>,
    origin: Origin,
    confine: impl FnOnce(&Path) -> io::Result<()>,
) -> Result<Notes, TreeError> {
    let mut reader = Reader::new(BufReader::with_capacity(PIECE, archive));
    let first = reader.next_entry()?.ok_or(TreeError::Damaged("it is empty"))?;
    match &first.kind {
        Kind::Directory if first.name.is_root() => {
            let path = destination.of_directory()?;
            let mut unpacker = Unpacker::open(&path, origin, confine)?;
            if unpacker.is_new {
                let made = fstat(unpacker.below.root()).map_err(TreeError::failed("open", b""))?;
                let mode = origin.mode_of_directory(origin.mode(first.mode), &made);
                unpacker.open.push(Unfinished::of(&first, mode));
            }
            let unpacked = unpacker.tree(&mut reader);
            // Also of a tree that is not whole.
            let finished = unpacker.finish_all_but(None);
            unpacked.and(finished)?;
            Ok(unpacker.notes)
        }
        Kind::File { .. } if !first.name.is_root() => {
            let (directory, name) = destination.of_file(&first.name)?;
            let mut unpacker = Unpacker::open(&directory, origin, confine)?;
            unpacker.put(&Entry { name, ..first }, &mut reader)?;
            match reader.next_entry()? {
                None => Ok(unpacker.notes),
                Some(second) => {
                    Err(TreeError::refused(second.name.as_bytes(), "comes beside the one file"))
                }
            }
        }
        _ => Err(TreeError::refused(first.name.as_bytes(), "is neither a file nor a directory")),
    }
}

/// A directory that gets its mode and its time once everything is in it: it may be one that nobody
/// may write to.
struct Unfinished {
    name: Name,
    mode: u32,
    modified: u64,
}

impl Unfinished {
    fn of(entry: &Entry, mode: u32) -> Self {
        Self { name: entry.name.clone(), mode, modified: entry.modified }
    }
}

struct Unpacker {
    below: Below,
    origin: Origin,
    room: Room,
    /// Whether the root was made for this.
    is_new: bool,
    /// The directories above the entry that came last, as far as they are new.
    open: Vec<Unfinished>,
    /// The files of this archive, by device and inode: only they may be linked to.
    files: HashSet<(u64, u64)>,
    notes: Notes,
}

impl Unpacker {
    fn open(
        path: &Path,
        origin: Origin,
        confine: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<Self, TreeError> {
        let shown = path.as_os_str().as_bytes();
        let is_new = create_missing(path, origin.owner());
        let is_new = is_new.map_err(TreeError::failed("make", shown))?;
        let links = match origin {
            Origin::Guest { .. } => Links::Refused,
            // An image has some, as /bin.
            Origin::Host { .. } => Links::Inside,
        };
        let below = Below::open(path, links).map_err(TreeError::failed("open", shown))?;
        let room = Room::on(&below.root(), origin.limit())?;
        confine(path).map_err(TreeError::failed("confine itself to", shown))?;
        let (open, files, notes) = (Vec::new(), HashSet::new(), Notes::default());
        Ok(Self { below, origin, room, is_new, open, files, notes })
    }

    fn tree(&mut self, reader: &mut Reader<impl Read>) -> Result<(), TreeError> {
        while let Some(entry) = reader.next_entry()? {
            if entry.name.is_root() {
                return Err(TreeError::refused(b"", "comes twice"));
            }
            self.finish_all_but(Some(&entry.name))?;
            self.put(&entry, reader)?;
        }
        Ok(())
    }

    /// Finishes the directories that `next` is not in.
    fn finish_all_but(&mut self, next: Option<&Name>) -> Result<(), TreeError> {
        let is_left = |last: &mut Unfinished| next.is_none_or(|next| !next.is_in(&last.name));
        while let Some(Unfinished { name, mode, modified }) = self.open.pop_if(is_left) {
            let failed = |error| TreeError::failed("finish", name.as_bytes())(error);
            let directory = self.below.directory(&name).map_err(failed)?;
            if fstat(&directory).map_err(failed)?.st_mode & 0o7777 != mode {
                fchmod(&directory, Mode::from_bits_truncate(mode)).map_err(failed)?;
            }
            set_time(&directory, modified);
        }
        Ok(())
    }

    fn put(&mut self, entry: &Entry, reader: &mut Reader<impl Read>) -> Result<(), TreeError> {
        let name = &entry.name;
        let data = match &entry.kind {
            Kind::File { segments, .. } => segments.iter().map(|segment| segment.length).sum(),
            _ => 0,
        };
        self.room.take(data)?;
        match &entry.kind {
            Kind::Directory => self.directory(entry),
            Kind::File { size, segments } => self.file(entry, *size, segments, reader),
            Kind::Symlink(target) => self.symlink(entry, target),
            Kind::HardLink(target) => self.hard_link(name, target),
            Kind::Pipe { socket: false } if matches!(self.origin, Origin::Host { .. }) => {
                self.pipe(entry)
            }
            Kind::Pipe { .. } | Kind::Device => {
                let why = match entry.kind {
                    Kind::Pipe { socket: true } => "is a socket, and was left out",
                    Kind::Pipe { socket: false } => "is a pipe, and was left out",
                    _ => "is a device, and was left out",
                };
                self.notes.add(name.as_bytes(), why);
                Ok(())
            }
        }
    }

    fn directory(&mut self, entry: &Entry) -> Result<(), TreeError> {
        let Entry { name, .. } = entry;
        let mode = self.origin.mode(entry.mode);
        let failed = |error| TreeError::failed("make", name.as_bytes())(error);
        let (directory, last) = self.below.parent(name).map_err(failed)?;
        // Writable until everything is in it.
        match mkdirat(directory, last, Mode::from_bits_truncate(mode & 0o777 | 0o700)) {
            Err(Errno::EEXIST) => return self.keep(name),
            made => made.map_err(failed)?,
        }
        let made = look(directory, last).map_err(failed)?;
        self.open.push(Unfinished::of(entry, self.origin.mode_of_directory(mode, &made)));
        self.own(name)
    }

    /// What is there already has to be a directory, and keeps its mode. In a guest it may be a link
    /// to one, as `/bin` is.
    fn keep(&mut self, name: &Name) -> Result<(), TreeError> {
        match self.below.pass(name) {
            Ok(_) => Ok(()),
            Err(_) => {
                Err(TreeError::refused(name.as_bytes(), "is there already, and no directory"))
            }
        }
    }

    fn file(
        &mut self,
        entry: &Entry,
        size: u64,
        segments: &[Segment],
        reader: &mut Reader<impl Read>,
    ) -> Result<(), TreeError> {
        let Entry { name, modified, .. } = entry;
        let mode = self.origin.mode(entry.mode);
        let made = make(&mut self.below, name, |directory, last| {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
            openat(
                directory,
                last,
                flags | OFlag::O_CLOEXEC,
                Mode::from_bits_truncate(mode & 0o777),
            )
        });
        let file = File::from(made.map_err(|problem| problem.of(name))?);
        let failed = |step| move |error: io::Error| TreeError::failed(step, name.as_bytes())(error);
        let mut piece = vec![0; PIECE];
        for Segment { offset, length } in segments {
            let (mut at, end) = (*offset, offset + length);
            while at < end {
                let most = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
                let count = reader.content(&mut piece[..most])?;
                self.room.write(count as u64)?;
                file.write_all_at(&piece[..count], at).map_err(failed("write"))?;
                at += count as u64;
            }
        }
        if segments.last().is_none_or(|last| last.offset + last.length < size) {
            file.set_len(size).map_err(failed("write"))?;
        }
        if let Origin::Host { owner } = self.origin {
            let owned = owner.map_or(Ok(()), |(user, group)| {
                fchown(&file, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))
            });
            let set = owned.and_then(|()| fchmod(&file, Mode::from_bits_truncate(mode)));
            set.map_err(TreeError::failed("set the owner and mode of", name.as_bytes()))?;
        }
        set_time(&file, *modified);
        let stat = fstat(&file).map_err(TreeError::failed("look at", name.as_bytes()))?;
        self.files.insert((stat.st_dev, stat.st_ino));
        Ok(())
    }

    fn symlink(&mut self, entry: &Entry, target: &[u8]) -> Result<(), TreeError> {
        let name = &entry.name;
        if matches!(self.origin, Origin::Guest { .. }) && !name.link_stays_inside(target) {
            let why = "is a link that leads out of the tree, and was left out";
            self.notes.add(name.as_bytes(), why);
            return Ok(());
        }
        let made = make(&mut self.below, name, |directory, last| {
            symlinkat(target, directory, last)?;
            set_time_of(directory, last, entry.modified);
            Ok(())
        });
        made.map_err(|problem| problem.of(name))?;
        self.own(name)
    }

    fn hard_link(&mut self, name: &Name, target: &Name) -> Result<(), TreeError> {
        let refused = || TreeError::refused(name.as_bytes(), "links to no file of its own tree");
        if name == target || target.is_root() {
            return Err(refused());
        }
        // On the way to another name of the file, which is not to be looked for twice.
        let (directory, last) = target.split().ok_or_else(refused)?;
        let directory = self.below.pass(&directory).map_err(|_| refused())?;
        let directory = directory.as_fd();
        let stat = look(directory, last).map_err(|_| refused())?;
        if !self.files.contains(&(stat.st_dev, stat.st_ino)) {
            return Err(refused());
        }
        let made = make(&mut self.below, name, |to, new| {
            linkat(directory, last, to, new, AtFlags::empty())
        });
        made.map_err(|problem| problem.of(name))
    }

    fn pipe(&mut self, entry: &Entry) -> Result<(), TreeError> {
        let name = &entry.name;
        let mode = Mode::from_bits_truncate(entry.mode & 0o777);
        let made = make(&mut self.below, name, |directory, last| {
            mknodat(directory, last, SFlag::S_IFIFO, mode, 0)?;
            set_time_of(directory, last, entry.modified);
            Ok(())
        });
        made.map_err(|problem| problem.of(name))?;
        self.own(name)
    }

    /// Gives what was just made to whom it belongs.
    fn own(&mut self, name: &Name) -> Result<(), TreeError> {
        let Some((user, group)) = self.origin.owner() else { return Ok(()) };
        let failed = TreeError::failed::<Errno>("give away", name.as_bytes());
        let owned = self.below.parent(name).and_then(|(directory, last)| {
            let (user, group) = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
            fchownat(directory, last, user, group, AtFlags::AT_SYMLINK_NOFOLLOW)
        });
        owned.map_err(failed)
    }
}

/// Why something could not be made.
enum Problem {
    InTheWay(InTheWay),
    Failed(Errno),
}

impl Problem {
    fn of(self, name: &Name) -> TreeError {
        match self {
            Self::InTheWay(InTheWay::Directory) => {
                TreeError::refused(name.as_bytes(), "is there already, as a directory")
            }
            Self::InTheWay(InTheWay::Special) => {
                TreeError::refused(name.as_bytes(), "is there already, and no file")
            }
            Self::InTheWay(InTheWay::Failed(error)) | Self::Failed(error) => {
                TreeError::failed("make", name.as_bytes())(error)
            }
        }
    }
}

/// Makes something in its directory. A file or link of its name gives way; a directory never does,
/// nor does anything give way to one.
fn make<T>(
    below: &mut Below,
    name: &Name,
    step: impl Fn(BorrowedFd<'_>, &[u8]) -> Result<T, Errno>,
) -> Result<T, Problem> {
    let (directory, last) = below.parent(name).map_err(Problem::Failed)?;
    match step(directory, last) {
        Err(Errno::EEXIST) => {
            make_way(directory, last).map_err(Problem::InTheWay)?;
            step(directory, last).map_err(Problem::Failed)
        }
        made => made.map_err(Problem::Failed),
    }
}

/// Where the file system refuses a time, what it has now has to do.
fn set_time(file: &impl AsFd, modified: u64) {
    let _ = futimens(file, &TimeSpec::UTIME_NOW, &time(modified));
}

/// The same for what can't be opened. A file system may have no times for links.
fn set_time_of(directory: BorrowedFd<'_>, name: &[u8], modified: u64) {
    let (now, time) = (TimeSpec::UTIME_NOW, time(modified));
    let _ = utimensat(directory, name, &now, &time, UtimensatFlags::NoFollowSymlink);
}

fn time(seconds: u64) -> TimeSpec {
    TimeSpec::new(i64::try_from(seconds).unwrap_or_default(), 0)
}

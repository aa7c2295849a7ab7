//! Files that are followed while the job runs: the pages in which a runner keeps its steps' lines.
//!
//! A page is deleted once it was sent, so each is opened as soon as it is there and read to its end
//! before it is let go. All of this is the job's to forge: what the thread opens, it opens with the
//! rights of the job's user, and takes nothing but regular files of that user.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use nix::unistd::{Gid, Uid, geteuid, setfsgid, setfsuid};

use super::twins::{self, Twins};

/// How often files are looked at. A page lasts longer: sending it takes a call or two.
const INTERVAL: Duration = Duration::from_millis(100);

/// Files that are open at once. A runner writes two at a time.
const OPEN: usize = 16;

/// Files that are followed in all, and names of the directory that are read in one look.
const FILES: usize = 4096;

/// A longer line is told in pieces of this size.
const LINE: usize = 64 << 10;

/// Bytes that are read of one file at a time.
const TURN: usize = 256 << 10;

/// What is read after the job's end, and for how long. The rest is in what is copied out.
const LAST: (usize, Duration) = (64 << 20, Duration::from_secs(30));

/// What is followed.
#[derive(Debug)]
pub(super) struct Followed {
    /// Where the files are.
    pub(super) directory: PathBuf,
    /// With whose rights, by user and group; none: those that the process has.
    pub(super) user: Option<(u32, u32)>,
}

/// One file.
struct Page {
    file: File,
    number: u64,
    line: Vec<u8>,
    // Of the line before: of a text of more than one line only the first has one.
    time: u64,
    // Nothing of it was read yet.
    fresh: bool,
    // The turn in which it last had something to read.
    grown: u64,
}

/// What has come of following so far.
struct Follower<'a> {
    followed: &'a Followed,
    owner: u32,
    to: &'a File,
    pages: Vec<Page>,
    known: BTreeSet<OsString>,
    twins: Twins,
    turn: u64,
}

impl Followed {
    /// Writes the files' lines to `to` until `ended` is hung up, and then what is left.
    pub(super) fn follow(&self, to: &File, ended: &Receiver<()>) {
        let owner = match self.user {
            // With other rights it reads nothing at all.
            Some((user, group)) if !give_up_rights(user, group) => return,
            Some((user, _)) => user,
            None => geteuid().as_raw(),
        };
        let mut follower = Follower {
            followed: self,
            owner,
            to,
            pages: Vec::new(),
            known: BTreeSet::new(),
            twins: Twins::default(),
            turn: 0,
        };
        // It fails where nobody reads any more.
        let _gone = follower.follow(ended);
    }
}

/// Takes the thread's rights to files down to those of a user. Only the thread's: the C library
/// hands these two calls to the kernel as they are, and no process of that user may trace or signal
/// the thread for it.
fn give_up_rights(user: u32, group: u32) -> bool {
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
    setfsgid(group);
    setfsuid(user);
    // Each gives what was before; none can be the largest number.
    (setfsgid(Gid::from_raw(u32::MAX)), setfsuid(Uid::from_raw(u32::MAX))) == (group, user)
}

impl Follower<'_> {
    fn follow(&mut self, ended: &Receiver<()>) -> io::Result<()> {
        let mut read = 0;
        loop {
            // What was read at once is not all there is.
            let pause = if read > 0 { Duration::ZERO } else { INTERVAL };
            match ended.recv_timeout(pause) {
                Err(RecvTimeoutError::Timeout) => read = self.turn()?,
                Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let (most, limit) = LAST;
        let begun = Instant::now();
        let mut all = 0;
        while all < most && begun.elapsed() < limit {
            match self.turn()? {
                0 => break,
                more => all += more,
            }
        }
        for mut page in std::mem::take(&mut self.pages) {
            self.finish(&mut page)?;
        }
        Ok(())
    }

    /// Reads what is new. Gives how much that was.
    fn turn(&mut self) -> io::Result<usize> {
        self.turn += 1;
        self.discover()?;
        let mut all = 0;
        let mut kept = Vec::new();
        for mut page in std::mem::take(&mut self.pages) {
            let deleted = page.file.metadata().map_or(true, |metadata| metadata.nlink() == 0);
            let read = self.read(&mut page)?;
            all += read;
            if deleted && read == 0 {
                self.finish(&mut page)?;
            } else {
                kept.push(page);
            }
        }
        self.pages = kept;
        Ok(all)
    }

    /// Opens what is new.
    fn discover(&mut self) -> io::Result<()> {
        // It is not there before the first job's first line.
        let Ok(entries) = fs::read_dir(&self.followed.directory) else { return Ok(()) };
        let names = entries.take(FILES).filter_map(|entry| Some(entry.ok()?.file_name()));
        let new: Vec<_> = names.filter(|name| !self.known.contains(name)).collect();
        let mut found = Vec::new();
        for name in new {
            if self.known.len() >= FILES {
                break;
            }
            let file = self.open(&self.followed.directory.join(&name));
            let number = self.known.len() as u64;
            self.known.insert(name);
            let Some((file, written)) = file else { continue };
            let page =
                Page { file, number, line: Vec::new(), time: 0, fresh: true, grown: self.turn };
            found.push((written, page));
            if self.pages.len() + found.len() > OPEN {
                self.let_one_go(&mut found)?;
            }
        }
        // Of files that are found together, those that were finished first come first.
        found.sort_by_key(|(written, _)| *written);
        self.pages.extend(found.into_iter().map(|(_, page)| page));
        Ok(())
    }

    /// Makes room: reads to its end, within a bound, what has had nothing new for longest.
    fn let_one_go(&mut self, found: &mut Vec<((i64, i64), Page)>) -> io::Result<()> {
        let quiet = (0..self.pages.len()).min_by_key(|index| self.pages[*index].grown);
        let page = match quiet {
            Some(index) => Some(self.pages.remove(index)),
            None => found.pop().map(|(_, page)| page),
        };
        let Some(mut page) = page else { return Ok(()) };
        let mut all = 0;
        while all < LAST.0 {
            match self.read(&mut page)? {
                0 => break,
                more => all += more,
            }
        }
        self.finish(&mut page)
    }

    /// A file of the job's user, with the time of its last change. No link is followed, and no pipe
    /// waited for.
    fn open(&self, path: &Path) -> Option<(File, (i64, i64))> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = File::options().read(true).custom_flags(flags).open(path).ok()?;
        let metadata = file.metadata().ok()?;
        let is_page = metadata.is_file() && metadata.uid() == self.owner;
        is_page.then(|| (file, (metadata.mtime(), metadata.mtime_nsec())))
    }

    /// Reads one file's turn. Gives how much that was.
    fn read(&mut self, page: &mut Page) -> io::Result<usize> {
        let mut buffer = vec![0; LINE];
        let mut all = 0;
        while all < TURN {
            // What can't be read has no more to say.
            let count = page.file.read(&mut buffer).unwrap_or(0);
            if count == 0 {
                break;
            }
            all += count;
            page.grown = self.turn;
            for piece in buffer[..count].split_inclusive(|byte| *byte == b'\n') {
                self.take(page, piece)?;
            }
        }
        Ok(all)
    }

    /// Takes a part of a line, or its end.
    fn take(&mut self, page: &mut Page, mut piece: &[u8]) -> io::Result<()> {
        while page.line.len() + piece.len() > LINE {
            let (fits, rest) = piece.split_at(LINE - page.line.len());
            page.line.extend_from_slice(fits);
            self.tell(page)?;
            piece = rest;
        }
        page.line.extend_from_slice(piece);
        if page.line.last() == Some(&b'\n') { self.tell(page) } else { Ok(()) }
    }

    /// Tells the line that was taken, unless it is another's twin.
    fn tell(&mut self, page: &mut Page) -> io::Result<()> {
        let mut line = std::mem::take(&mut page.line);
        if std::mem::take(&mut page.fresh) && line.starts_with(b"\xef\xbb\xbf") {
            // The mark that .NET begins a file with.
            line.drain(..3);
        }
        if line.last() != Some(&b'\n') {
            line.push(b'\n');
        }
        let text = match twins::split(&line) {
            Some((time, text)) => {
                page.time = time;
                text
            }
            None => &line[..],
        };
        if self.twins.is_second(page.number, page.time, text) {
            return Ok(());
        }
        self.to.write_all(&line)
    }

    /// Tells what is left of a file without an end of line.
    fn finish(&mut self, page: &mut Page) -> io::Result<()> {
        if page.line.is_empty() { Ok(()) } else { self.tell(page) }
    }
}

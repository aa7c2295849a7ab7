//! Follows files while the job runs: the pages to which a runner writes the log lines of its steps.
//!
//! A runner deletes a page once it is uploaded, so each is opened as soon as it appears and read to
//! its end before it is closed. The job can forge all of this: the thread opens files with the
//! permissions of the job's user, and accepts only regular files of that user.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use nix::unistd::{Gid, Uid, geteuid, setfsgid, setfsuid};

use super::duplicates::{self, Duplicates};

/// The poll interval. A page exists for longer: uploading it takes a request or two.
const INTERVAL: Duration = Duration::from_millis(100);

/// The most files open at once. A runner writes two at a time.
const MAX_OPEN: usize = 16;

/// The most files followed in total, and the most directory entries read per poll.
const MAX_FILES: usize = 4096;

/// The longest line, in bytes. A longer one is split.
const MAX_LINE: usize = 64 << 10;

/// The most bytes read from one file per poll.
const MAX_READ: usize = 256 << 10;

/// The most bytes read after the job's end, and the time limit. The copied-out files contain the
/// rest.
const FINAL_LIMITS: (usize, Duration) = (64 << 20, Duration::from_secs(30));

/// A directory to follow.
#[derive(Debug)]
pub(super) struct FollowedDirectory {
    /// The directory of the files.
    pub(super) directory: PathBuf,
    /// The user and group whose permissions apply; those of this process if none.
    pub(super) user: Option<(u32, u32)>,
}

/// A followed file.
struct Page {
    file: File,
    number: u64,
    line: Vec<u8>,
    // The time of the previous line: of a multi-line text only the first line has one.
    time: u64,
    // Whether nothing was read yet.
    is_unread: bool,
    // The poll in which it last had new data.
    last_growth: u64,
}

/// The state of following.
struct Follower<'a> {
    followed: &'a FollowedDirectory,
    owner: u32,
    to: &'a File,
    pages: Vec<Page>,
    known: BTreeSet<OsString>,
    duplicates: Duplicates,
    poll_count: u64,
}

impl FollowedDirectory {
    /// Writes the lines of the files to `to` until the sender of `ended` is dropped, and then the
    /// remaining lines.
    pub(super) fn follow(&self, to: &File, ended: &Receiver<()>) {
        let owner = match self.user {
            // Without dropping its permissions it must not read anything.
            Some((user, group)) if !drop_file_permissions(user, group) => return,
            Some((user, _)) => user,
            None => geteuid().as_raw(),
        };
        let mut follower = Follower {
            followed: self,
            owner,
            to,
            pages: Vec::new(),
            known: BTreeSet::new(),
            duplicates: Duplicates::default(),
            poll_count: 0,
        };
        // Fails if the reader is closed.
        let _disconnected = follower.follow(ended);
    }
}

/// Drops the file permissions of this thread to those of a user. Only of this thread: the C library
/// passes these two calls directly to the kernel. Processes of that user still can't trace or
/// signal the thread.
fn drop_file_permissions(user: u32, group: u32) -> bool {
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
    setfsgid(group);
    setfsuid(user);
    // Each call returns the previous ID, and fails for the invalid ID `u32::MAX`.
    (setfsgid(Gid::from_raw(u32::MAX)), setfsuid(Uid::from_raw(u32::MAX))) == (group, user)
}

impl Follower<'_> {
    fn follow(&mut self, ended: &Receiver<()>) -> io::Result<()> {
        let mut read = 0;
        loop {
            // If the last poll read something, there may be more.
            let pause = if read > 0 { Duration::ZERO } else { INTERVAL };
            match ended.recv_timeout(pause) {
                Err(RecvTimeoutError::Timeout) => read = self.poll()?,
                Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let (most, limit) = FINAL_LIMITS;
        let started = Instant::now();
        let mut all = 0;
        while all < most && started.elapsed() < limit {
            match self.poll()? {
                0 => break,
                more => all += more,
            }
        }
        for mut page in std::mem::take(&mut self.pages) {
            self.finish(&mut page)?;
        }
        Ok(())
    }

    /// Reads new data of all files. Returns the number of bytes.
    fn poll(&mut self) -> io::Result<usize> {
        self.poll_count += 1;
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

    /// Opens new files.
    fn discover(&mut self) -> io::Result<()> {
        // The directory does not exist before the first line of the first job.
        let Ok(entries) = fs::read_dir(&self.followed.directory) else { return Ok(()) };
        let names = entries.take(MAX_FILES).filter_map(|entry| Some(entry.ok()?.file_name()));
        let new: Vec<_> = names.filter(|name| !self.known.contains(name)).collect();
        let mut found = Vec::new();
        for name in new {
            if self.known.len() >= MAX_FILES {
                break;
            }
            let file = self.open(&self.followed.directory.join(&name));
            let number = self.known.len() as u64;
            self.known.insert(name);
            let Some((file, written)) = file else { continue };
            let page = Page {
                file,
                number,
                line: Vec::new(),
                time: 0,
                is_unread: true,
                last_growth: self.poll_count,
            };
            found.push((written, page));
            if self.pages.len() + found.len() > MAX_OPEN {
                self.close_least_recent(&mut found)?;
            }
        }
        // Files found in the same poll are ordered by their last modification.
        found.sort_by_key(|(written, _)| *written);
        self.pages.extend(found.into_iter().map(|(_, page)| page));
        Ok(())
    }

    /// Closes the file without new data for the longest time, after reading it to its end, within a
    /// limit.
    fn close_least_recent(&mut self, found: &mut Vec<((i64, i64), Page)>) -> io::Result<()> {
        let quiet = (0..self.pages.len()).min_by_key(|index| self.pages[*index].last_growth);
        let page = match quiet {
            Some(index) => Some(self.pages.remove(index)),
            None => found.pop().map(|(_, page)| page),
        };
        let Some(mut page) = page else { return Ok(()) };
        let mut all = 0;
        while all < FINAL_LIMITS.0 {
            match self.read(&mut page)? {
                0 => break,
                more => all += more,
            }
        }
        self.finish(&mut page)
    }

    /// Opens a regular file of the job's user. Returns it with the time of its last modification.
    /// Follows no link, and does not block on a pipe.
    fn open(&self, path: &Path) -> Option<(File, (i64, i64))> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = File::options().read(true).custom_flags(flags).open(path).ok()?;
        let metadata = file.metadata().ok()?;
        let is_page = metadata.is_file() && metadata.uid() == self.owner;
        is_page.then(|| (file, (metadata.mtime(), metadata.mtime_nsec())))
    }

    /// Reads one file, up to [`MAX_READ`] bytes. Returns the number of bytes.
    fn read(&mut self, page: &mut Page) -> io::Result<usize> {
        let mut buffer = vec![0; MAX_LINE];
        let mut all = 0;
        while all < MAX_READ {
            // A read error counts as the end of the file.
            let count = page.file.read(&mut buffer).unwrap_or(0);
            if count == 0 {
                break;
            }
            all += count;
            page.last_growth = self.poll_count;
            for piece in buffer[..count].split_inclusive(|byte| *byte == b'\n') {
                self.take(page, piece)?;
            }
        }
        Ok(all)
    }

    /// Appends a part of a line, and writes the line once it is complete.
    fn take(&mut self, page: &mut Page, mut piece: &[u8]) -> io::Result<()> {
        while page.line.len() + piece.len() > MAX_LINE {
            let (fits, rest) = piece.split_at(MAX_LINE - page.line.len());
            page.line.extend_from_slice(fits);
            self.write_line(page)?;
            piece = rest;
        }
        page.line.extend_from_slice(piece);
        if page.line.last() == Some(&b'\n') { self.write_line(page) } else { Ok(()) }
    }

    /// Writes the current line, unless it is a duplicate.
    fn write_line(&mut self, page: &mut Page) -> io::Result<()> {
        let mut line = std::mem::take(&mut page.line);
        if std::mem::take(&mut page.is_unread) && line.starts_with(b"\xef\xbb\xbf") {
            // The byte order mark with which .NET begins a file.
            line.drain(..3);
        }
        if line.last() != Some(&b'\n') {
            line.push(b'\n');
        }
        let text = match duplicates::split_time(&line) {
            Some((time, text)) => {
                page.time = time;
                text
            }
            None => &line[..],
        };
        if self.duplicates.is_duplicate(page.number, page.time, text) {
            return Ok(());
        }
        self.to.write_all(&line)
    }

    /// Writes the last line of a file if it has no line end.
    fn finish(&mut self, page: &mut Page) -> io::Result<()> {
        if page.line.is_empty() { Ok(()) } else { self.write_line(page) }
    }
}

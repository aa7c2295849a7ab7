//! What a detached microVM's job writes, in files of bounded size.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::detached::Detached;

/// The file with standard output and error, as they came.
pub const OUTPUT: &str = "output.log";

/// The file with the archive of the `index`-th tree that was copied out.
pub fn copy(directory: &Path, index: u16) -> PathBuf {
    directory.join(format!("copy-{index}.tar"))
}

/// The file that the `index`-th tree is copied in from; whoever gives the job puts it there before.
pub fn source(directory: &Path, index: u16) -> PathBuf {
    directory.join(format!("in-{index}.tar"))
}

/// The files with the end of what did not fit into [`OUTPUT`], until [`complete`] adds it.
fn tails(directory: &Path) -> [PathBuf; 2] {
    ["output.tail-0", "output.tail-1"].map(|name| directory.join(name))
}

/// The log of a job, for both of its streams.
#[derive(Clone)]
pub(super) struct OutputLog(Arc<Mutex<Ends>>);

impl OutputLog {
    pub(super) fn create(directory: &Path, detached: Detached) -> io::Result<Self> {
        Ok(Self(Arc::new(Mutex::new(Ends::create(directory, detached.output.0)?))))
    }
}

/// Takes everything: of what is beyond the bound the end is kept, where errors are; what the disk has
/// no room for is not, and that is no concern of the job's.
impl Write for OutputLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Both ends of a stream of bytes: the first half of what is kept, and from a quarter to a half of it
/// at the end, in two pages that take turns. Each page begins with the place of its first byte in the
/// stream. All files are open from the beginning, so that nothing is missed for want of descriptors.
struct Ends {
    head: Bounded,
    /// Whether something was left out of the beginning.
    beyond: bool,
    pages: [File; 2],
    current: usize,
    /// Bytes of a page, and in the current one; as in a full one where there is none yet.
    page: u64,
    written: u64,
    /// Bytes that came.
    total: u64,
}

impl Ends {
    fn create(directory: &Path, limit: u64) -> io::Result<Self> {
        let head = Bounded::create(&directory.join(OUTPUT), limit.div_ceil(2))?;
        let [one, other] = tails(directory);
        let pages = [create(&one)?, create(&other)?];
        let page = limit / 4;
        Ok(Self { head, beyond: false, pages, current: 0, page, written: page, total: 0 })
    }

    fn take(&mut self, mut bytes: &[u8]) {
        // Nothing is added to the beginning once something was left out after it.
        while !self.beyond && !bytes.is_empty() {
            match self.head.write(bytes) {
                Ok(count) => {
                    bytes = &bytes[count..];
                    self.total += count as u64;
                }
                Err(_) => self.beyond = true,
            }
        }
        while self.page > 0 && !bytes.is_empty() {
            if self.written >= self.page && self.turn().is_err() {
                break;
            }
            let room = usize::try_from(self.page - self.written).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            if self.pages[self.current].write_all(now).is_err() {
                // What comes next gets a page of its own, with its place.
                self.written = self.page;
                break;
            }
            self.written += now.len() as u64;
            self.total += now.len() as u64;
            bytes = later;
        }
        // What was lost has had its place in the stream, too.
        self.total += bytes.len() as u64;
    }

    /// Begins a page in place of the older one.
    fn turn(&mut self) -> io::Result<()> {
        let other = 1 - self.current;
        let page = &mut self.pages[other];
        page.set_len(0)?;
        page.rewind()?;
        page.write_all(&self.total.to_le_bytes())?;
        self.current = other;
        self.written = 0;
        Ok(())
    }
}

/// Adds the end of what a job wrote to its log, with a mark of what is missing between. To be called
/// when the microVM is no more; nothing where everything fitted.
pub fn complete(directory: &Path) -> io::Result<()> {
    let mut pages = Vec::new();
    for path in tails(directory) {
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let mut place = [0; 8];
        // One that has no place yet has nothing else.
        if file.read_exact(&mut place).is_ok() {
            pages.push((u64::from_le_bytes(place), file));
        }
    }
    pages.sort_by_key(|(place, _)| *place);
    let mut log = OpenOptions::new().append(true).open(directory.join(OUTPUT))?;
    let mut end = log.metadata()?.len();
    for (place, mut page) in pages {
        if place > end {
            writeln!(log, "\n[mayfly: {} bytes are cut here]", place - end)?;
        }
        end = place + io::copy(&mut page, &mut log)?;
    }
    for path in tails(directory) {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// A file that takes only so many bytes; more are an error, after those that it takes.
pub(super) struct Bounded {
    file: File,
    left: u64,
}

impl Bounded {
    pub(super) fn create(path: &Path, limit: u64) -> io::Result<Self> {
        Ok(Self { file: create(path)?, left: limit })
    }
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        if room == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let written = self.file.write(&bytes[..room])?;
        self.left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::host::size::Size;

    fn written(limit: u64, pieces: &[&[u8]]) -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let detached = Detached { output: Size(limit), ..Detached::default() };
        let mut log = OutputLog::create(directory.path(), detached).unwrap();
        let mut other = log.clone();
        for (index, piece) in pieces.iter().enumerate() {
            let log = if index % 2 == 0 { &mut log } else { &mut other };
            log.write_all(piece).unwrap();
        }
        complete(directory.path()).unwrap();
        complete(directory.path()).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        fs::read(directory.path().join(OUTPUT)).unwrap()
    }

    #[test]
    fn a_log_that_is_too_long_keeps_both_ends_and_says_what_is_cut() {
        for (limit, pieces, kept) in [
            (8, &[&b"0123"[..], b"45", b"67"][..], &b"01234567"[..]),
            (8, &[b"0123456789"], b"0123\n[mayfly: 2 bytes are cut here]\n6789"),
            (8, &[b"01234567", b"8"], b"0123\n[mayfly: 2 bytes are cut here]\n678"),
            (8, &[b"", b"0123456789abcdef"], b"0123\n[mayfly: 8 bytes are cut here]\ncdef"),
            (4, &[b"0123"], b"0123"),
            (0, &[b"0123"], b""),
            (100, &[], b""),
        ] {
            let text = written(limit, pieces);
            assert_eq!(text.escape_ascii().to_string(), kept.escape_ascii().to_string());
        }
    }

    #[test]
    fn a_log_without_its_file_is_not_completed() {
        let directory = tempfile::tempdir().unwrap();
        let error = complete(directory.path()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    proptest! {
        #[test]
        fn of_any_output_both_ends_are_there(
            limit in 4_u64..200,
            sizes in prop::collection::vec(0_usize..120, 0..30),
        ) {
            let stream: Vec<u8> = (0..sizes.iter().sum()).map(|at: usize| (at % 251).to_le_bytes()[0]).collect();
            let mut rest = &stream[..];
            let mut pieces = Vec::new();
            for size in sizes {
                let (piece, after) = rest.split_at(size);
                pieces.push(piece);
                rest = after;
            }
            let text = written(limit, &pieces);
            let fits = stream.len() as u64 <= limit / 2 + limit / 4 * 2;
            if fits {
                prop_assert_eq!(&text, &stream);
            } else {
                let head = usize::try_from(limit / 2).unwrap();
                let tail = usize::try_from(limit / 4).unwrap().min(stream.len() - head);
                prop_assert!(text.starts_with(&stream[..head]));
                prop_assert!(text.ends_with(&stream[stream.len() - tail..]));
                prop_assert!(text.len() as u64 <= limit + 60);
            }
        }
    }
}

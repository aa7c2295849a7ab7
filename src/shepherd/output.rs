//! The output of a detached microVM's job, in files of bounded size.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::detached::DetachedLimits;

/// The file with standard output and error, interleaved as they arrived.
pub const OUTPUT: &str = "output.log";

/// Returns the archive of the `index`-th tree that is copied out.
pub fn copy_out_path(directory: &Path, index: u16) -> PathBuf {
    directory.join(format!("copy-{index}.tar"))
}

/// Returns the archive that the `index`-th tree is copied in from. Written before the job starts.
pub fn copy_in_path(directory: &Path, index: u16) -> PathBuf {
    directory.join(format!("in-{index}.tar"))
}

/// Returns the files with the end of the output that exceeds [`OUTPUT`]; see [`append_tail`].
fn tail_paths(directory: &Path) -> [PathBuf; 2] {
    ["output.tail-0", "output.tail-1"].map(|name| directory.join(name))
}

/// The log of both output streams of a job.
#[derive(Clone)]
pub(super) struct OutputLog(Arc<Mutex<HeadAndTail>>);

impl OutputLog {
    pub(super) fn create(directory: &Path, detached: DetachedLimits) -> io::Result<Self> {
        Ok(Self(Arc::new(Mutex::new(HeadAndTail::create(directory, detached.output.0)?))))
    }
}

/// Accepts all bytes. Beyond the limit it keeps the end, where errors usually are. Bytes that the
/// disk has no space for are lost; the job is not affected.
impl Write for OutputLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).append(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The head and the tail of a byte stream: the first half of the limit, and a quarter to a half of
/// the limit at the end, in two alternating pages. Each page begins with the stream offset of its
/// first byte. All files are open from the start, so that no descriptor is needed later.
struct HeadAndTail {
    head: BoundedFile,
    /// Whether bytes after the head were left out of it.
    head_is_full: bool,
    pages: [File; 2],
    current: usize,
    /// Size of a page in bytes.
    page: u64,
    /// Bytes in the current page. Equal to `page` if there is no page yet.
    written: u64,
    /// Bytes received so far.
    total: u64,
}

impl HeadAndTail {
    fn create(directory: &Path, limit: u64) -> io::Result<Self> {
        let head = BoundedFile::create(&directory.join(OUTPUT), limit.div_ceil(2))?;
        let [one, other] = tail_paths(directory);
        let pages = [create(&one)?, create(&other)?];
        let page = limit / 4;
        Ok(Self { head, head_is_full: false, pages, current: 0, page, written: page, total: 0 })
    }

    fn append(&mut self, mut bytes: &[u8]) {
        // The head must stay contiguous: nothing is added once bytes were left out.
        while !self.head_is_full && !bytes.is_empty() {
            match self.head.write(bytes) {
                Ok(count) => {
                    bytes = &bytes[count..];
                    self.total += count as u64;
                }
                Err(_) => self.head_is_full = true,
            }
        }
        while self.page > 0 && !bytes.is_empty() {
            if self.written >= self.page && self.rotate().is_err() {
                break;
            }
            let room = usize::try_from(self.page - self.written).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            if self.pages[self.current].write_all(now).is_err() {
                // The next bytes start a new page with their own offset.
                self.written = self.page;
                break;
            }
            self.written += now.len() as u64;
            self.total += now.len() as u64;
            bytes = later;
        }
        // Lost bytes count in the stream's offsets, too.
        self.total += bytes.len() as u64;
    }

    /// Starts a new page in place of the older one.
    fn rotate(&mut self) -> io::Result<()> {
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

/// Appends the tail to the log, with a note of how many bytes are omitted in between. To be called
/// after the microVM's end. Does nothing if all output fits.
pub fn append_tail(directory: &Path) -> io::Result<()> {
    let mut pages = Vec::new();
    for path in tail_paths(directory) {
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let mut offset = [0; 8];
        // A page without an offset is empty.
        if file.read_exact(&mut offset).is_ok() {
            pages.push((u64::from_le_bytes(offset), file));
        }
    }
    pages.sort_by_key(|(offset, _)| *offset);
    let mut log = OpenOptions::new().append(true).open(directory.join(OUTPUT))?;
    let mut end = log.metadata()?.len();
    for (offset, mut page) in pages {
        if offset > end {
            writeln!(log, "\n[mayfly: {} bytes omitted here]", offset - end)?;
        }
        end = offset + io::copy(&mut page, &mut log)?;
    }
    for path in tail_paths(directory) {
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

/// A file with a size limit. Writing more is an error, after the bytes that fit.
pub(super) struct BoundedFile {
    file: File,
    remaining: u64,
}

impl BoundedFile {
    pub(super) fn create(path: &Path, limit: u64) -> io::Result<Self> {
        Ok(Self { file: create(path)?, remaining: limit })
    }
}

impl Write for BoundedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(bytes.len());
        if room == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let written = self.file.write(&bytes[..room])?;
        self.remaining -= written as u64;
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
    use mayfly_host::size::Size;

    fn written(limit: u64, pieces: &[&[u8]]) -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let detached = DetachedLimits { output: Size(limit), ..DetachedLimits::default() };
        let mut log = OutputLog::create(directory.path(), detached).unwrap();
        let mut other = log.clone();
        for (index, piece) in pieces.iter().enumerate() {
            let log = if index % 2 == 0 { &mut log } else { &mut other };
            log.write_all(piece).unwrap();
        }
        append_tail(directory.path()).unwrap();
        append_tail(directory.path()).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        fs::read(directory.path().join(OUTPUT)).unwrap()
    }

    #[test]
    fn a_log_that_is_too_long_keeps_both_ends_and_says_what_is_omitted() {
        for (limit, pieces, kept) in [
            (8, &[&b"0123"[..], b"45", b"67"][..], &b"01234567"[..]),
            (8, &[b"0123456789"], b"0123\n[mayfly: 2 bytes omitted here]\n6789"),
            (8, &[b"01234567", b"8"], b"0123\n[mayfly: 2 bytes omitted here]\n678"),
            (8, &[b"", b"0123456789abcdef"], b"0123\n[mayfly: 8 bytes omitted here]\ncdef"),
            (4, &[b"0123"], b"0123"),
            (0, &[b"0123"], b""),
            (100, &[], b""),
        ] {
            let text = written(limit, pieces);
            assert_eq!(text.escape_ascii().to_string(), kept.escape_ascii().to_string());
        }
    }

    #[test]
    fn a_tail_without_its_log_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let error = append_tail(directory.path()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    proptest! {
        #[test]
        fn both_ends_of_any_output_are_kept(
            limit in 4_u64..200,
            sizes in prop::collection::vec(0_usize..120, 0..30),
        ) {
            let byte = |at: usize| (at % 251).to_le_bytes()[0];
            let stream: Vec<u8> = (0..sizes.iter().sum()).map(byte).collect();
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

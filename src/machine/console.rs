//! Bounded logs: the guest's serial console, and the error output of QEMU and the vsock program.
//!
//! Each is written to the microVM's directory as it arrives, so that it survives any failure, and
//! takes at most two [`PAGE`]s: the newest page and the one before it.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};

use mayfly_common::text::printable;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Size of a log file, in bytes, before it is rotated.
pub const PAGE: u64 = 128 * 1024;

/// File extension of the previous page.
const PREVIOUS: &str = "previous";

/// A log file and the previous one. Both are open from the start, so that a process without free
/// descriptors can still log.
#[derive(Debug)]
pub struct BoundedLog {
    path: PathBuf,
    file: File,
    /// The previous page. Empty until the first rotation.
    previous: File,
    written: u64,
}

impl BoundedLog {
    /// Creates an empty log.
    pub fn create(path: &Path) -> io::Result<Self> {
        let previous = File::create(path.with_extension(PREVIOUS))?;
        Ok(Self { path: path.to_owned(), file: File::create(path)?, previous, written: 0 })
    }

    /// Appends to the log.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.written >= PAGE {
            self.rotate()?;
        }
        self.file.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Makes the current page the previous one, and reuses the former previous page.
    fn rotate(&mut self) -> io::Result<()> {
        let previous = self.path.with_extension(PREVIOUS);
        let aside = self.path.with_extension("aside");
        std::fs::rename(&previous, &aside)?;
        std::fs::rename(&self.path, &previous)?;
        std::fs::rename(&aside, &self.path)?;
        std::mem::swap(&mut self.file, &mut self.previous);
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.written = 0;
        Ok(())
    }

    /// Appends everything from `source` until its end. Bytes that can't be written, such as when
    /// the disk is full, are lost; the source is still read, so that its writer does not block.
    pub async fn follow(mut self, mut source: impl AsyncRead + Unpin) {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = source.read(&mut buffer).await {
            _ = self.write(&buffer[..count]);
        }
    }
}

/// Returns the last `lines` lines of a log, across both files, cleaned for display.
pub fn tail(path: &Path, lines: usize) -> Vec<String> {
    let read = |path: &Path| std::fs::read(path).unwrap_or_default();
    let mut bytes = read(&path.with_extension(PREVIOUS));
    bytes.extend(read(path));
    let text = String::from_utf8_lossy(&bytes);
    let clean = text.lines().map(printable).filter(|line| !line.trim().is_empty());
    let mut last: Vec<String> = clean.collect();
    last.split_off(last.len().saturating_sub(lines))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_flood_takes_two_pages_and_its_end_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        let flood: Vec<u8> =
            (0..200_000).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
        BoundedLog::create(&path).unwrap().follow(flood.as_slice()).await;
        let kept: u64 = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert!(kept <= 2 * (PAGE + 4096), "{kept} bytes");
        assert_eq!(tail(&path, 2), ["line 199998", "line 199999"]);
    }

    #[test]
    fn a_log_never_needs_another_descriptor() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        let mut log = BoundedLog::create(&path).unwrap();
        let opened = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = opened();
        let page = vec![b'x'; usize::try_from(PAGE).unwrap()];
        for number in 0..5 {
            log.write(format!("page {number}\n").as_bytes()).unwrap();
            log.write(&page).unwrap();
            log.write(b"\n").unwrap();
        }
        log.write(b"the end\n").unwrap();
        assert_eq!(opened(), before);
        let lines = tail(&path, 100);
        assert_eq!((&*lines[0], &**lines.last().unwrap()), ("page 4", "the end"));
        assert!(!path.with_extension("aside").exists());
    }

    #[test]
    fn escape_sequences_do_not_reach_the_reader() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        std::fs::write(&path, b"\x1b[31mred\x07\r\n\xff\n").unwrap();
        assert_eq!(tail(&path, 10), ["[31mred", "\u{fffd}"]);
    }
}

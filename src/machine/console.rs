//! Bounded logs: the guest's serial console, and what QEMU and the vsock program complain of.
//!
//! Each is written to the microVM's directory as it comes, so that it is there whatever happens
//! next, and never takes more than two [`PAGE`]s: the newest page and the one before it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncRead, AsyncReadExt};

use std::io::Write;

/// Bytes of a log file before a new one is begun.
pub const PAGE: u64 = 128 * 1024;

/// A log file and, once it was full, the one before it.
#[derive(Debug)]
pub struct BoundedLog {
    path: PathBuf,
    file: File,
    written: u64,
}

impl BoundedLog {
    /// Begins an empty log.
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: File::create(path)?, written: 0 })
    }

    /// Adds to it.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.written >= PAGE {
            std::fs::rename(&self.path, self.path.with_extension("previous"))?;
            *self = Self::create(&self.path)?;
        }
        self.file.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Adds all that comes from `source`, until it ends. A log that can't be written any more
    /// (the disk is full) takes no more, but the source is still emptied, lest its writer waits.
    pub async fn follow(mut self, mut source: impl AsyncRead + Unpin) {
        let mut buffer = [0; 4096];
        let mut writable = true;
        while let Ok(count @ 1..) = source.read(&mut buffer).await {
            writable = writable && self.write(&buffer[..count]).is_ok();
        }
    }
}

/// The last `lines` lines of a log, across both of its files, for showing to a person.
pub fn tail(path: &Path, lines: usize) -> Vec<String> {
    let read = |path: &Path| std::fs::read(path).unwrap_or_default();
    let mut bytes = read(&path.with_extension("previous"));
    bytes.extend(read(path));
    let text = String::from_utf8_lossy(&bytes);
    let clean = text.lines().map(printable).filter(|line| !line.trim().is_empty());
    let mut last: Vec<String> = clean.collect();
    last.split_off(last.len().saturating_sub(lines))
}

/// Without what would move the reader's cursor or change its colours.
fn printable(line: &str) -> String {
    line.chars().filter(|character| *character == '\t' || !character.is_control()).collect()
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
    fn escape_sequences_do_not_reach_the_reader() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        std::fs::write(&path, b"\x1b[31mred\x07\r\n\xff\n").unwrap();
        assert_eq!(tail(&path, 10), ["[31mred", "\u{fffd}"]);
    }
}

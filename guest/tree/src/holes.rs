//! The data ranges of sparse files.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::MAX_DATA_RANGES;

/// A part of a file that contains data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataRange {
    /// The offset in the file, in bytes.
    pub offset: u64,
    /// The length, in bytes.
    pub length: u64,
}

/// Returns the data ranges of a file of `size` bytes. On a file system without holes, that is the
/// whole file.
pub(crate) fn data_ranges(file: BorrowedFd<'_>, size: u64) -> Vec<DataRange> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < size {
        let Some(begin) = seek(file, at, Whence::SeekData) else { break };
        let end = seek(file, begin, Whence::SeekHole).unwrap_or(size).min(size);
        if begin >= size || end <= begin {
            break;
        }
        // The last range includes the remaining holes.
        let end = if found.len() + 1 == MAX_DATA_RANGES { size } else { end };
        found.push(DataRange { offset: begin, length: end - begin });
        at = end;
    }
    found
}

/// Returns the next data or hole, or `None` if the file has no more.
fn seek(file: BorrowedFd<'_>, from: u64, whence: Whence) -> Option<u64> {
    let offset = i64::try_from(from).ok()?;
    match lseek(file, offset, whence) {
        Ok(found) => u64::try_from(found).ok(),
        Err(Errno::ENXIO) => None,
        // A file system without this operation: everything is data.
        Err(_) => matches!(whence, Whence::SeekData).then_some(from),
    }
}

//! Where a file has data, and where it has holes.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::MOST_SEGMENTS;

/// A part of a file that is no hole, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

/// The parts of a file of `size` bytes that are no holes. A file system that does not know holes
/// gives all of it.
pub(crate) fn segments(file: BorrowedFd<'_>, size: u64) -> Vec<Segment> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < size {
        let Some(begin) = seek(file, at, Whence::SeekData) else { break };
        let end = seek(file, begin, Whence::SeekHole).unwrap_or(size).min(size);
        if begin >= size || end <= begin {
            break;
        }
        // The rest is written out, holes and all.
        let end = if found.len() + 1 == MOST_SEGMENTS { size } else { end };
        found.push(Segment { offset: begin, length: end - begin });
        at = end;
    }
    found
}

/// None where there is no such place up to the end of the file.
fn seek(file: BorrowedFd<'_>, from: u64, whence: Whence) -> Option<u64> {
    let offset = i64::try_from(from).ok()?;
    match lseek(file, offset, whence) {
        Ok(found) => u64::try_from(found).ok(),
        Err(Errno::ENXIO) => None,
        // A file system that can't say: everything is data.
        Err(_) => matches!(whence, Whence::SeekData).then_some(from),
    }
}

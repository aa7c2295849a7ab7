//! Lines that are written to two files.
//!
//! A runner writes each line of a step to the step's file and, right after, to the job's own, with
//! a time of its own. Which file is the job's, no name tells. So a line that another file had at
//! the same moment is left out, once.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

/// How far the times of two that are one may be apart, in milliseconds. A step takes longer to
/// start, so that the same line of two steps is two.
const APART: u64 = 25;

/// Lines that are remembered. A runner holds back 4 KiB of each file, so that there are fewer.
const MOST: usize = 16_384;

/// Lines whose twin has not been seen.
#[derive(Debug, Default)]
pub(super) struct Twins {
    // By the hash of the text: the time, and the file's number.
    alone: HashMap<u64, VecDeque<(u64, u64)>>,
    count: usize,
}

impl Twins {
    /// Whether the line of this time is one that another file had. `text` is without its time.
    pub(super) fn is_second(&mut self, file: u64, time: u64, text: &[u8]) -> bool {
        if self.count >= MOST {
            // A twin is shown twice then.
            *self = Self::default();
        }
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let mut alike = match self.alone.entry(hasher.finish()) {
            Entry::Occupied(alike) => alike,
            Entry::Vacant(none) => none.insert_entry(VecDeque::new()),
        };
        let before = alike.get().len();
        let stale = |(then, _): &(u64, u64)| then.abs_diff(time) > APART;
        while alike.get().front().is_some_and(stale) {
            alike.get_mut().pop_front();
        }
        let is_second = alike.get().front().is_some_and(|(_, other)| *other != file);
        if is_second {
            alike.get_mut().pop_front();
        } else {
            alike.get_mut().push_back((time, file));
        }
        self.count = self.count + alike.get().len() - before;
        if alike.get().is_empty() {
            alike.remove();
        }
        is_second
    }
}

/// The time that a line begins with, in milliseconds of its day, and the text after it:
/// `2026-01-02T03:04:05.1234567Z text`.
pub(super) fn split(line: &[u8]) -> Option<(u64, &[u8])> {
    const SHAPE: &[u8] = b"dddd-dd-ddTdd:dd:dd.ddd";
    let fits = line.len() >= SHAPE.len()
        && line.iter().zip(SHAPE).all(|(byte, shape)| match shape {
            b'd' => byte.is_ascii_digit(),
            _ => byte == shape,
        });
    if !fits {
        return None;
    }
    let number = |from: usize, to: usize| {
        line[from..to].iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'))
    };
    let seconds = (number(11, 13) * 60 + number(14, 16)) * 60 + number(17, 19);
    let end = line.iter().position(|byte| *byte == b' ').unwrap_or(line.len());
    Some((seconds * 1000 + number(20, 23), &line[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_two_files_is_one_and_of_one_file_two() {
        let mut twins = Twins::default();
        let mut second = |file, time, text: &str| twins.is_second(file, time, text.as_bytes());
        assert!(!second(1, 1000, "a"));
        assert!(!second(1, 1000, "a"));
        assert!(second(2, 1001, "a"));
        assert!(second(2, 1001, "a"));
        assert!(!second(2, 1001, "a"));
        // The other way around: what is held back comes later.
        assert!(second(1, 1000, "a"));
        assert!(!second(1, 5000, "b"));
        assert!(!second(2, 5000 + APART + 1, "b"), "another step's");
        assert!(!second(1, 0, "a"), "the next day");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut twins = Twins::default();
        for line in 0..100_000_u64 {
            assert!(!twins.is_second(1, 0, &line.to_le_bytes()));
        }
        assert!(twins.count <= MOST && twins.alone.len() <= MOST);
        // Stale ones make room.
        for line in 0..100_000_u64 {
            assert!(!twins.is_second(1, line * 1000, b"the same"));
        }
        assert!(twins.count <= MOST);
    }

    #[test]
    fn a_time_is_read_and_nothing_else_is() {
        let line = b"2026-01-02T03:04:05.1234567Z text";
        let time = ((3 * 60 + 4) * 60 + 5) * 1000 + 123;
        assert_eq!(split(line), Some((time, &b" text"[..])));
        assert_eq!(split(b"2026-01-02T03:04:05.1234567Z"), Some((time, &b""[..])));
        for line in [&b""[..], b"text", b"2026-01-02 03:04:05Z: text", b"2026-01-02T03:04:05.12"] {
            assert_eq!(split(line), None);
        }
    }
}

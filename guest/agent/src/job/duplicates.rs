//! Removes lines that a runner writes to two files.
//!
//! A runner writes each line of a step to the step's file and, right after, to the job's file, with
//! a separate timestamp. File names do not tell which file is the job's. So a line that another
//! file contains with nearly the same time is dropped, once.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

/// The largest difference of the times of duplicates, in milliseconds. Starting a step takes
/// longer, so equal lines of two steps are not duplicates.
const MAX_DIFFERENCE: u64 = 25;

/// The most lines that are remembered. A runner buffers at most 4 KiB of each file, so fewer are
/// needed.
const MAX_LINES: usize = 16_384;

/// The lines whose duplicate has not been seen yet.
#[derive(Debug, Default)]
pub(super) struct Duplicates {
    // The times and file numbers, by the hash of the text.
    alone: HashMap<u64, VecDeque<(u64, u64)>>,
    count: usize,
}

impl Duplicates {
    /// Returns whether another file had the same line at this time. `text` is without its time.
    pub(super) fn is_duplicate(&mut self, file: u64, time: u64, text: &[u8]) -> bool {
        if self.count >= MAX_LINES {
            // A few duplicates may then be written.
            *self = Self::default();
        }
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let mut alike = match self.alone.entry(hasher.finish()) {
            Entry::Occupied(alike) => alike,
            Entry::Vacant(none) => none.insert_entry(VecDeque::new()),
        };
        let before = alike.get().len();
        let stale = |(then, _): &(u64, u64)| then.abs_diff(time) > MAX_DIFFERENCE;
        while alike.get().front().is_some_and(stale) {
            alike.get_mut().pop_front();
        }
        let is_duplicate = alike.get().front().is_some_and(|(_, other)| *other != file);
        if is_duplicate {
            alike.get_mut().pop_front();
        } else {
            alike.get_mut().push_back((time, file));
        }
        self.count = self.count + alike.get().len() - before;
        if alike.get().is_empty() {
            alike.remove();
        }
        is_duplicate
    }
}

/// Splits a line into its time, in milliseconds of the day, and the text after it:
/// `2026-01-02T03:04:05.1234567Z text`.
pub(super) fn split_time(line: &[u8]) -> Option<(u64, &[u8])> {
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
    fn a_line_in_two_files_is_a_duplicate_and_in_one_file_is_not() {
        let mut duplicates = Duplicates::default();
        let mut second =
            |file, time, text: &str| duplicates.is_duplicate(file, time, text.as_bytes());
        assert!(!second(1, 1000, "a"));
        assert!(!second(1, 1000, "a"));
        assert!(second(2, 1001, "a"));
        assert!(second(2, 1001, "a"));
        assert!(!second(2, 1001, "a"));
        // Also in the other order: a buffered line comes later.
        assert!(second(1, 1000, "a"));
        assert!(!second(1, 5000, "b"));
        assert!(!second(2, 5000 + MAX_DIFFERENCE + 1, "b"), "another step's");
        assert!(!second(1, 0, "a"), "the next day");
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut duplicates = Duplicates::default();
        for line in 0..100_000_u64 {
            assert!(!duplicates.is_duplicate(1, 0, &line.to_le_bytes()));
        }
        assert!(duplicates.count <= MAX_LINES && duplicates.alone.len() <= MAX_LINES);
        // Stale lines are removed.
        for line in 0..100_000_u64 {
            assert!(!duplicates.is_duplicate(1, line * 1000, b"the same"));
        }
        assert!(duplicates.count <= MAX_LINES);
    }

    #[test]
    fn only_a_time_is_split_off() {
        let line = b"2026-01-02T03:04:05.1234567Z text";
        let time = ((3 * 60 + 4) * 60 + 5) * 1000 + 123;
        assert_eq!(split_time(line), Some((time, &b" text"[..])));
        assert_eq!(split_time(b"2026-01-02T03:04:05.1234567Z"), Some((time, &b""[..])));
        for line in [&b""[..], b"text", b"2026-01-02 03:04:05Z: text", b"2026-01-02T03:04:05.12"] {
            assert_eq!(split_time(line), None);
        }
    }
}

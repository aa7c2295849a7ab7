//! Removes lines that a runner writes to two files.
//!
//! A runner writes each line of a step to the step's file and, right after, to the job's file, with
//! a separate timestamp. File names do not tell which file is the job's. So a line that another
//! file contains with nearly the same time is dropped, once.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

/// The largest difference of the times of duplicates, in milliseconds. Starting a step takes
/// longer, so equal lines of two steps are not duplicates.
const MAX_DIFFERENCE: u64 = 25;

/// The most lines that are remembered. A runner buffers at most 4 KiB of each file, so fewer are
/// needed.
const MAX_LINES: usize = 16_384;

/// The lines whose duplicate has not been seen yet, in two generations: the earlier one is
/// forgotten when the recent one is full. Nothing is forgotten by time, since one file may be read
/// far ahead of the other.
#[derive(Debug, Default)]
pub(super) struct Duplicates {
    recent: Lines,
    earlier: Lines,
}

/// Lines of one generation.
#[derive(Debug, Default)]
struct Lines {
    // By the hash of the text.
    alike: HashMap<u64, Vec<AlikeOfFile>>,
    count: usize,
}

/// The times of a file's lines with the same text.
#[derive(Debug)]
struct AlikeOfFile {
    file: u64,
    times: VecDeque<u64>,
}

impl Duplicates {
    /// Returns whether another file had the same line at this time. `text` is without its time.
    pub(super) fn is_duplicate(&mut self, file: u64, time: u64, text: &[u8]) -> bool {
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let hash = hasher.finish();
        if self.earlier.take_duplicate(hash, file, time)
            || self.recent.take_duplicate(hash, file, time)
        {
            return true;
        }
        if self.recent.count >= MAX_LINES / 2 {
            self.earlier = std::mem::take(&mut self.recent);
        }
        self.recent.add(hash, file, time);
        false
    }
}

impl Lines {
    fn add(&mut self, hash: u64, file: u64, time: u64) {
        let alike = self.alike.entry(hash).or_default();
        match alike.iter_mut().find(|one| one.file == file) {
            Some(of_file) => of_file.times.push_back(time),
            None => alike.push(AlikeOfFile { file, times: [time].into() }),
        }
        self.count += 1;
    }

    /// Removes the first line of another file at this time. Returns whether there was one.
    fn take_duplicate(&mut self, hash: u64, file: u64, time: u64) -> bool {
        let Some(alike) = self.alike.get_mut(&hash) else { return false };
        let found = alike.iter_mut().position(|one| one.file != file && one.take(time));
        let Some(index) = found else { return false };
        if alike[index].times.is_empty() {
            alike.swap_remove(index);
        }
        if alike.is_empty() {
            self.alike.remove(&hash);
        }
        self.count -= 1;
        true
    }
}

impl AlikeOfFile {
    /// Removes the first line at this time. Returns whether there was one. The times of a file
    /// ascend; if a job forges others, some duplicates are written.
    fn take(&mut self, time: u64) -> bool {
        let first = self.times.partition_point(|then| then + MAX_DIFFERENCE < time);
        let found = self.times.get(first).is_some_and(|then| then.abs_diff(time) <= MAX_DIFFERENCE);
        if found {
            self.times.remove(first);
        }
        found
    }
}

/// Splits a line into its time, in milliseconds, and the text after it:
/// `2026-01-02T03:04:05.1234567Z text`. The time only serves to compare close times: each month
/// counts 31 days.
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
    let days = (number(0, 4) * 12 + number(5, 7)) * 31 + number(8, 10);
    let seconds = ((days * 24 + number(11, 13)) * 60 + number(14, 16)) * 60 + number(17, 19);
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
        assert!(!second(1, 0, "a"), "much earlier");
    }

    /// Returns the texts that are not dropped from two files with the same lines. `lines` are the
    /// time, the delay of the second file, and the text; `is_second` is which file is read next.
    fn told(lines: &[(u64, u64, u64)], mut is_second: impl FnMut() -> bool) -> Vec<u64> {
        let (mut duplicates, mut told, mut next) = (Duplicates::default(), Vec::new(), [0, 0]);
        while next != [lines.len(); 2] {
            let second = next[1] < lines.len() && (next[0] == lines.len() || is_second());
            let (time, delay, text) = lines[next[usize::from(second)]];
            next[usize::from(second)] += 1;
            let time = time + if second { delay } else { 0 };
            if !duplicates.is_duplicate(second.into(), time, &text.to_le_bytes()) {
                told.push(text);
            }
        }
        told
    }

    #[test]
    fn equal_lines_are_told_once_however_far_one_file_is_read_ahead() {
        let lines: Vec<_> = (0..120).map(|line| (line * 100, 1, 0)).collect();
        assert_eq!(told(&lines, || false).len(), 120, "first the whole first file");
        assert_eq!(told(&lines, || true).len(), 120, "first the whole second file");
        let mut turn = 0;
        let by_tens = || {
            turn += 1;
            turn / 10 % 2 == 1
        };
        assert_eq!(told(&lines, by_tens).len(), 120);
    }

    #[test]
    fn any_interleaving_of_two_files_tells_each_line_once() {
        for seed in 1..500_u64 {
            // An xorshift generator: a failure names the seed that repeats it.
            let mut state = seed;
            let mut random = |below: u64| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 20) % below
            };
            let (max_gap, texts, run) = (1 + random(200), 1 + random(4), 1 + random(60));
            let mut now = 0;
            let mut lines = Vec::new();
            for _ in 0..random(150) {
                let delay = random(MAX_DIFFERENCE + 1);
                lines.push((now, delay, random(texts)));
                now += delay + random(max_gap);
            }
            let mut second = false;
            let mut found = told(&lines, || {
                second ^= random(run) == 0;
                second
            });
            let mut expected: Vec<_> = lines.iter().map(|(_, _, text)| *text).collect();
            found.sort_unstable();
            expected.sort_unstable();
            assert_eq!(found, expected, "seed {seed}");
        }
    }

    #[test]
    fn the_memory_is_bounded_and_the_latest_lines_are_remembered() {
        let mut duplicates = Duplicates::default();
        let size = |duplicates: &Duplicates| {
            let generations = [&duplicates.recent, &duplicates.earlier];
            let count = |lines: &Lines| {
                lines.alike.values().flatten().map(|one| one.times.len()).sum::<usize>()
            };
            assert!(generations.iter().all(|lines| count(lines) == lines.count));
            generations.map(|lines| lines.count).iter().sum::<usize>()
        };
        for line in 0..100_000_u64 {
            assert!(!duplicates.is_duplicate(1, 0, &line.to_le_bytes()));
        }
        assert!(size(&duplicates) <= MAX_LINES);
        let latest = 100_000 - MAX_LINES as u64 / 2;
        for line in latest..100_000 {
            assert!(duplicates.is_duplicate(2, 0, &line.to_le_bytes()));
        }
        for line in 0..100_000_u64 {
            assert!(!duplicates.is_duplicate(1, line * 1000, b"the same"));
        }
        assert!(size(&duplicates) <= MAX_LINES);
    }

    #[test]
    fn times_around_midnight_are_close() {
        let (before, _) = split_time(b"2026-01-31T23:59:59.9990000Z text").unwrap();
        let (after, _) = split_time(b"2026-02-01T00:00:00.0010000Z text").unwrap();
        assert_eq!(after - before, 2);
    }

    #[test]
    fn only_a_time_is_split_off() {
        let line = b"2026-01-02T03:04:05.1234567Z text";
        let days = (2026 * 12 + 1) * 31 + 2;
        let time = (((days * 24 + 3) * 60 + 4) * 60 + 5) * 1000 + 123;
        assert_eq!(split_time(line), Some((time, &b" text"[..])));
        assert_eq!(split_time(b"2026-01-02T03:04:05.1234567Z"), Some((time, &b""[..])));
        for line in [&b""[..], b"text", b"2026-01-02 03:04:05Z: text", b"2026-01-02T03:04:05.12"] {
            assert_eq!(split_time(line), None);
        }
    }
}

//! Notes about the entries that were skipped.

use crate::QuotedPath;

/// The most notes that are stored; the others are counted.
const MAX_LINES: usize = 10;

/// The skipped entries and the reasons.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Notes {
    lines: Vec<String>,
    more: u64,
}

impl Notes {
    /// Adds a note that `name` was skipped.
    pub(crate) fn add(&mut self, name: &[u8], why: &str) {
        if self.lines.len() < MAX_LINES {
            self.lines.push(format!("{} {why}", QuotedPath::new(name)));
        } else {
            self.more += 1;
        }
    }

    /// Adds the notes of another tree.
    pub fn append(&mut self, other: Self) {
        for line in other.lines {
            if self.lines.len() < MAX_LINES {
                self.lines.push(line);
            } else {
                self.more += 1;
            }
        }
        self.more += other.more;
    }

    /// Returns one line per note.
    pub fn lines(&self) -> Vec<String> {
        let more = (self.more > 0).then(|| format!("{} more", self.more));
        self.lines.iter().cloned().chain(more).collect()
    }
}

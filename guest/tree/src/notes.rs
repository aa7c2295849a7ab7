//! What was left out of a tree without failing it.

use crate::Shown;

/// Notes that are kept; the others are counted.
const MOST: usize = 10;

/// What was left out, and why.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Notes {
    lines: Vec<String>,
    more: u64,
}

impl Notes {
    /// Notes that `name` was left out.
    pub(crate) fn add(&mut self, name: &[u8], why: &str) {
        if self.lines.len() < MOST {
            self.lines.push(format!("{} {why}", Shown::of(name)));
        } else {
            self.more += 1;
        }
    }

    /// Adds those of another tree.
    pub fn append(&mut self, other: Self) {
        for line in other.lines {
            if self.lines.len() < MOST {
                self.lines.push(line);
            } else {
                self.more += 1;
            }
        }
        self.more += other.more;
    }

    /// What there is to say, one line for each.
    pub fn lines(&self) -> Vec<String> {
        let more = (self.more > 0).then(|| format!("{} more", self.more));
        self.lines.iter().cloned().chain(more).collect()
    }
}

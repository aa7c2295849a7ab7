//! What goes wrong with a tree.

use std::fmt;
use std::io;

/// A tree could not be packed or unpacked.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// Not one byte came: whoever packs had nothing to send, and says why elsewhere.
    #[error("no archive came")]
    Nothing,
    /// The archive has no end: whoever packed it failed, or was ended.
    #[error("the archive ends in the middle")]
    Truncated,
    /// The archive is none that a packer writes.
    #[error("the archive is damaged: {0}")]
    Damaged(&'static str),
    /// An entry that is not taken.
    #[error("{name} {why}")]
    Refused {
        /// The entry.
        name: Shown,
        /// What is wrong with it.
        why: &'static str,
    },
    /// More than a bound allows.
    #[error("the tree has more than {most} {what}")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// The bound.
        most: u64,
    },
    /// The disk would be full.
    #[error("the disk has {free} {what} left, of which {kept} are kept free")]
    NoRoom {
        /// What is short.
        what: &'static str,
        /// How much there is.
        free: u64,
        /// How much is not to be used.
        kept: u64,
    },
    /// The system refused something.
    #[error("can't {step} {name}")]
    Failed {
        /// What.
        step: &'static str,
        /// On what.
        name: Shown,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The archive can't be read on.
    #[error("can't read the archive")]
    Input(#[source] io::Error),
    /// The archive can't be written on.
    #[error("can't write the archive")]
    Output(#[source] io::Error),
}

impl TreeError {
    pub(crate) fn refused(name: &[u8], why: &'static str) -> Self {
        Self::Refused { name: Shown::of(name), why }
    }

    /// For an operation of the system that failed.
    pub(crate) fn failed<E: Into<io::Error>>(
        step: &'static str,
        name: &[u8],
    ) -> impl FnOnce(E) -> Self {
        move |error| Self::Failed { step, name: Shown::of(name), error: error.into() }
    }

    /// Whether a packer failed only because the other side took no more of its archive.
    pub fn is_refusal_of_the_other_side(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// A path of any bytes, as it may be shown: quoted, cut, and without what moves a cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown(String);

/// Characters of a path that are shown.
const SHOWN: usize = 200;

impl Shown {
    /// Shows this path; the root of a tree is `.`.
    pub fn of(path: &[u8]) -> Self {
        let path = if path.is_empty() { &b"."[..] } else { path };
        let text: String = String::from_utf8_lossy(path).chars().take(SHOWN).collect();
        let more =
            if text.len() < path.len() && text.chars().count() == SHOWN { "…" } else { "" };
        Self(format!("\"{}{more}\"", text.escape_debug()))
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

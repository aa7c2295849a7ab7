//! Errors of packing and unpacking.

use std::fmt;
use std::io;

/// An error of packing or unpacking a tree.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The input is empty: the packer had nothing to send, and reports the reason elsewhere.
    #[error("received no archive")]
    Missing,
    /// The archive has no end: the packer failed or was killed.
    #[error("the archive is truncated")]
    Truncated,
    /// The archive does not have the format that the packer writes.
    #[error("the archive is damaged: {0}")]
    Damaged(&'static str),
    /// An entry is rejected.
    #[error("{name} {reason}")]
    Rejected {
        /// The entry.
        name: QuotedPath,
        /// The reason.
        reason: &'static str,
    },
    /// A limit is exceeded.
    #[error("the tree has more than {limit} {what}")]
    LimitExceeded {
        /// The limited resource.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The disk has too little free space.
    #[error("not enough space on the disk: {free} {what} free, of which {reserved} are reserved")]
    NoSpace {
        /// The exhausted resource.
        what: &'static str,
        /// The free amount.
        free: u64,
        /// The reserved amount.
        reserved: u64,
    },
    /// A system call failed.
    #[error("can't {step} {name}")]
    Failed {
        /// The step that failed.
        step: &'static str,
        /// Its path.
        name: QuotedPath,
        /// The error.
        #[source]
        error: io::Error,
    },
    /// Reading the archive failed.
    #[error("can't read the archive")]
    Input(#[source] io::Error),
    /// Writing the archive failed.
    #[error("can't write the archive")]
    Output(#[source] io::Error),
}

impl TreeError {
    pub(crate) fn rejected(name: &[u8], reason: &'static str) -> Self {
        Self::Rejected { name: QuotedPath::new(name), reason }
    }

    /// Returns a function that wraps the error of a system call.
    pub(crate) fn failed<E: Into<io::Error>>(
        step: &'static str,
        name: &[u8],
    ) -> impl FnOnce(E) -> Self {
        move |error| Self::Failed { step, name: QuotedPath::new(name), error: error.into() }
    }

    /// Returns whether a packer failed only because the reader closed the archive's stream.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// A path of any bytes, safe for display: quoted, truncated, and with control characters escaped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotedPath(String);

/// The most characters of a displayed path.
const MAX_CHARS: usize = 200;

impl QuotedPath {
    /// Quotes `path`; the root of a tree is `.`.
    pub fn new(path: &[u8]) -> Self {
        let path = if path.is_empty() { &b"."[..] } else { path };
        let text: String = String::from_utf8_lossy(path).chars().take(MAX_CHARS).collect();
        let more =
            if text.len() < path.len() && text.chars().count() == MAX_CHARS { "…" } else { "" };
        Self(format!("\"{}{more}\"", text.escape_debug()))
    }
}

impl fmt::Display for QuotedPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

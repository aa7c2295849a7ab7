//! One question to the host and its answer, as `mayfly doctor` shows them.

use std::fmt::Display;

use serde::Serialize;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should be.
    Good,
    /// Mayfly works, but worse than it could.
    Warning,
    /// Mayfly can't work.
    Bad,
}

/// A check that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at, e.g. `/dev/net/tun`.
    pub subject: String,
    /// How it came out.
    pub outcome: Outcome,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

#[allow(clippy::needless_pass_by_value, reason = "texts and errors alike, by the way")]
impl Check {
    /// As it should be.
    pub fn good(subject: &str, found: impl Display) -> Self {
        let found = found.to_string();
        Self { subject: subject.to_owned(), outcome: Outcome::Good, found, remedy: None }
    }

    /// Worse than it could be.
    pub fn warning(subject: &str, found: impl Display, remedy: &str) -> Self {
        let remedy = Some(remedy.to_owned());
        Self { outcome: Outcome::Warning, remedy, ..Self::good(subject, found) }
    }

    /// In the way of everything.
    pub fn bad(subject: &str, found: impl Display, remedy: &str) -> Self {
        let remedy = Some(remedy.to_owned());
        Self { outcome: Outcome::Bad, remedy, ..Self::good(subject, found) }
    }
}

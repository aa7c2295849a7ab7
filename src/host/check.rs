//! Results of host checks, for `mayfly doctor`.

use std::fmt::Display;

use serde::Serialize;

/// The outcome of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckOutcome {
    /// Passed.
    Good,
    /// Mayfly works with limitations.
    Warning,
    /// Mayfly can't work.
    Bad,
}

/// The result of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostCheck {
    /// The checked object, e.g. `/dev/net/tun`.
    pub subject: String,
    /// The outcome.
    pub outcome: CheckOutcome,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

#[allow(clippy::needless_pass_by_value, reason = "takes texts and errors by value")]
impl HostCheck {
    /// Creates the result of a passed check.
    pub fn good(subject: &str, found: impl Display) -> Self {
        let found = found.to_string();
        Self { subject: subject.to_owned(), outcome: CheckOutcome::Good, found, remedy: None }
    }

    /// Creates a warning.
    pub fn warning(subject: &str, found: impl Display, remedy: &str) -> Self {
        let remedy = Some(remedy.to_owned());
        Self { outcome: CheckOutcome::Warning, remedy, ..Self::good(subject, found) }
    }

    /// Creates the result of a failed check.
    pub fn bad(subject: &str, found: impl Display, remedy: &str) -> Self {
        let remedy = Some(remedy.to_owned());
        Self { outcome: CheckOutcome::Bad, remedy, ..Self::good(subject, found) }
    }
}

//! Which jobs a pool's runners would be given: every label that a job asks for, whatever the case,
//! and whatever the order.

use std::collections::BTreeSet;

use crate::failure::{Code, Failure};

/// Labels of GitHub's own runners that do not follow a pattern.
const RESERVED: [&str; 3] = ["ubuntu-slim", "windows-11-arm", "github-hosted"];
/// What the rest of the labels of GitHub's own runners start with; `-latest` or a version follows.
const RESERVED_FAMILIES: [&str; 3] = ["ubuntu-", "windows-", "macos-"];
/// The most labels that one runner may have (GitHub's API description).
pub const MAXIMUM: usize = 100;

/// Whether a job's labels are served by a pool's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// The pool has all that the job asks for.
    Served,
    /// The job asks for a label that the pool has not.
    Not,
    /// The job names no label at all (it may name a runner group, which is not told): any runner
    /// that its group admits would be given it, so only a person can say which pool is meant.
    Unlabelled,
}

/// Compares a job's labels with a pool's.
pub fn compare(job: &[String], pool: &[String]) -> Match {
    if job.is_empty() {
        return Match::Unlabelled;
    }
    let pool: BTreeSet<String> = pool.iter().map(|label| label.to_lowercase()).collect();
    if job.iter().all(|label| pool.contains(&label.to_lowercase())) {
        Match::Served
    } else {
        Match::Not
    }
}

/// Why a label can't be a pool's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// GitHub's own runners have it; a pool that has it too would take or lose jobs by chance.
    #[error("label {0:?} belongs to GitHub's own runners")]
    Reserved(String),
    /// Empty, over 256 characters, or with characters that no `runs-on` can name.
    #[error("label {0:?} is empty, too long, or has a comma or control characters")]
    Malformed(String),
    /// No label, or more than [`MAXIMUM`].
    #[error("a runner has 1 to {MAXIMUM} labels, not {0}")]
    Count(usize),
}

impl Failure for LabelError {
    fn code(&self) -> Code {
        Code::BadConfiguration
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Reserved(_) => Some(
                "Take a label of your own, e.g. mayfly, and name it in the workflow's runs-on."
                    .to_owned(),
            ),
            Self::Malformed(_) | Self::Count(_) => None,
        }
    }
}

/// Checks the labels that a pool is to have.
pub fn check(labels: &[String]) -> Result<(), LabelError> {
    if labels.is_empty() || labels.len() > MAXIMUM {
        return Err(LabelError::Count(labels.len()));
    }
    for label in labels {
        let odd = |character: char| character.is_control() || character == ',';
        if label.trim().is_empty() || label.len() > 256 || label.contains(odd) {
            return Err(LabelError::Malformed(label.clone()));
        }
        if is_reserved(label) {
            return Err(LabelError::Reserved(label.clone()));
        }
    }
    Ok(())
}

/// Whether a label is one of GitHub's own runners, e.g. `ubuntu-latest`, `macos-14-xlarge`.
pub fn is_reserved(label: &str) -> bool {
    let label = label.to_lowercase();
    RESERVED.contains(&label.as_str())
        || RESERVED_FAMILIES.iter().any(|family| {
            label.strip_prefix(family).is_some_and(|rest| {
                rest == "latest"
                    || rest.starts_with("latest-")
                    || rest.starts_with(|first: char| first.is_ascii_digit())
            })
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn strings(labels: &[&str]) -> Vec<String> {
        labels.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_job_is_served_by_a_pool_with_all_its_labels() {
        let pool = strings(&["self-hosted", "Linux", "x64", "mayfly"]);
        for (job, expected) in [
            (&["MAYFLY"][..], Match::Served),
            (&["x64", "linux", "x64"], Match::Served),
            (&["linux", "gpu"], Match::Not),
            (&[], Match::Unlabelled),
        ] {
            assert_eq!(compare(&strings(job), &pool), expected, "{job:?}");
        }
    }

    #[test]
    fn labels_of_githubs_own_runners_are_refused() {
        for label in ["ubuntu-latest", "Ubuntu-24.04", "ubuntu-22.04-arm", "macos-14-xlarge"] {
            assert_eq!(check(&strings(&[label])), Err(LabelError::Reserved(label.to_owned())));
        }
        assert_eq!(check(&strings(&["ubuntu-kvm", "self-hosted", "windows-builds"])), Ok(()));
        assert_eq!(check(&[]), Err(LabelError::Count(0)));
        assert!(matches!(check(&strings(&["a,b"])), Err(LabelError::Malformed(_))));
    }

    proptest! {
        #[test]
        fn a_pool_that_gains_a_label_loses_no_job(
            job in proptest::collection::vec("[a-dA-D]{1,2}", 1..4),
            pool in proptest::collection::vec("[a-dA-D]{1,2}", 0..6),
            more in "[a-dA-D]{1,2}",
        ) {
            let before = compare(&job, &pool);
            let after = compare(&job, &[pool, vec![more]].concat());
            prop_assert!(before != Match::Served || after == Match::Served);
            prop_assert_eq!(compare(&job, &job), Match::Served);
        }
    }
}

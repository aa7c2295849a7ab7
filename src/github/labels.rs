//! Label matching: a pool's runners take a job if they have all its labels, in any case and order.

use std::collections::BTreeSet;

use mayfly_failure::{Code, Failure};

/// Labels of GitHub's own runners that don't follow a pattern.
const RESERVED: [&str; 3] = ["ubuntu-slim", "windows-11-arm", "github-hosted"];
/// Prefixes of the other labels of GitHub's own runners; `latest` or a version follows.
const RESERVED_FAMILIES: [&str; 3] = ["ubuntu-", "windows-", "macos-"];
/// The maximum number of labels of a runner (GitHub's API description).
pub const MAX_LABELS: usize = 100;

/// The result of matching a job's labels with a pool's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelMatch {
    /// The pool has all labels that the job requests.
    Served,
    /// The job requests a label that the pool does not have.
    NotServed,
    /// The job has no labels (it may name a runner group, which GitHub does not report): any runner
    /// of its group could get it, so the pool is unknown.
    Unlabeled,
}

/// Matches a job's labels with a pool's.
pub fn compare(job: &[String], pool: &[String]) -> LabelMatch {
    if job.is_empty() {
        return LabelMatch::Unlabeled;
    }
    let pool: BTreeSet<String> = pool.iter().map(|label| label.to_lowercase()).collect();
    if job.iter().all(|label| pool.contains(&label.to_lowercase())) {
        LabelMatch::Served
    } else {
        LabelMatch::NotServed
    }
}

/// An invalid label of a pool.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// The label belongs to GitHub's own runners; a pool with it would gain or lose jobs by chance.
    #[error("label {0:?} belongs to GitHub's own runners")]
    Reserved(String),
    /// Empty, over 256 bytes, or with characters that `runs-on` does not allow.
    #[error("label {0:?} is empty, too long, or has a comma or control characters")]
    Malformed(String),
    /// No labels, or more than [`MAX_LABELS`].
    #[error("a runner must have 1 to {MAX_LABELS} labels, not {0}")]
    Count(usize),
}

impl Failure for LabelError {
    fn code(&self) -> Code {
        Code::BadConfiguration
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Reserved(_) => Some(
                "Use your own label, e.g. mayfly, in the pool and in the workflow's runs-on."
                    .to_owned(),
            ),
            Self::Malformed(_) | Self::Count(_) => None,
        }
    }
}

/// Checks a pool's labels.
pub fn check(labels: &[String]) -> Result<(), LabelError> {
    if labels.is_empty() || labels.len() > MAX_LABELS {
        return Err(LabelError::Count(labels.len()));
    }
    for label in labels {
        let is_invalid = |character: char| character.is_control() || character == ',';
        if label.trim().is_empty() || label.len() > 256 || label.contains(is_invalid) {
            return Err(LabelError::Malformed(label.clone()));
        }
        if is_reserved(label) {
            return Err(LabelError::Reserved(label.clone()));
        }
    }
    Ok(())
}

/// Whether a label belongs to GitHub's own runners, e.g. `ubuntu-latest`, `macos-14-xlarge`.
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
            (&["MAYFLY"][..], LabelMatch::Served),
            (&["x64", "linux", "x64"], LabelMatch::Served),
            (&["linux", "gpu"], LabelMatch::NotServed),
            (&[], LabelMatch::Unlabeled),
        ] {
            assert_eq!(compare(&strings(job), &pool), expected, "{job:?}");
        }
    }

    #[test]
    fn labels_of_githubs_own_runners_are_rejected() {
        for label in ["ubuntu-latest", "Ubuntu-24.04", "ubuntu-22.04-arm", "macos-14-xlarge"] {
            assert_eq!(check(&strings(&[label])), Err(LabelError::Reserved(label.to_owned())));
        }
        assert_eq!(check(&strings(&["ubuntu-kvm", "self-hosted", "windows-builds"])), Ok(()));
        assert_eq!(check(&[]), Err(LabelError::Count(0)));
        assert!(matches!(check(&strings(&["a,b"])), Err(LabelError::Malformed(_))));
    }

    proptest! {
        #[test]
        fn an_added_label_loses_no_job(
            job in proptest::collection::vec("[a-dA-D]{1,2}", 1..4),
            pool in proptest::collection::vec("[a-dA-D]{1,2}", 0..6),
            more in "[a-dA-D]{1,2}",
        ) {
            let before = compare(&job, &pool);
            let after = compare(&job, &[pool, vec![more]].concat());
            prop_assert!(before != LabelMatch::Served || after == LabelMatch::Served);
            prop_assert_eq!(compare(&job, &job), LabelMatch::Served);
        }
    }
}

//! Label matching: a pool's runners take a job if they have all its labels, in any case and order.

use std::collections::BTreeSet;

/// The result of matching a job's labels with a pool's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LabelMatch {
    /// The pool has all labels that the job requests.
    Served,
    /// The job requests a label that the pool does not have.
    NotServed,
    /// The job has no labels (it may name a runner group, which GitHub does not report): any runner
    /// of its group could get it, so the pool is unknown.
    Unlabeled,
}

/// Matches a job's labels with a pool's.
pub(super) fn compare(job: &[String], pool: &[String]) -> LabelMatch {
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

//! A workflow job, as in both the REST API and the `workflow_job` webhook.

use std::time::SystemTime;

use serde::{Deserialize, Deserializer};

/// The status of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkflowJobStatus {
    /// The job waits for a runner: the only status that needs one.
    Queued,
    /// A runner has the job.
    InProgress,
    /// The job ended, with `conclusion`.
    Completed,
    /// The job waits for a person or a rule (deployment gate) and needs no runner yet.
    Waiting,
    /// The job was requested and waits for something other than a runner.
    Requested,
    /// The job waits for its concurrency group.
    Pending,
    /// A status that this version does not know; needs no runner.
    Other(String),
}

/// A workflow job.
///
/// Parsed leniently: missing, null, 0 or malformed values are `None` or empty; only the two IDs
/// are required.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkflowJob {
    /// The job's ID; a re-run has a new one.
    pub id: u64,
    /// The ID of its workflow run.
    pub run_id: u64,
    /// The attempt of that run, from 1.
    pub attempt: u32,
    /// The repository's full name, `owner/name`; empty if unknown.
    pub repository: String,
    /// The job's name.
    pub name: String,
    /// The workflow's name.
    pub workflow: Option<String>,
    /// The branch.
    pub branch: Option<String>,
    /// The labels of `runs-on`; may be empty (a job that names only a group).
    pub labels: Vec<String>,
    /// The job's status.
    pub status: WorkflowJobStatus,
    /// The conclusion: `success`, `failure`, `cancelled`, …
    pub conclusion: Option<String>,
    /// The ID of the runner that has or had it.
    pub runner_id: Option<u64>,
    /// That runner's name.
    pub runner_name: Option<String>,
    /// The name of that runner's group.
    pub runner_group: Option<String>,
    /// When it was created.
    pub created_at: Option<SystemTime>,
    /// When a runner took it (for a queued job: when it was queued).
    pub started_at: Option<SystemTime>,
    /// When it ended.
    pub completed_at: Option<SystemTime>,
}

/// The maximum number of labels to read: one more than a runner can have, so that no runner has
/// all labels of a job whose labels were cut off.
const MAX_LABELS: usize = 101;
/// The maximum number of characters to read of a text: labels have at most 256, names fewer.
const MAX_TEXT: usize = 1024;

impl From<&str> for WorkflowJobStatus {
    fn from(text: &str) -> Self {
        match text {
            "queued" => Self::Queued,
            "in_progress" => Self::InProgress,
            "completed" => Self::Completed,
            "waiting" => Self::Waiting,
            "requested" => Self::Requested,
            "pending" => Self::Pending,
            other => Self::Other(other.chars().take(64).collect()),
        }
    }
}

/// A job as in GitHub's JSON.
#[derive(Debug, Deserialize)]
pub(super) struct RawJob {
    id: u64,
    run_id: u64,
    #[serde(default, deserialize_with = "lenient")]
    run_attempt: Option<u32>,
    #[serde(default, deserialize_with = "lenient")]
    name: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    workflow_name: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    head_branch: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    labels: Option<Vec<String>>,
    #[serde(default, deserialize_with = "lenient")]
    status: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    conclusion: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    runner_id: Option<u64>,
    #[serde(default, deserialize_with = "lenient")]
    runner_name: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    runner_group_name: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    created_at: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    started_at: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    completed_at: Option<String>,
}

impl RawJob {
    pub(super) fn into_job(self, repository: &str) -> WorkflowJob {
        WorkflowJob {
            id: self.id,
            run_id: self.run_id,
            attempt: self.run_attempt.unwrap_or(1).max(1),
            repository: truncate(repository.to_owned()),
            name: self.name.map(truncate).unwrap_or_default(),
            workflow: self.workflow_name.map(truncate),
            branch: self.head_branch.map(truncate),
            labels: limit_labels(self.labels.unwrap_or_default()),
            status: self.status.as_deref().unwrap_or("").into(),
            conclusion: self.conclusion.map(truncate),
            runner_id: self.runner_id.filter(|id| *id != 0),
            runner_name: self.runner_name.filter(|name| !name.is_empty()).map(truncate),
            runner_group: self.runner_group_name.filter(|name| !name.is_empty()).map(truncate),
            created_at: self.created_at.as_deref().and_then(parse_time),
            started_at: self.started_at.as_deref().and_then(parse_time),
            completed_at: self.completed_at.as_deref().and_then(parse_time),
        }
    }
}

/// Truncates an untrusted text.
fn truncate(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(MAX_TEXT) {
        text.truncate(end);
    }
    text
}

/// Truncates and deduplicates untrusted labels, and limits their number.
pub(super) fn limit_labels(labels: Vec<String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for label in labels.into_iter().map(truncate) {
        if kept.len() == MAX_LABELS {
            break;
        }
        if !kept.contains(&label) {
            kept.push(label);
        }
    }
    kept
}

/// Deserializes a value, or `None` for null and for a value of another type.
pub(super) fn lenient<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: serde::de::DeserializeOwned,
{
    let value = serde_json::Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).ok())
}

/// Parses a time as GitHub writes it, RFC 3339 in UTC.
pub(super) fn parse_time(text: &str) -> Option<SystemTime> {
    humantime::parse_rfc3339(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(json: serde_json::Value) -> WorkflowJob {
        serde_json::from_value::<RawJob>(json).unwrap().into_job("octo/hello")
    }

    #[test]
    fn a_job_needs_only_its_ids() {
        let job = job(serde_json::json!({"id": 1, "run_id": 2}));
        assert_eq!((job.id, job.run_id, job.attempt), (1, 2, 1));
        assert_eq!((job.labels.len(), job.status), (0, WorkflowJobStatus::Other(String::new())));
    }

    #[test]
    fn a_job_is_bounded_and_no_runner_matches_cut_labels() {
        let many: Vec<_> = (0..100_000).map(|number| format!("l{}", number % 50_000)).collect();
        let long = "ü".repeat(1 << 20);
        let big = job(serde_json::json!({
            "id": 1, "run_id": 2, "labels": many, "name": long, "workflow_name": long,
            "head_branch": long, "conclusion": long, "runner_name": long,
        }));
        // A runner has at most 100.
        assert_eq!((big.labels.len(), &*big.labels[100]), (101, "l100"));
        assert_eq!(big.name.chars().count(), 1024);
        assert_eq!(big.runner_name.map(|name| name.chars().count()), Some(1024));
        let same = vec!["x"; 100_000];
        let same = job(serde_json::json!({"id": 1, "run_id": 2, "labels": same}));
        assert_eq!(same.labels, ["x"], "each once");
        let label = job(serde_json::json!({"id": 1, "run_id": 2, "labels": [long]}));
        assert!(label.labels[0].chars().count() > 256, "longer than any runner's label");
    }

    #[test]
    fn nulls_zeros_and_unknown_values_are_none() {
        let job = job(serde_json::json!({
            "id": 1, "run_id": 2, "run_attempt": null, "labels": null, "status": "paused",
            "runner_id": 0, "runner_name": "", "runner_group_name": 7, "created_at": "yesterday",
            "conclusion": null, "new_field": {"a": []},
        }));
        assert_eq!(job.status, WorkflowJobStatus::Other("paused".into()));
        assert_eq!((job.runner_id, job.runner_name, job.runner_group), (None, None, None));
        assert_eq!((job.created_at, job.conclusion, job.attempt), (None, None, 1));
    }
}

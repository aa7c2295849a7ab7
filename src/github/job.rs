//! A workflow job, as both the REST API and the `workflow_job` webhook describe it.

use std::time::SystemTime;

use serde::{Deserialize, Deserializer};

/// How far a job is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// It waits for a runner: the only status that needs one.
    Queued,
    /// A runner has it.
    InProgress,
    /// It is over; `conclusion` says how.
    Completed,
    /// It waits for a person or a rule (deployment gate): needs no runner yet.
    Waiting,
    /// It has been asked for, and waits for something else than a runner.
    Requested,
    /// It waits for its concurrency group.
    Pending,
    /// Something that this version does not know: needs no runner.
    Other(String),
}

/// A workflow job.
///
/// Read leniently: what is missing, null, 0 or malformed is `None` or empty; only the two ids
/// must be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// The job's number; a re-run has a new one.
    pub id: u64,
    /// The workflow run that it belongs to.
    pub run_id: u64,
    /// Which attempt of that run, from 1.
    pub attempt: u32,
    /// The repository's full name, `owner/name`; empty if not told.
    pub repository: String,
    /// The job's name.
    pub name: String,
    /// The workflow's name.
    pub workflow: Option<String>,
    /// The branch.
    pub branch: Option<String>,
    /// What `runs-on` asks for; may be empty (a job that only names a group).
    pub labels: Vec<String>,
    /// How far it is.
    pub status: Status,
    /// How it ended: `success`, `failure`, `cancelled`, …
    pub conclusion: Option<String>,
    /// The number of the runner that has or had it.
    pub runner_id: Option<u64>,
    /// That runner's name.
    pub runner_name: Option<String>,
    /// The name of that runner's group.
    pub runner_group: Option<String>,
    /// When it came to be.
    pub created_at: Option<SystemTime>,
    /// When a runner took it (for a queued one: when it was queued).
    pub started_at: Option<SystemTime>,
    /// When it ended.
    pub completed_at: Option<SystemTime>,
}

/// The most labels of a job that are read: one more than a runner can have, so that no runner has all
/// labels of a job of which some were left out.
const MAX_LABELS: usize = 101;
/// The most characters of a text that are read: a label is no longer than 256, names are shorter.
const MAX_TEXT: usize = 1024;

impl From<&str> for Status {
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

/// A job as in JSON.
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
    pub(super) fn of(self, repository: &str) -> Job {
        Job {
            id: self.id,
            run_id: self.run_id,
            attempt: self.run_attempt.unwrap_or(1).max(1),
            repository: short(repository.to_owned()),
            name: self.name.map(short).unwrap_or_default(),
            workflow: self.workflow_name.map(short),
            branch: self.head_branch.map(short),
            labels: few(self.labels.unwrap_or_default()),
            status: self.status.as_deref().unwrap_or("").into(),
            conclusion: self.conclusion.map(short),
            runner_id: self.runner_id.filter(|id| *id != 0),
            runner_name: self.runner_name.filter(|name| !name.is_empty()).map(short),
            runner_group: self.runner_group_name.filter(|name| !name.is_empty()).map(short),
            created_at: self.created_at.as_deref().and_then(time),
            started_at: self.started_at.as_deref().and_then(time),
            completed_at: self.completed_at.as_deref().and_then(time),
        }
    }
}

/// A text that others wrote, no longer than is read.
fn short(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(MAX_TEXT) {
        text.truncate(end);
    }
    text
}

/// Labels that others wrote, each once, no more than are read.
pub(super) fn few(labels: Vec<String>) -> Vec<String> {
    let mut few: Vec<String> = Vec::new();
    for label in labels.into_iter().map(short) {
        if few.len() == MAX_LABELS {
            break;
        }
        if !few.contains(&label) {
            few.push(label);
        }
    }
    few
}

/// A value, or `None` for null and for what is of another kind.
pub(super) fn lenient<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: serde::de::DeserializeOwned,
{
    let value = serde_json::Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).ok())
}

/// A time as GitHub writes it, RFC 3339 in UTC.
pub(super) fn time(text: &str) -> Option<SystemTime> {
    humantime::parse_rfc3339(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(json: serde_json::Value) -> Job {
        serde_json::from_value::<RawJob>(json).unwrap().of("octo/hello")
    }

    #[test]
    fn a_job_with_nothing_but_its_ids_is_a_job() {
        let job = job(serde_json::json!({"id": 1, "run_id": 2}));
        assert_eq!((job.id, job.run_id, job.attempt), (1, 2, 1));
        assert_eq!((job.labels.len(), job.status), (0, Status::Other(String::new())));
    }

    #[test]
    fn what_is_read_of_a_job_has_a_bound_and_no_runner_has_what_was_cut() {
        let many: Vec<_> = (0..100_000).map(|number| format!("l{}", number % 50_000)).collect();
        let long = "ü".repeat(1 << 20);
        let big = job(serde_json::json!({
            "id": 1, "run_id": 2, "labels": many, "name": long, "workflow_name": long,
            "head_branch": long, "conclusion": long, "runner_name": long,
        }));
        // A runner has 100 at most.
        assert_eq!((big.labels.len(), &*big.labels[100]), (101, "l100"));
        assert_eq!(big.name.chars().count(), 1024);
        assert_eq!(big.runner_name.map(|name| name.chars().count()), Some(1024));
        let same = vec!["x"; 100_000];
        let same = job(serde_json::json!({"id": 1, "run_id": 2, "labels": same}));
        assert_eq!(same.labels, ["x"], "each once");
        let label = job(serde_json::json!({"id": 1, "run_id": 2, "labels": [long]}));
        assert!(label.labels[0].chars().count() > 256, "no label of a runner is as long");
    }

    #[test]
    fn nulls_zeros_and_strangers_are_nothing() {
        let job = job(serde_json::json!({
            "id": 1, "run_id": 2, "run_attempt": null, "labels": null, "status": "paused",
            "runner_id": 0, "runner_name": "", "runner_group_name": 7, "created_at": "yesterday",
            "conclusion": null, "new_field": {"a": []},
        }));
        assert_eq!(job.status, Status::Other("paused".into()));
        assert_eq!((job.runner_id, job.runner_name, job.runner_group), (None, None, None));
        assert_eq!((job.created_at, job.conclusion, job.attempt), (None, None, 1));
    }
}

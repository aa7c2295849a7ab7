//! The types of the scale set service, parsed leniently.

use std::fmt;
use std::time::SystemTime;

use serde::Deserialize;
use serde_json::Value;

use crate::job::{lenient, limit_labels, parse_time};

/// A scale set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ScaleSet {
    /// Its ID.
    pub id: u64,
    /// Its name, unique in its group.
    pub name: String,
    /// The runner group's ID.
    pub group_id: u64,
    /// Its labels.
    pub labels: Vec<String>,
}

/// Counts of a scale set's jobs and runners. The desired number of runners follows from
/// `assigned_jobs`, never from counting messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ScaleSetStatistics {
    /// Jobs that the set may acquire.
    #[serde(rename = "totalAvailableJobs")]
    pub available_jobs: u32,
    /// Acquired jobs that are not yet assigned.
    #[serde(rename = "totalAcquiredJobs")]
    pub acquired_jobs: u32,
    /// Jobs assigned to the set, including running ones.
    #[serde(rename = "totalAssignedJobs")]
    pub assigned_jobs: u32,
    /// Running jobs.
    #[serde(rename = "totalRunningJobs")]
    pub running_jobs: u32,
    /// Registered runners.
    #[serde(rename = "totalRegisteredRunners")]
    pub registered_runners: u32,
    /// Runners with a job.
    #[serde(rename = "totalBusyRunners")]
    pub busy_runners: u32,
    /// Runners without a job.
    #[serde(rename = "totalIdleRunners")]
    pub idle_runners: u32,
}

/// A message of a session: the changes since the previous one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SessionMessage {
    /// Its ID, for [`MessageSession::acknowledge`](super::MessageSession::acknowledge).
    pub id: u64,
    /// The service's counts at that time.
    pub statistics: Option<ScaleSetStatistics>,
    /// The changes, in order.
    pub items: Vec<JobMessage>,
}

/// A change of one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JobMessage {
    /// The kind of change.
    pub kind: JobMessageKind,
    /// The service's ID of the job.
    pub request_id: u64,
    /// The repository, `owner/name`.
    pub repository: String,
    /// The job's GUID; not the REST API's job ID.
    pub job_id: String,
    /// The job's display name.
    pub name: String,
    /// The workflow run's ID, as in the REST API.
    pub run_id: u64,
    /// The labels of `runs-on`.
    pub labels: Vec<String>,
    /// When it was queued.
    pub queued_at: Option<SystemTime>,
    /// The runner's ID, once a runner has the job.
    pub runner_id: Option<u64>,
    /// That runner's name.
    pub runner_name: Option<String>,
    /// The job's result.
    pub result: Option<String>,
}

/// The kind of change of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum JobMessageKind {
    /// The job may be acquired.
    Available,
    /// The job is assigned to this set.
    Assigned,
    /// A runner has the job.
    Started,
    /// The job ended, or its assignment was revoked.
    Completed,
    /// A kind that this version does not know.
    Other(String),
}

impl fmt::Display for JobMessageKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Available => "available",
            Self::Assigned => "assigned",
            Self::Started => "started",
            Self::Completed => "completed",
            Self::Other(kind) => kind,
        })
    }
}

/// A runner of a scale set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ScaleSetRunner {
    /// Its ID.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// The ID of its scale set.
    pub set: Option<u64>,
}

impl From<&str> for JobMessageKind {
    fn from(text: &str) -> Self {
        match text {
            "JobAvailable" => Self::Available,
            "JobAssigned" => Self::Assigned,
            "JobStarted" => Self::Started,
            "JobCompleted" => Self::Completed,
            other => Self::Other(other.chars().take(64).collect()),
        }
    }
}

/// An error of parsing a message.
#[derive(Debug, thiserror::Error)]
pub(super) enum MessageError {
    #[error("unknown message type {0:?}")]
    Kind(String),
    #[error("the message's body is not a list of items")]
    Body(#[source] serde_json::Error),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawMessage {
    message_id: u64,
    #[serde(default)]
    message_type: String,
    #[serde(default, deserialize_with = "lenient")]
    body: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    statistics: Option<ScaleSetStatistics>,
}

impl RawMessage {
    pub(super) fn read(self) -> Result<SessionMessage, MessageError> {
        if self.message_type != "RunnerScaleSetJobMessages" {
            return Err(MessageError::Kind(self.message_type.chars().take(64).collect()));
        }
        let body = self.body.as_deref().filter(|body| !body.is_empty()).unwrap_or("[]");
        // An item that can't be parsed is skipped: the statistics count its job anyway.
        let values: Vec<Value> = serde_json::from_str(body).map_err(MessageError::Body)?;
        let items = values.into_iter().filter_map(|value| {
            serde_json::from_value::<RawJobMessage>(value).ok().map(JobMessage::from)
        });
        Ok(SessionMessage {
            id: self.message_id,
            statistics: self.statistics,
            items: items.collect(),
        })
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawJobMessage {
    message_type: String,
    #[serde(default, deserialize_with = "lenient")]
    runner_request_id: Option<u64>,
    #[serde(default, deserialize_with = "lenient")]
    owner_name: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    repository_name: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    job_id: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    job_display_name: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    workflow_run_id: Option<u64>,
    #[serde(default, deserialize_with = "lenient")]
    request_labels: Option<Vec<String>>,
    #[serde(default, deserialize_with = "lenient")]
    queue_time: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    runner_id: Option<u64>,
    #[serde(default, deserialize_with = "lenient")]
    runner_name: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    result: Option<String>,
}

impl From<RawJobMessage> for JobMessage {
    fn from(raw: RawJobMessage) -> Self {
        let owner = raw.owner_name.unwrap_or_default();
        Self {
            kind: raw.message_type.as_str().into(),
            request_id: raw.runner_request_id.unwrap_or(0),
            repository: format!("{owner}/{}", raw.repository_name.unwrap_or_default()),
            job_id: raw.job_id.unwrap_or_default(),
            name: raw.job_display_name.unwrap_or_default(),
            run_id: raw.workflow_run_id.unwrap_or(0),
            labels: limit_labels(raw.request_labels.unwrap_or_default()),
            queued_at: raw.queue_time.as_deref().and_then(parse_time),
            runner_id: raw.runner_id.filter(|id| *id != 0),
            runner_name: raw.runner_name.filter(|name| !name.is_empty()),
            result: raw.result.filter(|result| !result.is_empty()),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawSet {
    id: u64,
    name: String,
    #[serde(default)]
    runner_group_id: u64,
    #[serde(default, deserialize_with = "lenient")]
    labels: Option<Vec<RawLabel>>,
}

#[derive(Debug, Deserialize)]
struct RawLabel {
    name: String,
}

impl From<RawSet> for ScaleSet {
    fn from(raw: RawSet) -> Self {
        let labels = raw.labels.unwrap_or_default().into_iter().map(|label| label.name);
        Self { id: raw.id, name: raw.name, group_id: raw.runner_group_id, labels: labels.collect() }
    }
}

/// A list response of the service.
#[derive(Debug, Deserialize)]
pub(super) struct ListResponse<T> {
    pub(super) value: Vec<T>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_messages_items_are_in_a_string() {
        let items = r#"[{"messageType":"JobAssigned","runnerRequestId":7,"ownerName":"octo",
            "repositoryName":"hello","jobId":"4f1c","jobDisplayName":"build","workflowRunId":9,
            "requestLabels":["mayfly"],"queueTime":"2026-05-01T10:00:00.5Z","runnerId":0},
            {"messageType":"JobRenamed"}, 5]"#;
        let message = serde_json::json!({
            "messageId": 3, "messageType": "RunnerScaleSetJobMessages", "body": items,
            "statistics": {"totalAssignedJobs": 2, "somethingNew": 1},
        });
        let message = serde_json::from_value::<RawMessage>(message).unwrap().read().unwrap();
        assert_eq!(message.statistics.unwrap().assigned_jobs, 2);
        let [assigned, renamed] = &message.items[..] else { panic!("{message:?}") };
        assert_eq!(assigned.kind, JobMessageKind::Assigned);
        assert_eq!((assigned.request_id, assigned.run_id), (7, 9));
        assert_eq!((assigned.repository.as_str(), assigned.runner_id), ("octo/hello", None));
        assert!(assigned.queued_at.is_some());
        assert_eq!(renamed.kind, JobMessageKind::Other("JobRenamed".into()));
    }

    #[test]
    fn a_message_of_another_type_is_an_error() {
        let message = serde_json::json!({"messageId": 3, "messageType": "Party", "body": "[]"});
        let message = serde_json::from_value::<RawMessage>(message).unwrap().read();
        assert!(matches!(message, Err(MessageError::Kind(kind)) if kind == "Party"));
    }
}

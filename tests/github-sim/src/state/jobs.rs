//! Jobs: from the queue to a runner to a result.

use serde::{Deserialize, Serialize};

use super::State;
use super::runners::Runner;
use crate::time::Millis;

/// A job to queue.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewJob {
    /// `OWNER/NAME`.
    pub repository: String,
    /// The job's name.
    #[serde(default = "default_name")]
    pub name: String,
    /// The labels that a runner must have.
    pub labels: Vec<String>,
    /// Shell commands, run one after another until one fails.
    pub steps: Vec<String>,
}

fn default_name() -> String {
    "build".to_owned()
}

/// The status of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The job waits for a runner.
    Queued,
    /// A runner has the job.
    InProgress,
    /// The job has a conclusion.
    Completed,
}

impl Status {
    /// Returns it as GitHub writes it.
    pub fn text(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
        }
    }
}

/// The conclusion of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Conclusion {
    /// All steps exited with 0.
    Success,
    /// A step failed, or the runner was lost.
    Failure,
    /// The job was canceled.
    Cancelled,
}

impl Conclusion {
    /// Returns it as GitHub writes it.
    pub fn text(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Cancelled => "cancelled",
        }
    }

    /// Returns it as the runner and scale set messages write it.
    pub fn runner_text(self) -> &'static str {
        match self {
            Self::Success => "succeeded",
            Self::Failure => "failed",
            Self::Cancelled => "canceled",
        }
    }
}

/// The runner of a job; kept after the runner is removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AssignedRunner {
    /// Its ID.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Its group.
    pub group: u64,
}

/// A job with its history.
#[derive(Debug, Clone, Serialize)]
pub struct Job {
    /// Its ID.
    pub id: u64,
    /// The ID of its workflow run; each job has its own.
    pub run_id: u64,
    /// `OWNER/NAME`.
    pub repository: String,
    /// The job's name.
    pub name: String,
    /// The labels that a runner must have.
    pub labels: Vec<String>,
    /// Its shell commands.
    pub steps: Vec<String>,
    /// Its status.
    pub status: Status,
    /// Its conclusion.
    pub conclusion: Option<Conclusion>,
    /// The reason for the conclusion, if the runner did not report it.
    pub annotation: Option<String>,
    /// When it was queued.
    pub queued_at: Millis,
    /// When its runner connected.
    pub connected_at: Option<Millis>,
    /// When a runner took it.
    pub started_at: Option<Millis>,
    /// When it ended.
    pub completed_at: Option<Millis>,
    /// The runner that took it.
    pub runner: Option<AssignedRunner>,
    /// The log that the runner reported.
    pub log: String,
    /// The bytes that the runner has reported, including those beyond the log's limit.
    pub logged: usize,
    /// Whether the runner reported the completion.
    pub reported: bool,
    /// The IDs of started runs, assigned by the runner; more than one is an error.
    pub started_runs: Vec<String>,
    /// The scale set that may run it.
    pub scale_set: Option<u64>,
    /// Whether the scale set has acquired it.
    pub acquired: bool,
    /// Whether cancellation was requested; the runner learns of it at its next renewal.
    #[serde(rename = "cancel_wanted")]
    pub cancel_requested: bool,
}

impl State {
    /// Queues a job, with its webhooks and scale set messages.
    pub fn queue(&mut self, new: NewJob, now: Millis) -> u64 {
        let id = self.next_id();
        let run_id = self.next_id();
        let NewJob { repository, name, labels, steps } = new;
        let scale_set = self.scale_set_for(&labels);
        let job = Job {
            id,
            run_id,
            repository,
            name,
            labels,
            steps,
            status: Status::Queued,
            conclusion: None,
            annotation: None,
            queued_at: now,
            connected_at: None,
            started_at: None,
            completed_at: None,
            runner: None,
            log: String::new(),
            logged: 0,
            reported: false,
            started_runs: Vec::new(),
            scale_set,
            acquired: false,
            cancel_requested: false,
        };
        self.jobs.insert(id, job);
        self.queue_webhook(id, "queued", now);
        self.offer_to_scale_set(id, now);
        self.assign_jobs(now);
        id
    }

    /// Cancels a job: at once if no runner has it, otherwise through the runner.
    ///
    /// Returns whether the job exists and had not ended.
    pub fn cancel(&mut self, id: u64, now: Millis) -> bool {
        match self.jobs.get_mut(&id) {
            Some(job) if job.status == Status::Queued => {
                self.complete(id, Conclusion::Cancelled, None, now);
                true
            }
            Some(job) if job.status == Status::InProgress => {
                job.cancel_requested = true;
                true
            }
            _ => false,
        }
    }

    /// Assigns each queued job, oldest first, to an idle, listening runner with its labels.
    pub(crate) fn assign_jobs(&mut self, now: Millis) {
        let queued: Vec<u64> =
            self.jobs.values().filter(|job| job.is_queued()).map(|job| job.id).collect();
        for id in queued {
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            let Some(runner) = self
                .runners
                .values_mut()
                .find(|runner| runner.may_take(job, now, self.settings.offline_after))
            else {
                continue;
            };
            runner.job = Some(id);
            job.status = Status::InProgress;
            job.started_at = Some(now);
            job.connected_at = runner.session.as_ref().map(|session| session.opened);
            job.runner = Some(AssignedRunner {
                id: runner.id,
                name: runner.name.clone(),
                group: runner.group,
            });
            self.queue_webhook(id, "in_progress", now);
            self.notify_scale_set(id, "JobStarted", now);
        }
    }

    /// Completes a job and removes its runner's registration.
    pub(crate) fn complete(
        &mut self,
        id: u64,
        conclusion: Conclusion,
        annotation: Option<&str>,
        now: Millis,
    ) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.status == Status::Completed {
            return;
        }
        job.status = Status::Completed;
        job.conclusion = Some(conclusion);
        job.annotation = annotation.map(str::to_owned);
        job.completed_at = Some(now);
        let runner = job.runner.as_ref().map(|runner| runner.id);
        self.queue_webhook(id, "completed", now);
        self.notify_scale_set(id, "JobCompleted", now);
        if let Some(runner) = runner {
            self.remove_runner(runner, annotation.unwrap_or("its job has ended"), now);
        }
    }
}

impl Job {
    fn is_queued(&self) -> bool {
        self.status == Status::Queued
    }
}

impl Runner {
    /// Whether it may take a job now: listening, idle, in scope, and with every label of the job in
    /// any case. A job that a scale set has acquired is for that set's runners only.
    fn may_take(&self, job: &Job, now: Millis, offline_after: Millis) -> bool {
        let free = self.job.is_none() && self.is_online(now, offline_after) && !self.is_leaving();
        let matches = match (self.scale_set, job.scale_set) {
            (Some(mine), Some(its)) => mine == its && job.acquired,
            (None, None) => has_all(&self.labels, &job.labels),
            _ => false,
        };
        free && matches && self.scope.admits(&job.repository)
    }
}

/// Whether every required label is present, in any case. A job without labels matches no runner.
pub fn has_all(present: &[String], required: &[String]) -> bool {
    !required.is_empty()
        && required.iter().all(|label| present.iter().any(|have| have.eq_ignore_ascii_case(label)))
}

//! Jobs: from the queue to a runner to a result.

use serde::{Deserialize, Serialize};

use super::State;
use super::runners::Runner;
use crate::time::Millis;

/// A job that somebody wants run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewJob {
    /// `OWNER/NAME`.
    pub repository: String,
    /// What it is called.
    #[serde(default = "default_name")]
    pub name: String,
    /// What a runner must have.
    pub labels: Vec<String>,
    /// Shell commands, run one after the other until one fails.
    pub steps: Vec<String>,
}

fn default_name() -> String {
    "build".to_owned()
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Waits for a runner.
    Queued,
    /// A runner has it.
    InProgress,
    /// It has a conclusion.
    Completed,
}

impl Status {
    /// As GitHub writes it.
    pub fn text(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
        }
    }
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Conclusion {
    /// All steps ended with 0.
    Success,
    /// A step didn't, or the runner was lost.
    Failure,
    /// Somebody stopped it.
    Cancelled,
}

impl Conclusion {
    /// As GitHub writes it.
    pub fn text(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Cancelled => "cancelled",
        }
    }

    /// As the runner writes it, and scale-set messages.
    pub fn runner_text(self) -> &'static str {
        match self {
            Self::Success => "succeeded",
            Self::Failure => "failed",
            Self::Cancelled => "canceled",
        }
    }
}

/// The runner that took a job; stays known when the runner is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TakenBy {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Its group.
    pub group: u64,
}

/// A job with all that happened to it.
#[derive(Debug, Clone, Serialize)]
pub struct Job {
    /// Its number.
    pub id: u64,
    /// The number of its workflow run; each job has its own.
    pub run_id: u64,
    /// `OWNER/NAME`.
    pub repository: String,
    /// What it is called.
    pub name: String,
    /// What a runner must have.
    pub labels: Vec<String>,
    /// Its shell commands.
    pub steps: Vec<String>,
    /// How far it is.
    pub status: Status,
    /// How it ended.
    pub conclusion: Option<Conclusion>,
    /// Why, in words, where the runner did not say so.
    pub annotation: Option<String>,
    /// When it was queued.
    pub queued_at: Millis,
    /// When the runner that took it connected.
    pub connected_at: Option<Millis>,
    /// When a runner took it.
    pub started_at: Option<Millis>,
    /// When it ended.
    pub completed_at: Option<Millis>,
    /// Who took it.
    pub runner: Option<TakenBy>,
    /// What the runner reported, oldest first.
    pub log: String,
    /// Bytes of it that the runner has reported, before the bound.
    pub logged: usize,
    /// Whether the runner itself reported the end.
    pub reported: bool,
    /// The runs that were started, each with an id of the runner's own: one, or something is wrong.
    pub started_runs: Vec<String>,
    /// The scale set that may run it, and whether it has acquired it.
    pub scale_set: Option<u64>,
    /// Whether that scale set has acquired it.
    pub acquired: bool,
    /// Somebody wants it stopped; the runner is told when it asks next.
    pub cancel_wanted: bool,
}

impl State {
    /// Queues a job. Webhooks and scale-set messages about it follow.
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
            cancel_wanted: false,
        };
        self.jobs.insert(id, job);
        self.announce(id, "queued", now);
        self.offer_to_scale_set(id, now);
        self.assign_jobs(now);
        id
    }

    /// Wants a job stopped: at once if no runner has it, else the runner is told.
    ///
    /// Returns whether there is such a job and it had not ended.
    pub fn cancel(&mut self, id: u64, now: Millis) -> bool {
        match self.jobs.get_mut(&id) {
            Some(job) if job.status == Status::Queued => {
                self.complete(id, Conclusion::Cancelled, None, now);
                true
            }
            Some(job) if job.status == Status::InProgress => {
                job.cancel_wanted = true;
                true
            }
            _ => false,
        }
    }

    /// Gives each queued job, oldest first, to a runner that listens, is idle and has its labels.
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
            job.runner =
                Some(TakenBy { id: runner.id, name: runner.name.clone(), group: runner.group });
            self.announce(id, "in_progress", now);
            self.tell_scale_set(id, "JobStarted", now);
        }
    }

    /// Ends a job, and the registration of the runner that had it.
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
        self.announce(id, "completed", now);
        self.tell_scale_set(id, "JobCompleted", now);
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
    /// Whether it may take a job now: listening, idle, in scope, and with every label of the job,
    /// whatever their case. A job that a scale set has acquired is for that set's runners only.
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

/// Whether every wanted label is there, whatever its case. A job without labels matches none.
pub fn has_all(present: &[String], wanted: &[String]) -> bool {
    !wanted.is_empty()
        && wanted.iter().all(|label| present.iter().any(|have| have.eq_ignore_ascii_case(label)))
}

//! Runner scale sets: their jobs, their sessions, and queued messages.

use serde_json::{Value, json};

use super::State;
use super::jobs::{Job, Status, has_all};
use super::tokens::Purpose;
use crate::time::{Millis, text};

/// The maximum number of items in a message, as GitHub's clients expect.
const MAX_ITEMS: usize = 50;

/// A scale set.
#[derive(Debug, Clone)]
pub struct ScaleSet {
    /// Its ID.
    pub id: u64,
    /// Its name, unique in its group.
    pub name: String,
    /// Its group.
    pub group: u64,
    /// Its labels.
    pub labels: Vec<String>,
    /// When it was created.
    pub created_at: Millis,
    /// The open session.
    pub session: Option<Listener>,
    /// Unacknowledged messages, by ID.
    pub messages: Vec<(u64, Vec<Value>)>,
    /// The items of the next message.
    pub pending_items: Vec<Value>,
    /// The capacity that the listener reported.
    pub capacity: Option<u64>,
}

/// A session of a scale set.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Its ID.
    pub id: String,
    /// Its owner's name.
    pub owner: String,
    /// The time of its last call.
    pub last_seen: Millis,
}

/// An error of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionError {
    /// The scale set or the session does not exist.
    NotFound,
    /// Another session is open.
    Conflict,
}

impl State {
    /// Creates a scale set and offers it the matching queued jobs.
    ///
    /// Returns `None` if the name is taken in the group.
    pub fn create_scale_set(
        &mut self,
        name: &str,
        group: u64,
        labels: Vec<String>,
        now: Millis,
    ) -> Option<u64> {
        if self.scale_sets.values().any(|set| set.name == name && set.group == group) {
            return None;
        }
        let id = self.next_id();
        let set = ScaleSet {
            id,
            name: name.to_owned(),
            group,
            labels,
            created_at: now,
            session: None,
            messages: Vec::new(),
            pending_items: Vec::new(),
            capacity: None,
        };
        let waits = |job: &&mut Job| {
            job.status == Status::Queued
                && job.scale_set.is_none()
                && has_all(&set.labels, &job.labels)
        };
        let mut offered = Vec::new();
        for job in self.jobs.values_mut().filter(waits) {
            job.scale_set = Some(id);
            offered.push(job.id);
        }
        self.scale_sets.insert(id, set);
        for job in offered {
            self.offer_to_scale_set(job, now);
        }
        Some(id)
    }

    /// Deletes a scale set; its queued jobs become available to other runners.
    ///
    /// Returns whether it existed.
    pub fn delete_scale_set(&mut self, id: u64) -> bool {
        for job in self.jobs.values_mut().filter(|job| job.scale_set == Some(id)) {
            if job.status == Status::Queued {
                job.scale_set = None;
                job.acquired = false;
            }
        }
        self.scale_sets.remove(&id).is_some()
    }

    /// Returns the scale set that has all labels of a job.
    pub(crate) fn scale_set_for(&self, labels: &[String]) -> Option<u64> {
        self.scale_sets.values().find(|set| has_all(&set.labels, labels)).map(|set| set.id)
    }

    /// Offers a job to its scale set.
    pub(crate) fn offer_to_scale_set(&mut self, job: u64, now: Millis) {
        self.notify_scale_set(job, "JobAvailable", now);
    }

    /// Adds an item about a job to the next message of its scale set, if it has one.
    pub(crate) fn notify_scale_set(&mut self, job: u64, kind: &str, now: Millis) {
        let Some(job) = self.jobs.get(&job) else { return };
        let item = message_item(job, kind, &self.url, now);
        let set = job.scale_set.and_then(|set| self.scale_sets.get_mut(&set));
        if let Some(set) = set {
            set.pending_items.push(item);
        }
    }

    /// Acquires jobs for the listener. Returns the acquired ones.
    pub fn acquire(&mut self, set: u64, requested: &[u64], now: Millis) -> Vec<u64> {
        let mut acquired = Vec::new();
        for id in requested {
            let Some(job) = self.jobs.get_mut(id) else { continue };
            if job.scale_set == Some(set) && job.status == Status::Queued && !job.acquired {
                job.acquired = true;
                acquired.push(*id);
                self.notify_scale_set(*id, "JobAssigned", now);
            }
        }
        self.assign_jobs(now);
        acquired
    }

    /// Opens the session of a scale set. Returns its ID and its queue token.
    ///
    /// # Errors
    ///
    /// The set does not exist or already has a session.
    pub fn open_session(
        &mut self,
        set: u64,
        owner: &str,
        now: Millis,
    ) -> Result<(String, String), SessionError> {
        let id = self.random_uuid();
        let set = self.scale_sets.get_mut(&set).ok_or(SessionError::NotFound)?;
        if set.session.is_some() {
            return Err(SessionError::Conflict);
        }
        set.session = Some(Listener { id: id.clone(), owner: owner.to_owned(), last_seen: now });
        let token = self.queue_token(&id, now);
        Ok((id, token))
    }

    /// Issues a new queue token for a session.
    ///
    /// # Errors
    ///
    /// The session does not exist.
    pub fn refresh_session(
        &mut self,
        set: u64,
        session: &str,
        now: Millis,
    ) -> Result<String, SessionError> {
        self.listener(set, session).ok_or(SessionError::NotFound)?.last_seen = now;
        Ok(self.queue_token(session, now))
    }

    fn queue_token(&mut self, session: &str, now: Millis) -> String {
        let life = self.settings.queue_token_life;
        self.issue(Purpose::Queue { session: session.to_owned() }, life, now).0
    }

    fn listener(&mut self, set: u64, session: &str) -> Option<&mut Listener> {
        let listener = self.scale_sets.get_mut(&set)?.session.as_mut()?;
        (listener.id == session).then_some(listener)
    }

    /// Closes a session. Returns whether it was open.
    pub fn close_session(&mut self, set: u64, session: &str) -> bool {
        if self.listener(set, session).is_none() {
            return false;
        }
        if let Some(set) = self.scale_sets.get_mut(&set) {
            set.session = None;
        }
        true
    }

    /// Returns the next message after `last`, if any.
    ///
    /// # Errors
    ///
    /// The session does not exist.
    pub fn next_message(
        &mut self,
        set: u64,
        session: &str,
        last: u64,
        capacity: Option<u64>,
        now: Millis,
    ) -> Result<Option<(u64, Vec<Value>)>, SessionError> {
        self.listener(set, session).ok_or(SessionError::NotFound)?.last_seen = now;
        let id = self.next_id();
        let set = self.scale_sets.get_mut(&set).ok_or(SessionError::NotFound)?;
        set.capacity = capacity.or(set.capacity);
        if let Some(message) = set.messages.iter().find(|(id, _)| *id > last) {
            return Ok(Some(message.clone()));
        }
        if set.pending_items.is_empty() {
            return Ok(None);
        }
        let items = set.pending_items.drain(..set.pending_items.len().min(MAX_ITEMS)).collect();
        set.messages.push((id, items));
        Ok(set.messages.last().cloned())
    }

    /// Removes an acknowledged message. Returns whether it existed.
    pub fn acknowledge(&mut self, set: u64, message: u64) -> bool {
        let Some(set) = self.scale_sets.get_mut(&set) else { return false };
        let before = set.messages.len();
        set.messages.retain(|(id, _)| *id != message);
        set.messages.len() < before
    }

    /// Ends sessions whose owner has not polled for too long.
    pub(crate) fn expire_sessions(&mut self, now: Millis) {
        let life = self.settings.session_life;
        for set in self.scale_sets.values_mut() {
            set.session.take_if(|session| now >= session.last_seen + life);
        }
    }

    /// Returns the statistics for the listener.
    pub fn statistics(&self, set: u64) -> Value {
        let count = |condition: &dyn Fn(&Job) -> bool| {
            self.jobs.values().filter(|job| job.scale_set == Some(set) && condition(job)).count()
        };
        let runners = || self.runners.values().filter(|runner| runner.scale_set == Some(set));
        let assigned = count(&|job| job.acquired && job.status != Status::Completed);
        let busy = runners().filter(|runner| runner.job.is_some()).count();
        json!({
            "totalAvailableJobs": count(&|job| !job.acquired && job.status == Status::Queued),
            "totalAcquiredJobs": count(&|job| job.acquired && job.status == Status::Queued),
            "totalAssignedJobs": assigned,
            "totalRunningJobs": count(&|job| job.status == Status::InProgress),
            "totalRegisteredRunners": runners().count(),
            "totalBusyRunners": busy,
            "totalIdleRunners": runners().count() - busy,
        })
    }
}

/// Returns a message item about a job.
fn message_item(job: &Job, kind: &str, url: &str, now: Millis) -> Value {
    let (owner, repository) = job.repository.split_once('/').unwrap_or(("", &job.repository));
    let time = |at: Option<Millis>| at.map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), text);
    let mut item = json!({
        "messageType": kind,
        "runnerRequestId": job.id,
        "repositoryName": repository,
        "ownerName": owner,
        "jobId": job.id.to_string(),
        "jobWorkflowRef": format!("{}/.github/workflows/ci.yml@refs/heads/main", job.repository),
        "jobDisplayName": job.name,
        "workflowRunId": job.run_id,
        "eventName": "push",
        "requestLabels": job.labels,
        "queueTime": text(job.queued_at),
        "scaleSetAssignTime": time(job.acquired.then_some(now)),
        "runnerAssignTime": time(job.started_at),
        "finishTime": time(job.completed_at),
    });
    if kind == "JobAvailable" {
        item["acquireJobUrl"] = format!("{url}/_sim/acquire/{}", job.id).into();
    }
    if let Some(runner) = &job.runner {
        item["runnerId"] = runner.id.into();
        item["runnerName"] = runner.name.clone().into();
    }
    if kind == "JobCompleted" {
        item["result"] = job.conclusion.map(super::jobs::Conclusion::runner_text).into();
    }
    item
}

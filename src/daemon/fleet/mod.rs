//! The fleet: all microVMs that exist, and the channels to their shepherds.
//!
//! Owns the microVMs ([`microvm`]), their termination ([`termination`]), their deadlines
//! ([`overdue`]), the tasks that follow shepherds ([`follower`]), and the trait to reach these
//! ([`shepherds`]); of the ledger the microVMs, their phases and their egress. Knows nothing about
//! the results of jobs.

mod follower;
mod microvm;
#[cfg(test)]
mod microvm_tests;
mod overdue;
mod processes;
mod shepherds;
mod termination;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::decide::{
    ActiveBlocker, Blocker, JobKey, MicrovmKey, MicrovmState, PoolId, Resources, Stage,
};
use super::error::DaemonError;
use super::event::DaemonEvent;
use super::pools::PoolFailures;
use super::tasks::Tasks;
use super::time::Millis;
use follower::{FollowerChannels, SHEPHERD_TASKS_CAPACITY, ShepherdTask};
use mayfly_forge::NewRunner;
use mayfly_ledger::{Ledger, LedgerReader};
use mayfly_shepherd::cause::FailureCause;
use mayfly_shepherd::event::{Event, EventKind, JobOutcome};
use mayfly_shepherd::plan::{MicrovmId, MicrovmPlan, ShepherdCommand};
use mayfly_shepherd::planner::MicrovmRequest;
use mayfly_shepherd::record::RecordedDeadlines;
use mayfly_telemetry::log;
pub(super) use microvm::{
    AssignedRunner, Assignment, JobVerdict, Microvm, MicrovmUpdate, job_verdict,
};
use overdue::PhaseTimeouts;
pub(super) use processes::ShepherdProcesses;
pub(super) use shepherds::{FoundMicrovm, PlanFailure, Shepherds};
#[cfg(test)]
pub(super) use shepherds::{Shepherd, Unacknowledged};

/// How long planning may take. It hashes an image that was not verified yet.
const PLAN_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// The microVMs, and the boot failures per pool.
pub(super) struct Fleet {
    shepherds: Arc<dyn Shepherds>,
    microvms: BTreeMap<MicrovmKey, FleetEntry>,
    last_key: u64,
    boot_failures: PoolFailures,
}

/// A microVM with the channel to its shepherd's follower.
struct FleetEntry {
    microvm: Microvm,
    shepherd_tasks: Option<mpsc::Sender<ShepherdTask>>,
    /// How it ended, while its job's output is being saved.
    outcome: Option<JobOutcome>,
}

/// A new event, with the microVM that reported it.
pub(super) struct ReceivedUpdate {
    pub(super) id: MicrovmId,
    pub(super) pool: PoolId,
    pub(super) assignment: Assignment,
    pub(super) update: MicrovmUpdate,
}

impl Fleet {
    pub(super) fn new(shepherds: Arc<dyn Shepherds>) -> Self {
        let (microvms, boot_failures) = (BTreeMap::new(), PoolFailures::default());
        Self { shepherds, microvms, last_key: 0, boot_failures }
    }

    pub(super) fn shepherds(&self) -> &Arc<dyn Shepherds> {
        &self.shepherds
    }

    pub(super) fn get(&self, key: MicrovmKey) -> Option<&Microvm> {
        self.microvms.get(&key).map(|entry| &entry.microvm)
    }

    fn get_mut(&mut self, key: MicrovmKey) -> Option<&mut Microvm> {
        self.microvms.get_mut(&key).map(|entry| &mut entry.microvm)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Microvm> {
        self.microvms.values().map(|entry| &entry.microvm)
    }

    pub(super) fn len(&self) -> usize {
        self.microvms.len()
    }

    /// Returns the microVMs as decisions see them.
    pub(super) fn microvm_states(&self) -> Vec<MicrovmState> {
        self.iter().map(Microvm::state).collect()
    }

    /// Returns the resources of all microVMs.
    pub(super) fn used(&self) -> Resources {
        self.iter().map(Microvm::resources).fold(Resources::default(), Resources::plus)
    }

    /// Returns the number of microVMs with a job. That includes jobs that are being ended.
    pub(super) fn running(&self) -> usize {
        self.iter().filter(|one| one.has_job()).count()
    }

    /// Returns the microVM of a runner.
    pub(super) fn with_runner(&self, name: &str) -> Option<&Microvm> {
        self.iter().find(|one| one.runner().is_some_and(|runner| runner.name == name))
    }

    /// Returns the microVM of a local job.
    pub(super) fn with_job(&self, job: JobKey) -> Option<&Microvm> {
        self.iter().find(|one| *one.assignment() == Assignment::Local(job))
    }

    /// Forgets boot failures, so that all pools are tried again: the cause may be fixed.
    pub(super) fn clear_boot_failures(&mut self) {
        self.boot_failures = PoolFailures::default();
    }

    /// Returns why no microVM of a pool can boot, if so.
    pub(super) fn blocker(&self, pool: PoolId) -> Option<ActiveBlocker> {
        self.boot_failures.blocker(pool)
    }

    /// Enters a log context for a microVM and its job. Log lines belong to it until the returned
    /// guard is dropped.
    pub(super) fn log_span(
        &self,
        key: Option<MicrovmKey>,
        reader: &LedgerReader,
    ) -> Option<tracing::span::EnteredSpan> {
        let microvm = self.get(key?)?;
        let id = microvm.id().map(MicrovmId::as_str);
        let job = match microvm.assignment() {
            Assignment::None => None,
            Assignment::Local(job) => Some(job.0),
            // A ledger error is reported where it matters.
            Assignment::Runner(_) => id.and_then(|id| Some(reader.job_of(id).ok()??.id.0)),
        };
        let runner = microvm.runner().map(|runner| runner.name.as_str());
        let pool = Some(microvm.pool_name());
        Some(log::enter_context(log::LogContext { microvm: id, job, pool, runner }))
    }

    fn add(&mut self, microvm: impl FnOnce(MicrovmKey) -> Microvm) -> MicrovmKey {
        self.last_key += 1;
        let key = MicrovmKey(self.last_key);
        let entry = FleetEntry { microvm: microvm(key), shepherd_tasks: None, outcome: None };
        self.microvms.insert(key, entry);
        key
    }

    /// Plans a microVM. It boots once it is planned and in the ledger.
    pub(super) fn plan(
        &mut self,
        pool: (PoolId, &str),
        resources: Resources,
        request: MicrovmRequest,
        now: Millis,
        tasks: &mut Tasks,
    ) {
        let key = self.add(|key| Microvm::new(key, pool.0, pool.1, resources, now));
        let planned = tokio::time::timeout(PLAN_TIMEOUT, self.shepherds.plan(request));
        tasks.spawn_reporting(async move {
            let late = |_| {
                Err(PlanFailure {
                    is_image_error: false,
                    message: "the microVM was not planned within 15 minutes".to_owned(),
                })
            };
            DaemonEvent::Planned(key, planned.await.unwrap_or_else(late))
        });
    }

    /// Starts the shepherd of a planned microVM.
    pub(super) fn start(
        &mut self,
        key: MicrovmKey,
        plan: MicrovmPlan,
        ledger: &mut Ledger,
        tasks: &mut Tasks,
    ) -> Result<(), DaemonError> {
        let Some(entry) = self.microvms.get_mut(&key) else { return Ok(()) };
        if entry.microvm.stage == Stage::Ending {
            // It was retired before it started.
            self.microvms.remove(&key);
            return Ok(());
        }
        ledger.record_planned(plan.id.as_str(), &entry.microvm.pool_name, &plan.image)?;
        entry.microvm.id = Some(plan.id.clone());
        entry.microvm.timeouts = RecordedDeadlines::from(&plan.deadlines).into();
        let (sender, shepherd_tasks) = mpsc::channel(SHEPHERD_TASKS_CAPACITY);
        entry.shepherd_tasks = Some(sender);
        let channels = FollowerChannels { key, shepherd_tasks, events: tasks.event_sender() };
        tasks.spawn(follower::boot(self.shepherds.clone(), plan, channels));
        Ok(())
    }

    /// Removes a microVM that never got a shepherd.
    pub(super) fn remove_unstarted(
        &mut self,
        key: MicrovmKey,
        why: Blocker,
        ledger: &mut Ledger,
        now: Millis,
    ) -> Result<(), DaemonError> {
        let Some(entry) = self.microvms.remove(&key) else { return Ok(()) };
        tracing::warn!("{why}");
        if let Some(id) = &entry.microvm.id {
            ledger.record_ended(id.as_str(), "failed", Some(&why.to_string()), None)?;
        }
        self.boot_failures.record(entry.microvm.pool, why, now);
        Ok(())
    }

    /// Adds a microVM of an earlier daemon. Call [`Self::follow`] once its recorded events are
    /// applied.
    pub(super) fn adopt(
        &mut self,
        found: &FoundMicrovm,
        pool: (PoolId, &str),
        resources: Resources,
        assignment: Assignment,
        now: Millis,
    ) -> MicrovmKey {
        self.add(|key| {
            let mut microvm = Microvm::new(key, pool.0, pool.1, resources, now);
            (microvm.id, microvm.assignment) = (Some(found.id.clone()), assignment);
            // A record of an older version has none.
            microvm.timeouts = found.deadlines.map(PhaseTimeouts::from).unwrap_or_default();
            microvm
        })
    }

    /// Follows an adopted microVM, unless it has ended by its record.
    pub(super) fn follow(&mut self, key: MicrovmKey, tasks: &mut Tasks) {
        let Some(entry) = self.microvms.get_mut(&key) else { return };
        let Some(id) = entry.microvm.id.clone().filter(|_| entry.outcome.is_none()) else { return };
        let (sender, shepherd_tasks) = mpsc::channel(SHEPHERD_TASKS_CAPACITY);
        entry.shepherd_tasks = Some(sender);
        let channels = FollowerChannels { key, shepherd_tasks, events: tasks.event_sender() };
        tasks.spawn(follower::adopt(self.shepherds.clone(), id, channels));
    }

    /// Applies an event and records it. Returns `None` if it is not new.
    pub(super) fn apply_event(
        &mut self,
        key: MicrovmKey,
        number: usize,
        event: &Event,
        ledger: &mut Ledger,
        now: Millis,
    ) -> Result<Option<ReceivedUpdate>, DaemonError> {
        let Some(entry) = self.microvms.get_mut(&key) else { return Ok(None) };
        if number <= entry.microvm.events_applied || entry.outcome.is_some() {
            return Ok(None);
        }
        let update = entry.microvm.apply_event(event, now);
        let id = event.microvm.as_str();
        match &event.kind {
            EventKind::Phase(phase) => {
                ledger.record_phase(id, &phase_of(number, event, &phase.to_string()))?;
            }
            EventKind::Egress(report) => ledger.record_egress(id, &microvm::egress(report))?,
            EventKind::Interrupted(request) => {
                tracing::info!("interrupting its job: {}", request.reason);
                let phase = phase_of(number, event, "interrupted");
                ledger.record_interrupt(id, &phase, &request.reason, request.grace)?;
            }
            _ => {}
        }
        let Microvm { pool, assignment, .. } = &entry.microvm;
        let received = ReceivedUpdate {
            id: event.microvm.clone(),
            pool: *pool,
            assignment: assignment.clone(),
            update,
        };
        match &received.update {
            MicrovmUpdate::Warm => self.boot_failures.clear(received.pool),
            MicrovmUpdate::Ended(outcome) => entry.outcome = Some((**outcome).clone()),
            _ => {}
        }
        Ok(Some(received))
    }

    /// Removes a microVM that has ended. Returns it with its outcome.
    pub(super) fn remove_ended(&mut self, key: MicrovmKey) -> Option<(Microvm, JobOutcome)> {
        let outcome = self.microvms.get_mut(&key)?.outcome.take()?;
        let mut entry = self.microvms.remove(&key)?;
        let ended = FailureCause::Ended.name();
        entry.microvm.ended_as_requested =
            matches!(&outcome, JobOutcome::Failed(report) if report.cause == ended);
        Some((entry.microvm, outcome))
    }

    /// Records the failed boot of a microVM that was removed.
    pub(super) fn record_boot_failure(&mut self, pool: PoolId, why: String, now: Millis) {
        self.boot_failures.record(pool, Blocker::BootsFail(why), now);
    }

    /// Changes the assignment and stage of a microVM.
    pub(super) fn assign(
        &mut self,
        key: MicrovmKey,
        assignment: Assignment,
        stage: Stage,
        now: Millis,
    ) {
        if let Some(microvm) = self.get_mut(key) {
            microvm.assignment = assignment;
            microvm.enter(stage, now);
        }
    }

    /// Makes a microVM warm again after its registration failed.
    pub(super) fn return_to_warm(&mut self, key: MicrovmKey, now: Millis) {
        if self.get(key).is_some_and(|microvm| microvm.stage() == Stage::Registering) {
            self.assign(key, Assignment::None, Stage::Warm, now);
        }
    }

    /// Records the forge's number of its runner. Returns whether the microVM still waits for the
    /// start configuration.
    pub(super) fn record_registered(
        &mut self,
        key: MicrovmKey,
        name: &str,
        new: &NewRunner,
    ) -> bool {
        let Some(microvm) = self.get_mut(key) else { return false };
        match &mut microvm.assignment {
            Assignment::Runner(runner) if runner.name == name => {
                runner.id = Some(new.id);
                microvm.stage == Stage::Registering
            }
            _ => false,
        }
    }

    /// Puts an adopted microVM into a stage, unless its record shows a later one.
    pub(super) fn resume_in_stage(&mut self, key: MicrovmKey, stage: Stage, now: Millis) {
        let early = [Stage::Booting, Stage::Warm];
        if let Some(microvm) = self.get_mut(key).filter(|one| early.contains(&one.stage)) {
            microvm.enter(stage, now);
        }
    }

    /// Sets when its local job times out.
    pub(super) fn set_deadline(&mut self, key: MicrovmKey, deadline: Option<Millis>) {
        if let Some(microvm) = self.get_mut(key) {
            microvm.job_deadline = deadline;
        }
    }

    /// Records the forge's report of a runner's job. Returns the runner's pool.
    pub(super) fn record_runner_job(
        &mut self,
        runner: &str,
        job: &str,
        now: Millis,
    ) -> Option<PoolId> {
        let key = self.with_runner(runner)?.key;
        let microvm = self.get_mut(key)?;
        microvm.record_job(job, now);
        Some(microvm.pool)
    }

    /// Records that a runner's job ended. Its microVM has a grace period to end by itself.
    pub(super) fn record_job_completed(&mut self, runner: &str, now: Millis) {
        let Some(key) = self.with_runner(runner).map(Microvm::key) else { return };
        if let Some(microvm) = self.get_mut(key) {
            microvm.job_completed_at.get_or_insert(now);
        }
    }

    /// Keeps a microVM that was being retired, because its runner has a job.
    pub(super) fn keep_busy(&mut self, key: MicrovmKey, now: Millis) {
        // Unless it was commanded to end, its job included.
        let microvm = self.get_mut(key).filter(|microvm| microvm.end_requested_at.is_none());
        if let Some(microvm) = microvm {
            microvm.end_reason = None;
            microvm.enter(Stage::Busy, now);
        }
    }

    /// Sends a command to a shepherd.
    pub(super) fn send_command(&self, key: MicrovmKey, command: ShepherdCommand) {
        self.send_task(key, ShepherdTask::Command(command));
    }

    /// Sends a task to a shepherd's follower. If the follower has ended, its last event is on its
    /// way.
    fn send_task(&self, key: MicrovmKey, task: ShepherdTask) {
        if let Some(entry) = self.microvms.get(&key)
            && let Some(shepherd_tasks) = &entry.shepherd_tasks
            && shepherd_tasks.try_send(task).is_err()
        {
            let microvm = entry.microvm.id().map(MicrovmId::as_str);
            tracing::warn!(
                microvm,
                "can't send a command to the shepherd: its follower has ended or is busy"
            );
        }
    }

    /// Drops all microVMs. Their followers end; the shepherds continue.
    pub(super) fn release_all(&mut self) {
        self.microvms.clear();
    }
}

/// Returns the ledger's record of an event that began a phase.
fn phase_of(number: usize, event: &Event, phase: &str) -> mayfly_ledger::PhaseRecord {
    let at = humantime::parse_rfc3339(&event.time);
    mayfly_ledger::PhaseRecord {
        event: number as u64,
        phase: phase.to_owned(),
        elapsed_ms: event.elapsed_ms,
        at: at.unwrap_or_else(|_| std::time::SystemTime::now()).into(),
    }
}

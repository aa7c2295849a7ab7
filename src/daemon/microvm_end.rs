//! The end of a microVM: what happens to its work, and what is retained of it.
//!
//! First its job's output is saved; then its work is settled; then the ledger has it as ended; then
//! its directory is removed. If the daemon is killed in between, the next one finds the directory.
//! Saving and removing are tasks.

use std::path::PathBuf;
use std::time::Duration;

use super::backlog::Backlog;
use super::decide::{JobKey, MicrovmKey};
use super::error::DaemonError;
use super::event::DaemonEvent;
use super::event_loop::Daemon;
use super::fleet::{AssignedRunner, Assignment, Microvm};
use super::registry::Registry;
use super::runner_end::runner_end_effects;
use mayfly_shepherd::event::{JobOutcome, Phase, out_of_memory_note};
use mayfly_shepherd::output;
use mayfly_shepherd::plan::MicrovmId;

/// How long it may take to save a job's output, and to remove a directory.
const FILE_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// Waits between the tries to remove a directory.
const DISPOSE_RETRIES: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(10),
    Duration::from_secs(60),
    Duration::from_secs(600),
];

impl Daemon {
    /// Handles the end of a microVM: saves its job's output. That includes a job that an earlier
    /// daemon settled without saving its output.
    pub(super) fn finish_microvm(&mut self, key: MicrovmKey) -> Result<(), DaemonError> {
        let Some(id) = self.id_of(key) else { return Ok(()) };
        let Some(job) = self.reader().job_of(id.as_str())? else { return self.settle_microvm(key) };
        let log = self.log_path(JobKey(job.id.0));
        let keep = tokio::time::timeout(FILE_TIMEOUT, self.fleet.shepherds().save_output(&id, log));
        self.tasks.spawn_reporting(async move {
            // Output that can't be saved in time is lost, and blocks nothing.
            DaemonEvent::OutputSaved(key, keep.await.unwrap_or_default())
        });
        Ok(())
    }

    /// Settles an ended microVM after its job's output was saved.
    pub(super) fn settle_microvm(&mut self, key: MicrovmKey) -> Result<(), DaemonError> {
        let Some((microvm, outcome)) = self.fleet.remove_ended(key) else { return Ok(()) };
        let Some(id) = microvm.id().cloned() else { return Ok(()) };
        self.record_boot_failure(&microvm, &outcome);
        match microvm.assignment() {
            Assignment::None => {}
            Assignment::Local(job) => {
                let (backlog, mut context) = self.backlog_and_context();
                backlog.settle(*job, &outcome, microvm.end_reason(), &mut context)?;
            }
            Assignment::Runner(runner) => self.settle_runner(&microvm, runner, &outcome)?,
        }
        let memory = match &outcome {
            JobOutcome::Job { status, oom_kills, .. } => out_of_memory_note(status, *oom_kills),
            JobOutcome::Failed(_) => None,
        };
        let abnormal = match &outcome {
            JobOutcome::Job { .. } => None,
            JobOutcome::Failed(report) => Some(report.message.as_str()),
        };
        // A microVM that the daemon ended is not kept as evidence.
        let evidence = is_evidence(&microvm);
        let silent = evidence.then(|| missing_result(&microvm));
        let cause = microvm.end_reason().or(abnormal).or(memory.as_deref()).or(silent);
        let unexpected = abnormal.is_some() && microvm.was_unexpected();
        let keep = unexpected || evidence;
        let outcome_name = if unexpected { "failed" } else { "ended" };
        let directory = self.state.microvms().join(id.as_str());
        let black_box = keep.then(|| directory.display().to_string());
        self.ledger.record_ended(id.as_str(), outcome_name, cause, black_box.as_deref())?;
        tracing::info!(cause, "the microVM ended");
        self.dispose(&id, keep.then(|| microvm.pool_name().to_owned()));
        Ok(())
    }

    /// Removes the directory of an ended and settled microVM, or retains it as a black box.
    pub(super) fn dispose(&mut self, id: &MicrovmId, black_box_pool: Option<String>) {
        let (shepherds, id) = (self.fleet.shepherds().clone(), id.clone());
        self.tasks.spawn(async move {
            for pause in DISPOSE_RETRIES {
                let dispose = shepherds.dispose(&id, black_box_pool.clone());
                let why = match tokio::time::timeout(FILE_TIMEOUT, dispose).await {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => "not done within 5 minutes".to_owned(),
                };
                tracing::warn!(microvm = %id, "can't remove the microVM's directory: {why}");
                tokio::time::sleep(pause).await;
            }
            // The next daemon finds it.
        });
    }

    fn record_boot_failure(&mut self, microvm: &Microvm, outcome: &JobOutcome) {
        let now = self.now();
        if let JobOutcome::Failed(report) = outcome
            // A killed shepherd reports `Failed`; the last phase says how far it came.
            && report.phase.min(microvm.phase()) < Phase::Ready
            && microvm.was_unexpected()
            && *microvm.assignment() == Assignment::None
        {
            tracing::warn!("the microVM failed to boot: {}", report.message);
            self.fleet.record_boot_failure(microvm.pool(), report.message.clone(), now);
        }
    }

    /// Settles the registration and the job of a runner, and the pool's next registration.
    fn settle_runner(
        &mut self,
        microvm: &Microvm,
        runner: &AssignedRunner,
        outcome: &JobOutcome,
    ) -> Result<(), DaemonError> {
        let now = self.now();
        let Some(effects) = runner_end_effects(microvm, outcome) else { return Ok(()) };
        if effects.is_registration_removed {
            Registry::record_removed_by_forge(&runner.name, &mut self.ledger)?;
        } else {
            self.registry.remove(&runner.name, runner.id, &self.ledger, now)?;
        }
        if let Some(why) = effects.back_off {
            tracing::warn!("{why}");
            self.registry.record_runner_failure(microvm.pool(), why, now);
        }
        if let Some(id) = microvm.id() {
            Backlog::settle_runner_job(id.as_str(), &effects.job, &mut self.ledger)?;
        }
        Ok(())
    }

    /// Returns the path of a job's output after its microVM has ended.
    pub(super) fn log_path(&self, job: JobKey) -> PathBuf {
        self.state.logs().join(format!("{}.log", job.0))
    }

    /// Returns the current path of a job's output.
    pub(super) fn current_log_path(&self, job: JobKey, microvm: Option<&str>) -> Option<PathBuf> {
        let in_microvm = microvm.map(|id| self.state.microvms().join(id).join(output::OUTPUT));
        in_microvm
            .into_iter()
            .chain([self.log_path(job)])
            .find(|path| path.try_exists().unwrap_or(true))
    }
}

/// Returns whether a runner's end needs investigation: it ended before it had a job, or without
/// reporting its job's result.
fn is_evidence(microvm: &Microvm) -> bool {
    microvm.runner().is_some_and(|runner| runner.result.is_none()) && microvm.was_unexpected()
}

/// Returns what is missing from such an end.
fn missing_result(microvm: &Microvm) -> &'static str {
    match microvm.runner() {
        Some(runner) if runner.job.is_none() => "its runner ended before it had a job",
        _ => "its runner did not report the result of its job",
    }
}

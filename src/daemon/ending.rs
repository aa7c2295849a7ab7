//! The end of a microVM: what it means for its work, and what is kept of it.
//!
//! What its job wrote is kept first; then its work is settled, then it is in the ledger as ended,
//! then its directory goes: a daemon that is killed in between finds it again. Both the keeping and
//! the going are tasks.

use std::path::PathBuf;
use std::time::Duration;

use super::backlog::Backlog;
use super::concluding::consequence;
use super::decide::{JobKey, MachineKey};
use super::error::DaemonError;
use super::fleet::{Microvm, Runner, Work};
use super::happening::Happening;
use super::registry::Registry;
use super::running::Daemon;
use crate::shepherd::event::{Outcome, Phase, out_of_memory};
use crate::shepherd::output;
use crate::shepherd::plan::Id;

/// How long the keeping of a job's output, and the removal of a directory, may take.
const KEEPING: Duration = Duration::from_secs(5 * 60);
/// After a directory could not be put away.
const PUT_AWAY_AGAIN: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(10),
    Duration::from_secs(60),
    Duration::from_secs(600),
];

impl Daemon {
    /// A microVM is over: what its job wrote is kept, also of a job that a daemon before this one
    /// settled without living to keep it.
    pub(super) fn ended(&mut self, key: MachineKey) -> Result<(), DaemonError> {
        let Some(id) = self.id_of(key) else { return Ok(()) };
        let Some(job) = self.reader().job_of(id.as_str())? else { return self.over(key) };
        let log = self.log(JobKey(job.id.0));
        let keep = tokio::time::timeout(KEEPING, self.fleet.shepherds().keep_output(&id, log));
        self.tasks.report(async move {
            // What can't be kept in time is lost, and holds nothing up.
            Happening::Kept(key, keep.await.unwrap_or_default())
        });
        Ok(())
    }

    /// What the job of a microVM that is over wrote is kept: the rest is settled.
    pub(super) fn over(&mut self, key: MachineKey) -> Result<(), DaemonError> {
        let Some((microvm, outcome)) = self.fleet.leave(key) else { return Ok(()) };
        let Some(id) = microvm.id().cloned() else { return Ok(()) };
        self.booted_or_not(&microvm, &outcome);
        match microvm.work() {
            Work::None => {}
            Work::Local(job) => {
                let (backlog, mut desk) = self.desk();
                backlog.settle(*job, &outcome, microvm.ended_for(), &mut desk)?;
            }
            Work::Runner(runner) => self.settle_runner(&microvm, runner, &outcome)?,
        }
        let memory = match &outcome {
            Outcome::Job { status, oom_kills, .. } => out_of_memory(status, *oom_kills),
            Outcome::Failed(_) => None,
        };
        let abnormal = match &outcome {
            Outcome::Job { .. } => None,
            Outcome::Failed(report) => Some(report.message.as_str()),
        };
        // What the daemon ended itself is no evidence of anything.
        let evidence = is_evidence(&microvm);
        let silent = evidence.then(|| silence(&microvm));
        let cause = microvm.ended_for().or(abnormal).or(memory.as_deref()).or(silent);
        let unexpected = abnormal.is_some() && microvm.was_unexpected();
        let keep = unexpected || evidence;
        let word = if unexpected { "failed" } else { "ended" };
        let directory = self.state.microvms().join(id.as_str());
        let black_box = keep.then(|| directory.display().to_string());
        self.ledger.ended(id.as_str(), word, cause, black_box.as_deref())?;
        tracing::info!(cause, "the microVM is gone");
        self.put_away(&id, keep.then(|| microvm.pool_name().to_owned()));
        Ok(())
    }

    /// Puts away the directory of a microVM that is gone and settled.
    pub(super) fn put_away(&mut self, id: &Id, black_box_of: Option<String>) {
        let (shepherds, id) = (self.fleet.shepherds().clone(), id.clone());
        self.tasks.spawn(async move {
            for pause in PUT_AWAY_AGAIN {
                let put_away = shepherds.put_away(&id, black_box_of.clone());
                let why = match tokio::time::timeout(KEEPING, put_away).await {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => "it takes too long".to_owned(),
                };
                tracing::warn!(microvm = %id, "can't put away its directory: {why}");
                tokio::time::sleep(pause).await;
            }
            // The next daemon finds it.
        });
    }

    fn booted_or_not(&mut self, microvm: &Microvm, outcome: &Outcome) {
        let now = self.now();
        if let Outcome::Failed(report) = outcome
            // One that was killed can't say more than how far it came.
            && report.phase.min(microvm.phase()) < Phase::Ready
            && microvm.was_unexpected()
            && *microvm.work() == Work::None
        {
            tracing::warn!("a boot failed: {}", report.message);
            self.fleet.boot_failed(microvm.pool(), report.message.clone(), now);
        }
    }

    /// What its end means for a runner's registration, its job and the next runner.
    fn settle_runner(
        &mut self,
        microvm: &Microvm,
        runner: &Runner,
        outcome: &Outcome,
    ) -> Result<(), DaemonError> {
        let now = self.now();
        let Some(consequence) = consequence(microvm, outcome) else { return Ok(()) };
        if consequence.is_spent {
            Registry::spent(&runner.name, &mut self.ledger)?;
        } else {
            self.registry.remove(&runner.name, runner.id, &self.ledger, now)?;
        }
        if let Some(why) = consequence.back_off {
            tracing::warn!("{why}");
            self.registry.runner_failed(microvm.pool(), why, now);
        }
        if let Some(id) = microvm.id() {
            Backlog::runner_over(id.as_str(), &consequence.job, &mut self.ledger)?;
        }
        Ok(())
    }

    /// Where the output of a job is kept once its microVM is gone.
    pub(super) fn log(&self, job: JobKey) -> PathBuf {
        self.state.logs().join(format!("{}.log", job.0))
    }

    /// Where the output of a job is now.
    pub(super) fn current_log(&self, job: JobKey, microvm: Option<&str>) -> Option<PathBuf> {
        let living = microvm.map(|id| self.state.microvms().join(id).join(output::OUTPUT));
        living.into_iter().chain([self.log(job)]).find(|path| path.try_exists().unwrap_or(true))
    }
}

/// Whether a runner ended in a way that somebody will want to look into: before it had a job, or
/// without a word on how its job ended.
fn is_evidence(microvm: &Microvm) -> bool {
    microvm.runner().is_some_and(|runner| runner.result.is_none()) && microvm.was_unexpected()
}

/// What is wrong with the end of a runner that is evidence.
fn silence(microvm: &Microvm) -> &'static str {
    match microvm.runner() {
        Some(runner) if runner.job.is_none() => "its runner ended before it had a job",
        _ => "its runner did not say how its job ended",
    }
}

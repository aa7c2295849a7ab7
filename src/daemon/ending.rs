//! The end of a microVM: what it means for its work, and what is kept of it.

use std::io;
use std::path::{Path, PathBuf};

use super::decide::{JobKey, MachineKey};
use super::error::DaemonError;
use super::microvm::{Microvm, Runner, Verdict, Work, verdict};
use super::world::{Queued, World};
use crate::egress::record as egress;
use crate::failure::Code;
use crate::ledger::{JobResult, JobState};
use crate::shepherd::event::{Outcome, Phase, out_of_memory};
use crate::shepherd::runner::Meaning;
use crate::shepherd::{output, record};

/// How often a job is given to another microVM after one failed before it began.
const TRIES: u32 = 3;

impl World {
    /// A microVM is over: its work is settled, then it is in the ledger as ended, then its
    /// directory goes; so that a daemon that is killed in between finds it again.
    pub(super) fn ended(&mut self, key: MachineKey, outcome: &Outcome) -> Result<(), DaemonError> {
        let Some(held) = self.microvms.remove(&key) else { return Ok(()) };
        let microvm = held.microvm;
        let Some(id) = microvm.id.clone() else { return Ok(()) };
        let directory = self.state.microvms().join(id.as_str());
        let memory = match outcome {
            Outcome::Job { status, oom_kills, .. } => out_of_memory(status, *oom_kills),
            Outcome::Failed(_) => None,
        };
        let abnormal = match outcome {
            Outcome::Job { .. } => None,
            Outcome::Failed(report) => Some(report.message.as_str()),
        };
        self.booted_or_not(&microvm, outcome);
        match &microvm.work {
            Work::None => {}
            Work::Local(job) => self.settle(&microvm, *job, outcome)?,
            Work::Runner(runner) => {
                self.settle_runner(&microvm, runner, outcome)?;
                self.completed(id.as_str(), runner.result)?;
            }
        }
        self.keep_log_of(id.as_str(), &directory)?;
        // What the daemon ended itself is no evidence of anything.
        let evidence = is_evidence(&microvm);
        let silent = evidence.then(|| silence(&microvm));
        let cause = microvm.ended_for.as_deref().or(abnormal).or(memory.as_deref()).or(silent);
        let unexpected = abnormal.is_some() && was_unexpected(&microvm);
        let keep = unexpected || evidence;
        let word = if unexpected { "failed" } else { "ended" };
        let black_box = keep.then(|| directory.display().to_string());
        self.ledger.ended(id.as_str(), word, cause, black_box.as_deref())?;
        tracing::info!(cause, "the microVM is gone");
        let pool = &microvm.pool_name;
        let put_away =
            if keep { record::keep(&directory, pool) } else { record::collect(&directory) };
        if let Err(error) = put_away
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("can't put away its directory: {error}");
        }
        if keep && let Err(error) = record::prune(&self.state.microvms()) {
            tracing::warn!("can't remove old black boxes: {error}");
        }
        Ok(())
    }

    fn booted_or_not(&mut self, microvm: &Microvm, outcome: &Outcome) {
        let now = self.now();
        let Some(pool) = microvm.pool.and_then(|pool| self.pools.get_mut(pool)) else { return };
        if let Outcome::Failed(report) = outcome
            // One that was killed can't say more than how far it came.
            && report.phase.min(microvm.phase) < Phase::Ready
            && was_unexpected(microvm)
            && microvm.work == Work::None
        {
            tracing::warn!("a boot failed: {}", report.message);
            let why = super::decide::Blocker::BootsFail(report.message.clone());
            pool.boot_failed(why, now);
        }
    }

    fn settle(
        &mut self,
        microvm: &Microvm,
        key: JobKey,
        outcome: &Outcome,
    ) -> Result<(), DaemonError> {
        let Some(job) = self.known(key)? else { return Ok(()) };
        if job.state.is_over() {
            return Ok(());
        }
        let started = job.state == JobState::Running;
        match (verdict(outcome, started), &microvm.ended_for) {
            (Verdict::Finished { exit_code, result }, _) => {
                if !started {
                    self.ledger.start(job.id)?;
                }
                tracing::info!(result, "the job ended");
                self.ledger.finish(job.id, &finished(exit_code, outcome))?;
            }
            // A job is ended with its microVM when it is cancelled, and is over then, or when it
            // took too long.
            (_, Some(why)) => self.ledger.fail(job.id, why, Some(Code::TimedOut as u8))?,
            (Verdict::Again { cause }, None) if job.requeued < TRIES => {
                tracing::warn!("the job waits again: {cause}");
                self.ledger.requeue(job.id, &cause)?;
                let now = self.now();
                let pool = job.pool.as_deref().and_then(|pool| self.pool_named(pool));
                if let Some(pool) = pool {
                    self.enqueue(Queued { job: key, pool, since: now });
                }
                return Ok(());
            }
            (Verdict::Again { cause }, None) => {
                tracing::warn!("the job failed for the last time: {cause}");
                self.ledger.fail(job.id, &cause, Some(Code::MachineFailed as u8))?;
            }
            (Verdict::Failed { exit_code, cause }, None) => {
                tracing::warn!("the job failed: {cause}");
                self.ledger.fail(job.id, &cause, Some(exit_code))?;
            }
        }
        Ok(())
    }

    fn settle_runner(
        &mut self,
        microvm: &Microvm,
        runner: &Runner,
        outcome: &Outcome,
    ) -> Result<(), DaemonError> {
        let now = self.now();
        let regular = irregular(outcome);
        // GitHub removes a runner whose job ended; what it did not, the next list shows.
        if runner.result.is_some() && regular.is_none() {
            self.ledger.deleted(&runner.name)?;
        } else {
            self.removals.add(&runner.name, microvm.pool, runner.id, now);
        }
        let failed = runner.job.is_none() && was_unexpected(microvm);
        if let (true, Some(pool)) = (failed, microvm.pool.and_then(|pool| self.pools.get_mut(pool)))
        {
            // Also one that ended well: made again at once, it would do the same for ever.
            let why = regular.unwrap_or_else(|| "the runner ended without a job".to_owned());
            tracing::warn!("{why}");
            pool.runner_failed(why, now);
        }
        Ok(())
    }

    /// Keeps what a job wrote and the record of what it reached, which outlive its microVM.
    fn keep_log(&mut self, job: JobKey, directory: &Path) {
        let log = self.log(job);
        let output = directory.join(output::OUTPUT);
        let kept = output::complete(directory).and_then(|()| std::fs::rename(&output, &log));
        self.note_kept(job, &log, kept);
        for (from, to) in [(egress::JSON, "egress.jsonl"), (egress::SQUID, "access.log")] {
            let to = log.with_extension(to);
            // Of a try before this one.
            let removed = std::fs::remove_file(&to).or_else(absent);
            // A black box has it, too.
            let kept = removed.and_then(|()| std::fs::hard_link(directory.join(from), &to));
            self.note_kept(job, &to, kept);
        }
    }

    fn note_kept(&mut self, job: JobKey, path: &Path, kept: io::Result<()>) {
        match kept.and_then(|()| path.metadata()) {
            Ok(metadata) => self.kept(metadata.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(job = job.0, "can't keep {}: {error}", path.display());
            }
        }
    }

    /// Keeps what the job of a microVM wrote; also of one that a daemon before this one settled
    /// without living to keep it.
    fn keep_log_of(&mut self, microvm: &str, directory: &Path) -> Result<(), DaemonError> {
        if let Some(job) = self.ledger.reader().job_of(microvm)? {
            self.keep_log(JobKey(job.id.0), directory);
        }
        Ok(())
    }

    /// Where the output of a local job is kept once its microVM is gone.
    pub(super) fn log(&self, job: JobKey) -> PathBuf {
        self.state.logs().join(format!("{}.log", job.0))
    }

    /// Where the output of a job is now.
    pub(super) fn current_log(&self, job: JobKey) -> Option<PathBuf> {
        let microvm = self.known(job).ok()??.microvm;
        let living = microvm.map(|id| self.state.microvms().join(id).join(output::OUTPUT));
        living.into_iter().chain([self.log(job)]).find(|path| path.exists())
    }
}

/// What is not there is no failure.
fn absent(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn finished(exit_code: u8, outcome: &Outcome) -> JobResult {
    use mayfly_protocol::message::JobStatus;
    match outcome {
        Outcome::Job { status: JobStatus::Signal(number), .. } => {
            JobResult::Signalled(i32::from(*number))
        }
        _ => JobResult::Exited(i32::from(exit_code)),
    }
}

/// Whether a runner ended in a way that somebody will want to look into: before it had a job, or
/// without a word on how its job ended.
fn is_evidence(microvm: &Microvm) -> bool {
    matches!(&microvm.work, Work::Runner(runner) if runner.result.is_none())
        && was_unexpected(microvm)
}

/// Whether a microVM ended otherwise than the daemon wanted. One that had to be killed did.
fn was_unexpected(microvm: &Microvm) -> bool {
    microvm.ended_for.is_none() || microvm.killed.is_some()
}

/// What is wrong with the end of a runner that is evidence.
fn silence(microvm: &Microvm) -> &'static str {
    match &microvm.work {
        Work::Runner(runner) if runner.job.is_none() => "its runner ended before it had a job",
        _ => "its runner did not say how its job ended",
    }
}

/// Why the end of a runner is not a regular one, if it is not.
fn irregular(outcome: &Outcome) -> Option<String> {
    use mayfly_protocol::message::JobStatus;
    match outcome {
        Outcome::Job { status: JobStatus::Code(code), .. } => {
            let meaning = Meaning::of(*code);
            (!meaning.is_regular()).then(|| meaning.to_string())
        }
        Outcome::Job { status: JobStatus::Signal(number), .. } => {
            Some(format!("the runner was ended by signal {number}"))
        }
        Outcome::Job { status: JobStatus::NotStarted(_), .. } => match verdict(outcome, false) {
            Verdict::Failed { cause, .. } | Verdict::Again { cause } => Some(cause),
            Verdict::Finished { .. } => None,
        },
        Outcome::Failed(report) => Some(report.message.clone()),
    }
}

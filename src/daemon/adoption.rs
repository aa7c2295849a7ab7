//! Adoption: how a starting daemon continues with the microVMs, jobs and registrations of an
//! earlier daemon that ended or was killed.
//!
//! A microVM's record shows what it did, the ledger shows its assignment. Together they determine
//! what to do:
//!
//! - A job was claimed and its microVM is still ready: the job was not sent, or the command was
//!   lost. It is sent (again), which has no effect on a shepherd that has it.
//! - A runner's microVM is still ready: its JIT configuration may be lost with the daemon, or the
//!   runner may be about to start. The registration is deleted, then the microVM ends.
//! - A microVM was claimed but has no open work: the daemon ended between the ledger's change and
//!   the command to end. The microVM ends.
//! - A microVM has no events: it got no plan, or is about to. It ends.
//! - A microVM is not running: it is settled as if it had ended now.
//! - A microVM is running, but the ledger does not have it, or has it as ended: it counts in the
//!   budget and ends.
//! - Only the ledger knows a microVM, a job or a registration: it was never created, or is gone.

use super::backlog::Backlog;
use super::decide::{JobKey, MicrovmKey, Resources, Stage};
use super::error::DaemonError;
use super::event_loop::Daemon;
use super::fleet::{AssignedRunner, Assignment, FoundMicrovm, Microvm};
use super::pools::microvm_resources;
use mayfly_ledger::JobSource;
use mayfly_shepherd::event::{EventKind, Phase};
use mayfly_shepherd::plan::MicrovmId;

/// The pool name of a microVM whose pool is unknown.
const UNKNOWN: &str = "unknown";

/// The unfinished work in the ledger.
struct Unfinished {
    jobs: Vec<mayfly_ledger::JobRecord>,
    registrations: Vec<mayfly_ledger::RegistrationRecord>,
}

impl Daemon {
    /// Adopts running microVMs and settles ended ones. Must be called once, before the first
    /// decision.
    pub(super) fn adopt(&mut self) -> Result<(), DaemonError> {
        let all = self.fleet.shepherds().list();
        let all = all.map_err(|error| DaemonError::Microvms(self.state.microvms(), error))?;
        if self.ledger.is_lost() {
            tracing::error!(
                ledger = %self.state.ledger().display(),
                microvms = all.len(),
                hint = "to recover them, stop the daemon, restore a backup, and start it again",
                "the ledger was missing or empty: created a new one; waiting jobs, the audit log, \
                 and runner registrations are lost"
            );
        }
        let unfinished = Unfinished {
            jobs: self.reader().unfinished_jobs()?,
            registrations: self.reader().open_registrations()?,
        };
        self.end_never_started(&all)?;
        let mut adopted = 0;
        for found in all {
            let row = self.reader().microvm(found.id.as_str())?;
            match row {
                Some(row) if row.ended_at.is_none() => {
                    adopted += usize::from(found.is_alive);
                    self.adopt_one(&found, &row.pool, &unfinished)?;
                }
                row => self.end_unknown(&found, row.as_ref())?,
            }
        }
        for registration in &unfinished.registrations {
            self.forget(registration)?;
        }
        let fleet = &self.fleet;
        let is_served = |job| fleet.with_job(job).is_some();
        Backlog::requeue_lost(is_served, &mut self.ledger)?;
        let (backlog, mut context) = self.backlog_and_context();
        backlog.restore(&mut context)?;
        let queued = self.backlog.queued();
        if adopted > 0 || queued > 0 {
            tracing::info!(microvms = adopted, queued, "adopted microVMs and queued jobs");
        }
        Ok(())
    }

    /// Ends the microVMs that only the ledger knows.
    fn end_never_started(&mut self, all: &[FoundMicrovm]) -> Result<(), DaemonError> {
        for row in self.reader().open_microvms()? {
            let found = all.iter().find(|found| found.id.as_str() == row.id);
            if found.is_none_or(|found| !found.is_alive && found.events.is_empty()) {
                self.ledger.record_ended(&row.id, "failed", Some("it was never started"), None)?;
                // Its directory does not exist if the daemon ended before it created one.
                if let Some(id) = found.is_none().then(|| MicrovmId::parse(&row.id)).flatten() {
                    self.dispose(&id, None);
                }
            }
        }
        Ok(())
    }

    fn adopt_one(
        &mut self,
        found: &FoundMicrovm,
        pool_name: &str,
        unfinished: &Unfinished,
    ) -> Result<Option<MicrovmKey>, DaemonError> {
        let now = self.now();
        let pool = self.pools.intern(pool_name);
        // Its record has its resources; its pool may have changed since.
        let own = found.summary.as_ref().map(|(_, resources)| *resources);
        let resources = own.or_else(|| self.pools.get(pool).map(microvm_resources));
        let resources = resources.unwrap_or(Resources { processors: 1, memory: 1 << 30 });
        let assignment = assignment(found.id.as_str(), unfinished);
        let key = self.fleet.adopt(found, (pool, pool_name), resources, assignment, now);
        let _span = self.log_span(Some(key));
        for (number, event) in found.events.iter().enumerate() {
            // The end counts once nothing of it runs. Its follower waits for that.
            if found.is_alive && matches!(event.kind, EventKind::Ended(_)) {
                break;
            }
            self.handle_shepherd_event(key, number + 1, event)?;
        }
        self.fleet.follow(key, &mut self.tasks);
        if found.is_alive {
            self.resume(key, found)?;
        }
        Ok(self.fleet.get(key).map(Microvm::key))
    }

    /// Ends a microVM that the ledger does not have, or has as ended. A running one counts in the
    /// budget until it ends; of a dead one only the directory is left.
    fn end_unknown(
        &mut self,
        found: &FoundMicrovm,
        row: Option<&mayfly_ledger::MicrovmRecord>,
    ) -> Result<(), DaemonError> {
        let known = row.is_some();
        let pool = row.map_or(UNKNOWN, |row| row.pool.as_str());
        if !found.is_alive {
            if !known {
                tracing::warn!(microvm = %found.id, "removing a microVM that is not in the ledger");
            }
            // A killed daemon had settled it but not removed its directory.
            let is_evidence = row.is_some_and(|row| row.black_box.is_some());
            self.dispose(&found.id, is_evidence.then(|| pool.to_owned()));
            return Ok(());
        }
        tracing::warn!(microvm = %found.id, known, "ending a microVM: not running in the ledger");
        if row.is_none() {
            let image = found.summary.as_ref().map(|(image, _)| image.as_str()).unwrap_or_default();
            self.ledger.record_planned(found.id.as_str(), UNKNOWN, image)?;
        }
        let no_work = Unfinished { jobs: Vec::new(), registrations: Vec::new() };
        if let Some(key) = self.adopt_one(found, pool, &no_work)? {
            self.fleet.end(key, "it was not in the ledger", self.clock.now());
        }
        Ok(())
    }

    /// Continues with a running microVM where the earlier daemon stopped.
    fn resume(&mut self, key: MicrovmKey, found: &FoundMicrovm) -> Result<(), DaemonError> {
        let now = self.now();
        let Some(microvm) = self.fleet.get(key) else { return Ok(()) };
        let (stage, phase) = (microvm.stage(), microvm.phase());
        tracing::info!(%phase, "adopted the microVM");
        match microvm.assignment().clone() {
            _ if found.events.is_empty() => {
                self.fleet.end(key, "the daemon ended before it was planned", now);
            }
            Assignment::None if phase > Phase::Ready && stage == Stage::Warm => {
                self.fleet.end(key, "it lost its job when the daemon ended", now);
            }
            Assignment::Local(job) if phase == Phase::Ready => {
                self.fleet.resume_in_stage(key, Stage::Assigned, now);
                self.send_job(key, job)?;
            }
            Assignment::Local(job) if phase > Phase::Ready => {
                self.fleet.resume_in_stage(key, Stage::Assigned, now);
                self.renew_deadline(key, job, found)?;
            }
            Assignment::Runner(_) if phase == Phase::Ready => {
                self.fleet.retire(key, "its runner was lost when the daemon ended", now);
                self.deregister(key)?;
            }
            Assignment::Runner(runner) if phase > Phase::Ready => {
                self.fleet.resume_in_stage(key, Stage::Registering, now);
                let job = self.reader().job_of(found.id.as_str())?;
                if job.is_some_and(|job| job.state.is_over()) {
                    self.fleet.record_job_completed(&runner.name, now);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn renew_deadline(
        &mut self,
        key: MicrovmKey,
        job: JobKey,
        found: &FoundMicrovm,
    ) -> Result<(), DaemonError> {
        let known = self.find_job(job)?;
        let timeout = known.as_ref().and_then(|job| job.command.as_ref()?.timeout);
        let started = known.and_then(|job| job.started_at.or(job.claimed_at));
        // The host's clock may have been set since; the shepherd's record does not depend on it.
        let since = match (found.ran_for, started) {
            (Some(ran), _) => self.clock.before_now(ran),
            (None, Some(started)) => self.clock.at_wall_time(started.into()),
            (None, None) => self.now(),
        };
        self.fleet.set_deadline(key, timeout.map(|timeout| since + timeout));
        Ok(())
    }

    /// Has a registration removed if its microVM is gone.
    fn forget(
        &mut self,
        registration: &mayfly_ledger::RegistrationRecord,
    ) -> Result<(), DaemonError> {
        let name = &registration.name;
        let known = self.reader().registration(name)?;
        let open =
            known.is_some_and(|known| known.state != mayfly_ledger::RegistrationState::Deleted);
        if open && self.fleet.with_runner(name).is_none() {
            self.registry.remove(name, registration.runner_id, &self.ledger, self.clock.now())?;
        }
        Ok(())
    }
}

fn assignment(microvm: &str, unfinished: &Unfinished) -> Assignment {
    let job = unfinished
        .jobs
        .iter()
        .find(|job| job.source == JobSource::Local && job.microvm.as_deref() == Some(microvm));
    if let Some(job) = job {
        return Assignment::Local(JobKey(job.id.0));
    }
    let open = unfinished.registrations.iter().rev();
    let mut open = open.filter(|registration| registration.microvm == microvm);
    open.next().map_or(Assignment::None, |registration| {
        Assignment::Runner(AssignedRunner {
            name: registration.name.clone(),
            id: registration.runner_id,
            job: None,
            result: None,
        })
    })
}

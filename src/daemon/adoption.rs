//! Coming back: what a daemon that was killed, or ended, left running and half done.
//!
//! What a microVM did is in its record, what it was meant for in the ledger; where both are read,
//! nothing has to be guessed:
//!
//! - a job that was claimed and whose microVM is still ready was not handed over, or the order was
//!   lost: it is handed over (again), which has no effect on a shepherd that has it;
//! - a runner whose microVM is still ready may have lost its JIT configuration with the daemon, or
//!   be about to start: the registration has to go, then the microVM;
//! - a microVM that was claimed and has no open work has lost it to the end of the daemon, between
//!   the ledger and the order to end: it is ended;
//! - a microVM without any event got no plan, or is about to: it is ended;
//! - a microVM that is no more is settled as if it had ended now;
//! - a microVM that lives and that the ledger does not have, or has as ended, is counted and ended;
//! - a microVM, a job or a registration that only the ledger knows never came to be, or is gone.

use super::backlog::Backlog;
use super::decide::{JobKey, Load, MachineKey, Stage};
use super::error::DaemonError;
use super::fleet::{Left, Microvm, Runner, Work};
use super::pools::load;
use super::running::Daemon;
use crate::ledger::{self, Source};
use crate::shepherd::event::{Happened, Phase};
use crate::shepherd::plan::Id;

/// The pool of a microVM of which none is known.
const UNKNOWN: &str = "unknown";

/// What the ledger knows of unfinished work.
struct Unfinished {
    jobs: Vec<ledger::Job>,
    registrations: Vec<ledger::Registration>,
}

impl Daemon {
    /// Takes back what lives, settles what does not. To be called once, before anything is decided.
    pub(super) fn adopt(&mut self) -> Result<(), DaemonError> {
        let all = self.fleet.shepherds().list();
        let all = all.map_err(|error| DaemonError::Microvms(self.state.microvms(), error))?;
        if self.ledger.is_lost() {
            tracing::error!(
                ledger = %self.state.ledger().display(),
                microvms = all.len(),
                "the ledger is gone or was empty, and a new one is begun: jobs that waited, the audit \
                 log and the names of runners at GitHub are lost; put a copy back before the next \
                 start to have them again"
            );
        }
        let unfinished = Unfinished {
            jobs: self.reader().unfinished()?,
            registrations: self.reader().open_registrations()?,
        };
        self.never_came_to_be(&all)?;
        let mut adopted = 0;
        for left in all {
            let row = self.reader().microvm(left.id.as_str())?;
            match row {
                Some(row) if row.ended_at.is_none() => {
                    adopted += usize::from(left.living);
                    self.adopt_one(&left, &row.pool, &unfinished)?;
                }
                row => self.end_unknown(&left, row.as_ref())?,
            }
        }
        for registration in &unfinished.registrations {
            self.forget(registration)?;
        }
        let fleet = &self.fleet;
        let is_served = |job| fleet.with_job(job).is_some();
        Backlog::requeue_lost(is_served, &mut self.ledger)?;
        let (backlog, mut desk) = self.desk();
        backlog.take_back(&mut desk)?;
        let queued = self.backlog.queued();
        if adopted > 0 || queued > 0 {
            tracing::info!(microvms = adopted, queued, "taken back");
        }
        Ok(())
    }

    /// Those that only the ledger knows.
    fn never_came_to_be(&mut self, all: &[Left]) -> Result<(), DaemonError> {
        for row in self.reader().living()? {
            let left = all.iter().find(|left| left.id.as_str() == row.id);
            if left.is_none_or(|left| !left.living && left.events.is_empty()) {
                self.ledger.ended(&row.id, "failed", Some("it never came to be"), None)?;
                // There is no directory where the daemon did not come so far.
                if let Some(id) = left.is_none().then(|| Id::parse(&row.id)).flatten() {
                    self.put_away(&id, None);
                }
            }
        }
        Ok(())
    }

    fn adopt_one(
        &mut self,
        left: &Left,
        pool_name: &str,
        unfinished: &Unfinished,
    ) -> Result<Option<MachineKey>, DaemonError> {
        let now = self.now();
        let pool = self.pools.name(pool_name);
        // What it takes is in its record, whatever its pool is by now.
        let own = left.summary.as_ref().map(|(_, load)| *load);
        let load = own.or_else(|| self.pools.get(pool).map(load));
        let load = load.unwrap_or(Load { processors: 1, memory: 1 << 30 });
        let work = work(left.id.as_str(), unfinished);
        let key = self.fleet.take_back(left, (pool, pool_name), load, work, now);
        let _about = self.about(Some(key));
        for (number, event) in left.events.iter().enumerate() {
            // The end counts once nothing is left, which is waited for elsewhere.
            if left.living && matches!(event.happened, Happened::Ended(_)) {
                break;
            }
            self.event(key, number + 1, event)?;
        }
        self.fleet.follow(key, &mut self.tasks);
        if left.living {
            self.resume(key, left)?;
        }
        Ok(self.fleet.get(key).map(Microvm::key))
    }

    /// A microVM that the ledger does not have, or has as ended: one that lives counts in the budget
    /// until it is ended; of one that does not only its directory is left.
    fn end_unknown(
        &mut self,
        left: &Left,
        row: Option<&ledger::Microvm>,
    ) -> Result<(), DaemonError> {
        let known = row.is_some();
        let pool = row.map_or(UNKNOWN, |row| row.pool.as_str());
        if !left.living {
            if !known {
                tracing::warn!(microvm = %left.id, "the ledger has no such microVM: removed");
            }
            // What a daemon that was killed had settled, but not put away.
            let is_evidence = row.is_some_and(|row| row.black_box.is_some());
            self.put_away(&left.id, is_evidence.then(|| pool.to_owned()));
            return Ok(());
        }
        tracing::warn!(microvm = %left.id, known, "it lives against the ledger's word: ended");
        if row.is_none() {
            let image = left.summary.as_ref().map(|(image, _)| image.as_str()).unwrap_or_default();
            self.ledger.planned(left.id.as_str(), UNKNOWN, image)?;
        }
        let nothing = Unfinished { jobs: Vec::new(), registrations: Vec::new() };
        if let Some(key) = self.adopt_one(left, pool, &nothing)? {
            self.fleet.end(key, "the ledger does not know it", self.clock.now());
        }
        Ok(())
    }

    /// Goes on with a living microVM where the daemon before left it.
    fn resume(&mut self, key: MachineKey, left: &Left) -> Result<(), DaemonError> {
        let now = self.now();
        let Some(microvm) = self.fleet.get(key) else { return Ok(()) };
        let (stage, phase) = (microvm.stage(), microvm.phase());
        tracing::info!(%phase, "taken back");
        match microvm.work().clone() {
            _ if left.events.is_empty() => {
                self.fleet.end(key, "the daemon ended before it had a plan", now);
            }
            Work::None if phase > Phase::Ready && stage == Stage::Warm => {
                self.fleet.end(key, "it has no job any more", now);
            }
            Work::Local(job) if phase == Phase::Ready => {
                self.fleet.resume_at(key, Stage::Assigned, now);
                self.hand_over(key, job)?;
            }
            Work::Local(job) if phase > Phase::Ready => {
                self.fleet.resume_at(key, Stage::Assigned, now);
                self.renew_deadline(key, job, left)?;
            }
            Work::Runner(_) if phase == Phase::Ready => {
                self.fleet.retire(key, "its runner was lost with the daemon", now);
                self.deregister(key)?;
            }
            Work::Runner(runner) if phase > Phase::Ready => {
                self.fleet.resume_at(key, Stage::Registering, now);
                let job = self.reader().job_of(left.id.as_str())?;
                if job.is_some_and(|job| job.state.is_over()) {
                    self.fleet.had_job(&runner.name, now);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn renew_deadline(
        &mut self,
        key: MachineKey,
        job: JobKey,
        left: &Left,
    ) -> Result<(), DaemonError> {
        let known = self.known(job)?;
        let timeout = known.as_ref().and_then(|job| job.command.as_ref()?.timeout);
        let begun = known.and_then(|job| job.started_at.or(job.claimed_at));
        // The host's clock may have been set since; what its shepherd recorded does not depend on it.
        let since = match (left.ran, begun) {
            (Some(ran), _) => self.clock.ago(ran),
            (None, Some(begun)) => self.clock.at(begun.into()),
            (None, None) => self.now(),
        };
        self.fleet.set_deadline(key, timeout.map(|timeout| since + timeout));
        Ok(())
    }

    /// A registration whose microVM is gone has to go.
    fn forget(&mut self, registration: &ledger::Registration) -> Result<(), DaemonError> {
        let name = &registration.name;
        let known = self.reader().registration(name)?;
        let open = known.is_some_and(|known| known.state != ledger::RegistrationState::Deleted);
        if open && self.fleet.with_runner(name).is_none() {
            self.registry.remove(name, registration.runner_id, &self.ledger, self.clock.now())?;
        }
        Ok(())
    }
}

fn work(microvm: &str, unfinished: &Unfinished) -> Work {
    let job = unfinished
        .jobs
        .iter()
        .find(|job| job.source == Source::Local && job.microvm.as_deref() == Some(microvm));
    if let Some(job) = job {
        return Work::Local(JobKey(job.id.0));
    }
    let open = unfinished.registrations.iter().rev();
    let mut open = open.filter(|registration| registration.microvm == microvm);
    open.next().map_or(Work::None, |registration| {
        Work::Runner(Runner {
            name: registration.name.clone(),
            id: registration.runner_id,
            job: None,
            result: None,
        })
    })
}

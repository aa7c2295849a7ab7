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

use super::decide::{JobKey, Load, MachineKey, Stage};
use super::error::DaemonError;
use super::following::{self, ERRANDS};
use super::microvm::{Microvm, Runner, Work};
use super::world::{Held, Queued, World};
use crate::failure::Code;
use crate::ledger::{self, JobState, RegistrationState, Source};
use crate::shepherd::event::{Happened, Phase};
use crate::shepherd::plan::Order;
use crate::shepherd::record::{self, Found};

/// Why a local job can't be served any more.
pub(super) const NO_POOL: &str = "its pool is no longer configured";

/// The pool of a microVM of which none is known.
const UNKNOWN: &str = "unknown";

/// What the ledger knows of unfinished work.
struct Unfinished {
    jobs: Vec<ledger::Job>,
    registrations: Vec<ledger::Registration>,
}

impl World {
    /// Takes back what lives, settles what does not. To be called once, before anything is decided.
    pub(super) fn adopt(&mut self) -> Result<(), DaemonError> {
        let microvms = self.state.microvms();
        let found = record::owned(&microvms)
            .map_err(|error| DaemonError::Microvms(microvms.clone(), error))?;
        if self.ledger.is_lost() {
            tracing::error!(
                ledger = %self.state.ledger().display(),
                microvms = found.len(),
                "the ledger is gone or was empty, and a new one is begun: jobs that waited, the audit \
                 log and the names of runners at GitHub are lost; put a copy back before the next \
                 start to have them again"
            );
        }
        let unfinished = Unfinished {
            jobs: self.ledger.reader().unfinished()?,
            registrations: self.ledger.reader().open_registrations()?,
        };
        let known = self.ledger.reader().living()?;
        for row in &known {
            let found = found.iter().find(|found| found.id.as_str() == row.id);
            if found.is_none_or(|found| !found.living && found.events.is_empty()) {
                self.ledger.ended(&row.id, "failed", Some("it never came to be"), None)?;
                // There is none where the daemon did not come so far.
                let _ = record::collect(&microvms.join(&row.id));
            }
        }
        let mut adopted = 0;
        for found in found {
            let row = self.ledger.reader().microvm(found.id.as_str())?;
            match row {
                Some(row) if row.ended_at.is_none() => {
                    adopted += usize::from(found.living);
                    self.adopt_one(&found, &row.pool, &unfinished)?;
                }
                row => self.end_unknown(&found, row.as_ref())?,
            }
        }
        self.forget_registrations(&unfinished)?;
        self.requeue_lost(&unfinished)?;
        self.seed_demand()?;
        for job in self.ledger.reader().queued_local()? {
            let Some(pool) = job.pool.as_deref().and_then(|pool| self.pool_named(pool)) else {
                self.ledger.fail(job.id, NO_POOL, Some(Code::BadConfiguration as u8))?;
                continue;
            };
            let since = self.clock.at(job.queued_at.into());
            self.enqueue(Queued { job: JobKey(job.id.0), pool, since });
        }
        if adopted > 0 || !self.queue.is_empty() {
            tracing::info!(microvms = adopted, queued = self.queue.len(), "taken back");
        }
        Ok(())
    }

    fn adopt_one(
        &mut self,
        found: &Found,
        pool_name: &str,
        unfinished: &Unfinished,
    ) -> Result<(), DaemonError> {
        let (key, now) = (self.key(), self.now());
        let pool = self.pool_named(pool_name);
        // What it takes is in its directory, whatever its pool is by now.
        let own = record::summary(&found.directory).ok().flatten();
        let own = own.map(|own| Load { processors: own.processors, memory: own.memory.0 });
        let its = || pool.and_then(|pool| self.pools.get(pool)).map(super::pools::Pool::load);
        let load = own.or_else(its).unwrap_or(Load { processors: 1, memory: 1 << 30 });
        let mut microvm = Microvm::new(key, pool, pool_name, load, now);
        microvm.id = Some(found.id.clone());
        microvm.work = work(found.id.as_str(), unfinished);
        let (errands, received) = tokio::sync::mpsc::channel(ERRANDS);
        self.microvms.insert(key, Held { microvm, errands: Some(errands) });
        let _about = self.about(Some(key));
        for (number, event) in found.events.iter().enumerate() {
            // The end counts once nothing is left, which is waited for elsewhere.
            if found.living && matches!(event.happened, Happened::Ended(_)) {
                break;
            }
            self.event(key, number + 1, event)?;
        }
        if self.microvms.contains_key(&key) {
            let to = self.happenings.clone();
            self.tasks.spawn(following::adopt(found.directory.clone(), key, received, to));
            if found.living {
                self.resume(key, found)?;
            }
        }
        Ok(())
    }

    /// A microVM that the ledger does not have, or has as ended: one that lives counts in the budget
    /// until it is ended; of one that does not only its directory is left.
    fn end_unknown(
        &mut self,
        found: &Found,
        row: Option<&ledger::Microvm>,
    ) -> Result<(), DaemonError> {
        let known = row.is_some();
        if !found.living {
            if !known {
                tracing::warn!(microvm = %found.id, "the ledger has no such microVM: removed");
            }
            let pool = row.map_or(UNKNOWN, |row| row.pool.as_str());
            put_away(found, pool, row.is_some_and(|row| row.black_box.is_some()));
            return Ok(());
        }
        tracing::warn!(microvm = %found.id, known, "it lives against the ledger's word: ended");
        if row.is_none() {
            let summary = record::summary(&found.directory).ok().flatten();
            let image = summary.map(|summary| summary.image).unwrap_or_default();
            self.ledger.planned(found.id.as_str(), UNKNOWN, &image)?;
        }
        let nothing = Unfinished { jobs: Vec::new(), registrations: Vec::new() };
        let pool = row.map_or(UNKNOWN, |row| row.pool.as_str());
        self.adopt_one(found, pool, &nothing)?;
        let its = self.microvms.values().find(|held| held.microvm.id.as_ref() == Some(&found.id));
        if let Some(key) = its.map(|held| held.microvm.key) {
            self.end(key, "the ledger does not know it");
        }
        Ok(())
    }

    /// Goes on with a living microVM where the daemon before left it.
    fn resume(&mut self, key: MachineKey, found: &Found) -> Result<(), DaemonError> {
        let now = self.now();
        let Some(microvm) = self.microvm(key) else { return Ok(()) };
        let claimed = microvm.phase > Phase::Ready;
        let is_ready = microvm.phase == Phase::Ready;
        tracing::info!(phase = %microvm.phase, "taken back");
        match microvm.work.clone() {
            _ if found.events.is_empty() => self.end(key, "the daemon ended before it had a plan"),
            Work::None if claimed && microvm.stage == Stage::Warm => {
                self.end(key, "it has no job any more");
            }
            Work::Local(job) if is_ready => {
                microvm.enter(Stage::Assigned, now);
                self.hand_over(key, job)?;
            }
            Work::Local(job) if claimed => {
                if microvm.stage == Stage::Booting {
                    microvm.enter(Stage::Assigned, now);
                }
                self.renew_deadline(key, job, found)?;
            }
            Work::Runner(runner) if is_ready => {
                microvm.ended_for = Some("its runner was lost with the daemon".to_owned());
                microvm.enter(Stage::Ending, now);
                let pool = microvm.pool;
                self.removals.add(&runner.name, pool, runner.id, now);
            }
            Work::Runner(_) if claimed => {
                if microvm.stage == Stage::Booting {
                    microvm.enter(Stage::Registering, now);
                }
                let job = self.ledger.reader().job_of(found.id.as_str())?;
                if let (Some(microvm), true) =
                    (self.microvm(key), job.is_some_and(|job| job.state.is_over()))
                {
                    microvm.completed = Some(now);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Ends a microVM.
    fn end(&mut self, key: MachineKey, why: &str) {
        let now = self.now();
        if let Some(microvm) = self.microvm(key) {
            microvm.ended_for = Some(why.to_owned());
            microvm.enter(Stage::Ending, now);
        }
        self.order(key, Order::End);
    }

    fn renew_deadline(
        &mut self,
        key: MachineKey,
        job: JobKey,
        found: &Found,
    ) -> Result<(), DaemonError> {
        let known = self.known(job)?;
        let timeout = known.as_ref().and_then(|job| job.command.as_ref()?.timeout);
        let begun = known.and_then(|job| job.started_at.or(job.claimed_at));
        // The host's clock may have been set since; what its shepherd recorded does not depend on it.
        let mut phases = [Phase::Running, Phase::Claimed].into_iter();
        let ran = phases.find_map(|phase| record::ago(found, phase));
        let since = match (ran, begun) {
            (Some(ran), _) => self.clock.ago(ran),
            (None, Some(begun)) => self.clock.at(begun.into()),
            (None, None) => self.now(),
        };
        if let Some(microvm) = self.microvm(key) {
            microvm.deadline = timeout.map(|timeout| since + timeout);
        }
        Ok(())
    }

    /// Registrations whose microVM is gone have to go.
    fn forget_registrations(&mut self, unfinished: &Unfinished) -> Result<(), DaemonError> {
        let now = self.now();
        for registration in &unfinished.registrations {
            let known = self.ledger.reader().registration(&registration.name)?;
            let open = known.is_some_and(|known| known.state != RegistrationState::Deleted);
            if open && self.with_runner(&registration.name).is_none() {
                let pool = self.pool_named(&registration.pool);
                self.removals.add(&registration.name, pool, registration.runner_id, now);
            }
        }
        Ok(())
    }

    /// Jobs that were claimed for a microVM that nobody knows any more.
    fn requeue_lost(&mut self, unfinished: &Unfinished) -> Result<(), DaemonError> {
        for job in &unfinished.jobs {
            if job.source != Source::Local || self.with_job(JobKey(job.id.0)).is_some() {
                continue;
            }
            // What was settled in the meantime is no longer claimed or running.
            let Some(job) = self.ledger.reader().job(job.id)? else { continue };
            match job.state {
                JobState::Claimed => {
                    self.ledger.requeue(job.id, "its microVM never came to be")?;
                }
                JobState::Running => {
                    let code = Some(Code::MachineFailed as u8);
                    self.ledger.fail(job.id, "its microVM is gone", code)?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// What a daemon that was killed had settled, but not put away.
fn put_away(found: &Found, pool: &str, is_evidence: bool) {
    let done = if is_evidence {
        record::keep(&found.directory, pool)
    } else {
        record::collect(&found.directory)
    };
    if let Err(error) = done {
        tracing::warn!(microvm = %found.id, "can't put away its directory: {error}");
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

//! The fleet: every microVM that is not gone, and the way to its shepherd.
//!
//! Owns the microVMs ([`microvm`]), how each is told to end ([`ends`]), when it is ended or killed by
//! the daemon itself ([`overdue`]),
//! the tasks that hold shepherds ([`following`]), and the seam to these ([`shepherds`]); of the
//! ledger the microVMs, their phases and what they reached. What a microVM's job is worth is not
//! known here.

mod ends;
mod following;
mod microvm;
#[cfg(test)]
mod microvm_tests;
mod overdue;
mod processes;
mod shepherds;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::decide::{Blocker, JobKey, Load, Machine, MachineKey, Obstacle, PoolId, Stage};
use super::error::DaemonError;
use super::happening::Happening;
use super::millis::Millis;
use super::pools::Troubles;
use super::tasks::Tasks;
use crate::forge::Registered;
use crate::ledger::{self, Ledger, Reader};
use crate::shepherd::cause::Cause;
use crate::shepherd::event::{Event, Happened, Outcome};
use crate::shepherd::plan::{Id, Order, Plan};
use crate::shepherd::planner::Wanted;
use crate::telemetry::log;
use following::{ERRANDS, Errand, Ways};
pub(super) use microvm::{Microvm, News, Runner, Verdict, Work, verdict};
use overdue::Patience;
pub(super) use processes::Processes;
pub(super) use shepherds::{Left, NotPlanned, Shepherds};
#[cfg(test)]
pub(super) use shepherds::{Shepherd, Unacknowledged};

/// How long planning may take whatever happens: it hashes an image that was not verified yet.
const PLAN: Duration = Duration::from_secs(15 * 60);

/// The microVMs, and what stands in the way of more.
pub(super) struct Fleet {
    shepherds: Arc<dyn Shepherds>,
    microvms: BTreeMap<MachineKey, Held>,
    keys: u64,
    boots: Troubles,
}

/// A microVM with the way to its shepherd.
struct Held {
    microvm: Microvm,
    errands: Option<mpsc::Sender<Errand>>,
    /// How it ended, while what its job wrote is being kept.
    over: Option<Outcome>,
}

/// An event that was news, and which microVM told it.
pub(super) struct Told {
    pub(super) id: Id,
    pub(super) pool: PoolId,
    pub(super) work: Work,
    pub(super) news: News,
}

impl Fleet {
    pub(super) fn new(shepherds: Arc<dyn Shepherds>) -> Self {
        let (microvms, boots) = (BTreeMap::new(), Troubles::default());
        Self { shepherds, microvms, keys: 0, boots }
    }

    pub(super) fn shepherds(&self) -> &Arc<dyn Shepherds> {
        &self.shepherds
    }

    pub(super) fn get(&self, key: MachineKey) -> Option<&Microvm> {
        self.microvms.get(&key).map(|held| &held.microvm)
    }

    fn get_mut(&mut self, key: MachineKey) -> Option<&mut Microvm> {
        self.microvms.get_mut(&key).map(|held| &mut held.microvm)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Microvm> {
        self.microvms.values().map(|held| &held.microvm)
    }

    pub(super) fn len(&self) -> usize {
        self.microvms.len()
    }

    /// What the decisions see.
    pub(super) fn machines(&self) -> Vec<Machine> {
        self.iter().map(Microvm::machine).collect()
    }

    /// What all of them take of the host.
    pub(super) fn used(&self) -> Load {
        self.iter().map(Microvm::load).fold(Load::default(), Load::plus)
    }

    /// How many have a job.
    pub(super) fn running(&self) -> usize {
        self.iter().filter(|one| matches!(one.stage(), Stage::Assigned | Stage::Busy)).count()
    }

    /// The one that has that runner.
    pub(super) fn with_runner(&self, name: &str) -> Option<&Microvm> {
        self.iter().find(|one| one.runner().is_some_and(|runner| runner.name == name))
    }

    /// The one that has that local job.
    pub(super) fn with_job(&self, job: JobKey) -> Option<&Microvm> {
        self.iter().find(|one| *one.work() == Work::Local(job))
    }

    /// Tries all pools again: what kept one from booting may be mended.
    pub(super) fn try_again(&mut self) {
        self.boots = Troubles::default();
    }

    /// Why nothing of a pool can be booted.
    pub(super) fn obstacle(&self, pool: PoolId) -> Option<Obstacle> {
        self.boots.obstacle(pool)
    }

    /// What the log says from here on, until what is returned is dropped, is about a microVM and
    /// the job that it has.
    pub(super) fn about(
        &self,
        key: Option<MachineKey>,
        reader: &Reader,
    ) -> Option<tracing::span::EnteredSpan> {
        let microvm = self.get(key?)?;
        let id = microvm.id().map(Id::as_str);
        let job = match microvm.work() {
            Work::None => None,
            Work::Local(job) => Some(job.0),
            // A ledger that can't be read shows itself where it matters.
            Work::Runner(_) => id.and_then(|id| Some(reader.job_of(id).ok()??.id.0)),
        };
        let runner = microvm.runner().map(|runner| runner.name.as_str());
        let pool = Some(microvm.pool_name());
        Some(log::about(log::Subject { microvm: id, job, pool, runner }))
    }

    fn add(&mut self, microvm: impl FnOnce(MachineKey) -> Microvm) -> MachineKey {
        self.keys += 1;
        let key = MachineKey(self.keys);
        let held = Held { microvm: microvm(key), errands: None, over: None };
        self.microvms.insert(key, held);
        key
    }

    /// Plans a microVM; it is booted once it is planned and in the ledger.
    pub(super) fn plan(
        &mut self,
        pool: (PoolId, &str),
        load: Load,
        wanted: Wanted,
        now: Millis,
        tasks: &mut Tasks,
    ) {
        let key = self.add(|key| Microvm::new(key, pool.0, pool.1, load, now));
        let planned = tokio::time::timeout(PLAN, self.shepherds.plan(wanted));
        tasks.report(async move {
            let late = |_| Err(NotPlanned { image: false, why: "no plan came in time".to_owned() });
            Happening::Planned(key, planned.await.unwrap_or_else(late))
        });
    }

    /// Starts the shepherd of a planned microVM.
    pub(super) fn start(
        &mut self,
        key: MachineKey,
        plan: Plan,
        ledger: &mut Ledger,
        tasks: &mut Tasks,
    ) -> Result<(), DaemonError> {
        let Some(held) = self.microvms.get_mut(&key) else { return Ok(()) };
        if held.microvm.stage == Stage::Ending {
            // It was retired before it began.
            self.microvms.remove(&key);
            return Ok(());
        }
        ledger.planned(plan.id.as_str(), &held.microvm.pool_name, &plan.image)?;
        held.microvm.id = Some(plan.id.clone());
        held.microvm.patience = Patience {
            boot: plan.deadlines.prepare + plan.deadlines.boot,
            idle: plan.deadlines.idle,
            job: plan.deadlines.job,
            farewell: plan.deadlines.farewell,
        };
        let (sender, errands) = mpsc::channel(ERRANDS);
        held.errands = Some(sender);
        let ways = Ways { key, errands, to: tasks.way() };
        tasks.spawn(following::boot(self.shepherds.clone(), plan, ways));
        Ok(())
    }

    /// One did not come so far that it has a shepherd.
    pub(super) fn not_booted(
        &mut self,
        key: MachineKey,
        why: Blocker,
        ledger: &mut Ledger,
        now: Millis,
    ) -> Result<(), DaemonError> {
        let Some(held) = self.microvms.remove(&key) else { return Ok(()) };
        tracing::warn!("{why}");
        if let Some(id) = &held.microvm.id {
            ledger.ended(id.as_str(), "failed", Some(&why.to_string()), None)?;
        }
        self.boots.failed(held.microvm.pool, why, now);
        Ok(())
    }

    /// One of a daemon before this one. To be followed once its record was heard.
    pub(super) fn take_back(
        &mut self,
        left: &Left,
        pool: (PoolId, &str),
        load: Load,
        work: Work,
        now: Millis,
    ) -> MachineKey {
        self.add(|key| {
            let mut microvm = Microvm::new(key, pool.0, pool.1, load, now);
            (microvm.id, microvm.work) = (Some(left.id.clone()), work);
            microvm
        })
    }

    /// Follows one that was taken back, unless it is over by its record.
    pub(super) fn follow(&mut self, key: MachineKey, tasks: &mut Tasks) {
        let Some(held) = self.microvms.get_mut(&key) else { return };
        let Some(id) = held.microvm.id.clone().filter(|_| held.over.is_none()) else { return };
        let (sender, errands) = mpsc::channel(ERRANDS);
        held.errands = Some(sender);
        let ways = Ways { key, errands, to: tasks.way() };
        tasks.spawn(following::adopt(self.shepherds.clone(), id, ways));
    }

    /// Takes in an event, and writes it down. None where it is no news.
    pub(super) fn hear(
        &mut self,
        key: MachineKey,
        number: usize,
        event: &Event,
        ledger: &mut Ledger,
        now: Millis,
    ) -> Result<Option<Told>, DaemonError> {
        let Some(held) = self.microvms.get_mut(&key) else { return Ok(None) };
        if number <= held.microvm.heard || held.over.is_some() {
            return Ok(None);
        }
        let news = held.microvm.hear(event, now);
        let id = event.microvm.as_str();
        match &event.happened {
            Happened::Phase(phase) => {
                ledger.transition(id, &phase_of(number, event, &phase.to_string()))?;
            }
            Happened::Egress(report) => ledger.note_egress(id, &microvm::egress(report))?,
            Happened::Interrupted(farewell) => {
                tracing::info!("its job is told to end: {}", farewell.why);
                let phase = phase_of(number, event, "interrupted");
                ledger.interrupted(id, &phase, &farewell.why, farewell.within)?;
            }
            _ => {}
        }
        let Microvm { pool, work, .. } = &held.microvm;
        let told = Told { id: event.microvm.clone(), pool: *pool, work: work.clone(), news };
        match &told.news {
            News::Warm => self.boots.worked(told.pool),
            News::Ended(outcome) => held.over = Some((**outcome).clone()),
            _ => {}
        }
        Ok(Some(told))
    }

    /// One that is over leaves the fleet, with how it ended.
    pub(super) fn leave(&mut self, key: MachineKey) -> Option<(Microvm, Outcome)> {
        let outcome = self.microvms.get_mut(&key)?.over.take()?;
        let mut held = self.microvms.remove(&key)?;
        let told = Cause::Ended.name();
        held.microvm.obeyed = matches!(&outcome, Outcome::Failed(report) if report.cause == told);
        Some((held.microvm, outcome))
    }

    /// The boot of one that left the fleet had failed.
    pub(super) fn boot_failed(&mut self, pool: PoolId, why: String, now: Millis) {
        self.boots.failed(pool, Blocker::BootsFail(why), now);
    }

    /// Gives work to one that is warm, or takes it back.
    pub(super) fn give(&mut self, key: MachineKey, work: Work, stage: Stage, now: Millis) {
        if let Some(microvm) = self.get_mut(key) {
            microvm.work = work;
            microvm.enter(stage, now);
        }
    }

    /// Its registration came to nothing: it is warm again.
    pub(super) fn unregister(&mut self, key: MachineKey, now: Millis) {
        if self.get(key).is_some_and(|microvm| microvm.stage() == Stage::Registering) {
            self.give(key, Work::None, Stage::Warm, now);
        }
    }

    /// Its runner has a number. Whether it still waits for what starts that runner.
    pub(super) fn registered(&mut self, key: MachineKey, name: &str, made: &Registered) -> bool {
        let Some(microvm) = self.get_mut(key) else { return false };
        match &mut microvm.work {
            Work::Runner(runner) if runner.name == name => {
                runner.id = Some(made.number);
                microvm.stage == Stage::Registering
            }
            _ => false,
        }
    }

    /// One that was taken back goes on in that stage, if its record tells of no later one.
    pub(super) fn resume_at(&mut self, key: MachineKey, stage: Stage, now: Millis) {
        let early = [Stage::Booting, Stage::Warm];
        if let Some(microvm) = self.get_mut(key).filter(|one| early.contains(&one.stage)) {
            microvm.enter(stage, now);
        }
    }

    /// When its local job is to be ended.
    pub(super) fn set_deadline(&mut self, key: MachineKey, deadline: Option<Millis>) {
        if let Some(microvm) = self.get_mut(key) {
            microvm.deadline = deadline;
        }
    }

    /// The word of the forge on which job a runner has. Gives whose runner it is.
    pub(super) fn has_job(&mut self, runner: &str, job: &str, now: Millis) -> Option<PoolId> {
        let key = self.with_runner(runner)?.key;
        let microvm = self.get_mut(key)?;
        microvm.has_job(job, now);
        Some(microvm.pool)
    }

    /// The job of a runner is over: its microVM has a time of grace to end by itself.
    pub(super) fn had_job(&mut self, runner: &str, now: Millis) {
        let Some(key) = self.with_runner(runner).map(Microvm::key) else { return };
        if let Some(microvm) = self.get_mut(key) {
            microvm.completed.get_or_insert(now);
        }
    }

    /// The runner of one that was being retired has a job: it stays.
    pub(super) fn stays(&mut self, key: MachineKey, now: Millis) {
        if let Some(microvm) = self.get_mut(key) {
            microvm.ended_for = None;
            microvm.enter(Stage::Busy, now);
        }
    }

    /// Gives an order to a shepherd.
    pub(super) fn order(&self, key: MachineKey, order: Order) {
        self.errand(key, Errand::Order(order));
    }

    /// Wants something of a shepherd. One whose task has ended is about to be told as ended.
    fn errand(&self, key: MachineKey, errand: Errand) {
        if let Some(held) = self.microvms.get(&key)
            && let Some(errands) = &held.errands
            && errands.try_send(errand).is_err()
        {
            let microvm = held.microvm.id().map(Id::as_str);
            tracing::warn!(microvm, "an errand to a shepherd found nobody");
        }
    }

    /// Lets go of all of them: those that follow shepherds end, shepherds don't.
    pub(super) fn let_go(&mut self) {
        self.microvms.clear();
    }
}

/// What the ledger keeps of an event with which something began.
fn phase_of(number: usize, event: &Event, phase: &str) -> ledger::Phase {
    let at = humantime::parse_rfc3339(&event.time);
    ledger::Phase {
        event: number as u64,
        phase: phase.to_owned(),
        elapsed_ms: event.elapsed_ms,
        at: at.unwrap_or_else(|_| std::time::SystemTime::now()).into(),
    }
}

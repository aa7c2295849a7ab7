//! Everything that the loop owns, and one round of it: look, decide, act.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::clock::Clock;
use super::decide::{self, JobKey, Load, MachineKey, Obstacle, Stage, View, Waiting};
use super::demand::Demand;
use super::error::DaemonError;
use super::following::Errand;
use super::happening::Happening;
use super::microvm::{Microvm, Work};
use super::millis::Millis;
use super::observing::Observer;
use super::pools::Pool;
use super::readiness::Heard;
use super::registrar::GitHub;
use super::registrations::Removals;
use super::scale_sets::Sets;
use crate::api::server::SocketFile;
use crate::config::Settings;
use crate::host::state::StateDirectory;
use crate::ledger::{self, Ledger};
use crate::shepherd::plan::Order;

/// What the loop owns.
pub(super) struct World {
    pub(super) settings: Settings,
    pub(super) state: StateDirectory,
    /// Mayfly's executable, as shepherds are started.
    pub(super) program: PathBuf,
    pub(super) ledger: Ledger,
    pub(super) clock: Clock,
    pub(super) pools: Vec<Pool>,
    pub(super) microvms: BTreeMap<MachineKey, Held>,
    /// Local jobs that wait, the oldest first.
    pub(super) queue: VecDeque<Queued>,
    pub(super) demand: Demand,
    pub(super) github: Option<GitHub>,
    /// How the names of this daemon's runners begin.
    pub(super) prefix: String,
    pub(super) removals: Removals,
    /// When the scope's runners are listed next; none while they are.
    pub(super) next_list: Option<Millis>,
    /// When old records are forgotten next.
    pub(super) next_forgetting: Millis,
    /// Bytes of what is kept of jobs that are over.
    pub(super) log_bytes: u64,
    /// Runners of ours that the last list did not have.
    pub(super) missed: Vec<String>,
    /// Why each pool's jobs wait, by the last decision.
    pub(super) blockers: Vec<Option<Obstacle>>,
    pub(super) draining: Option<Drain>,
    /// The scale sets of pools that have one.
    pub(super) sets: Sets,
    /// When GitHub last answered, and last did not.
    pub(super) github_heard: Heard,
    /// Whether anything that the API shows has changed since that was last told.
    pub(super) changed: bool,
    /// Counts such changes, for those who look on.
    pub(super) changes: watch::Sender<u64>,
    /// What measures.
    pub(super) observer: Observer,
    pub(super) happenings: mpsc::Sender<Happening>,
    pub(super) tasks: JoinSet<()>,
    pub(super) cancel: CancellationToken,
    pub(super) keys: u64,
    /// The API's socket, for as long as it is listened at.
    pub(super) socket: Option<SocketFile>,
}

/// A microVM with the way to its shepherd.
pub(super) struct Held {
    pub(super) microvm: Microvm,
    pub(super) errands: Option<mpsc::Sender<Errand>>,
}

/// A local job that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Queued {
    pub(super) job: JobKey,
    pub(super) pool: usize,
    pub(super) since: Millis,
}

/// The end, being approached.
#[derive(Debug, Clone, Copy)]
pub(super) struct Drain {
    /// Since when.
    pub(super) since: Millis,
    /// When jobs that still run are left to a later daemon.
    pub(super) until: Millis,
}

impl World {
    pub(super) fn now(&self) -> Millis {
        self.clock.now()
    }

    /// A new name for a microVM.
    pub(super) fn key(&mut self) -> MachineKey {
        self.keys += 1;
        MachineKey(self.keys)
    }

    pub(super) fn pool_named(&self, name: &str) -> Option<usize> {
        self.pools.iter().position(|pool| pool.settings.name.as_str() == name)
    }

    pub(super) fn microvm(&mut self, key: MachineKey) -> Option<&mut Microvm> {
        self.microvms.get_mut(&key).map(|held| &mut held.microvm)
    }

    /// The microVM that has that runner.
    pub(super) fn with_runner(&self, name: &str) -> Option<&Microvm> {
        let mut microvms = self.microvms.values().map(|held| &held.microvm);
        microvms.find(|one| matches!(&one.work, Work::Runner(runner) if runner.name == name))
    }

    /// The microVM that has that local job.
    pub(super) fn with_job(&self, job: JobKey) -> Option<&Microvm> {
        self.microvms.values().map(|held| &held.microvm).find(|one| one.work == Work::Local(job))
    }

    /// What the ledger knows of a local job.
    pub(super) fn known(&self, job: JobKey) -> Result<Option<ledger::Job>, DaemonError> {
        Ok(self.ledger.reader().job(ledger::JobId(job.0))?)
    }

    /// Gives an order to a shepherd. One to end has a deadline from here on.
    pub(super) fn order(&mut self, key: MachineKey, order: Order) {
        let now = self.now();
        if let (Order::End, Some(microvm)) = (&order, self.microvm(key)) {
            microvm.told_to_end.get_or_insert(now);
        }
        self.errand(key, Errand::Order(order));
    }

    /// Wants something of a shepherd. One whose task has ended is about to be told as ended.
    pub(super) fn errand(&self, key: MachineKey, errand: Errand) {
        if let Some(errands) = self.microvms.get(&key).and_then(|held| held.errands.as_ref())
            && errands.try_send(errand).is_err()
        {
            let _about = self.about(Some(key));
            tracing::warn!("an errand to a shepherd found nobody");
        }
    }

    /// One round: decides and acts. Gives when to come back, even if nothing happens.
    pub(super) fn round(&mut self) -> Result<Option<Millis>, DaemonError> {
        let now = self.now();
        self.demand.expire(now);
        let decided = self.decide(now);
        self.changed |= !decided.actions.is_empty() || decided.blockers != self.blockers;
        self.blockers = decided.blockers;
        for action in decided.actions {
            self.act(action)?;
        }
        self.end_overdue(now);
        self.remove_due(now);
        self.list_due(now);
        self.forget_due(now)?;
        if std::mem::take(&mut self.changed) {
            self.changes.send_modify(|count| *count = count.wrapping_add(1));
        }
        let observed = self.observe(now)?;
        let wakes = [
            decided.wake,
            self.removals.wake(),
            self.next_list,
            self.overdue_wake(),
            Some(self.next_forgetting),
            observed,
        ];
        Ok(wakes.into_iter().chain([self.draining.map(|drain| drain.until)]).flatten().min())
    }

    fn decide(&self, now: Millis) -> decide::Decision {
        let pools: Vec<_> = self.pools.iter().map(Pool::decided).collect();
        let machines: Vec<_> = self.microvms.values().map(|held| held.microvm.machine()).collect();
        let budget =
            Load { processors: self.settings.host.cpus, memory: self.settings.host.memory.0 };
        decide::decide(&View {
            now,
            pools: &pools,
            machines: &machines,
            demand: &self.waiting(),
            budget,
            draining: self.draining.is_some(),
        })
    }

    /// Everything that waits, the oldest first.
    pub(super) fn waiting(&self) -> Vec<Waiting> {
        let local = self.queue.iter().map(|queued| Waiting::Local {
            job: queued.job,
            pool: queued.pool,
            since: queued.since,
        });
        let mut waiting: Vec<Waiting> = self.demand.waiting().into_iter().chain(local).collect();
        waiting.sort_by_key(Waiting::since);
        waiting
    }

    /// Whether there is nothing left to wait for.
    pub(super) fn is_drained(&self) -> bool {
        let Some(drain) = self.draining else { return false };
        // What could not be removed is told, and swept by the next daemon.
        let idle = self.microvms.is_empty() && self.removals.were_tried_since(drain.since);
        idle || self.now() >= drain.until
    }

    /// Says what the next daemon has to remove.
    pub(super) fn tell_left(&self) {
        let names: Vec<_> = self.removals.names().collect();
        if !names.is_empty() {
            let names = names.join(", ");
            tracing::warn!("registrations are left, and removed at the next start: {names}");
        }
    }

    /// Takes no more work from here on.
    pub(super) fn drain(&mut self) -> Drain {
        let now = self.now();
        let until = now + self.settings.host.drain;
        for set in self.sets.values() {
            set.capacity.send_replace(0);
        }
        self.changed = true;
        if self.draining.is_none() {
            self.removals.hurry(now);
        }
        *self.draining.get_or_insert_with(|| {
            tracing::info!("draining: no new work is taken, running jobs are waited for");
            Drain { since: now, until }
        })
    }

    /// How many microVMs have a job.
    pub(super) fn running(&self) -> usize {
        let busy = |held: &&Held| matches!(held.microvm.stage, Stage::Assigned | Stage::Busy);
        self.microvms.values().filter(busy).count()
    }
}

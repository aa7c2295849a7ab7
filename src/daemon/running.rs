//! The loop's own: the parts of the daemon, and one turn of it: look, decide, act, wait, hear.
//!
//! ```text
//!                ┌── Fleet     microVMs and their shepherds      ──▶ Shepherds  (seam)
//! Daemon ────────┼── Backlog   what waits, what became of jobs
//! (loop)         ├── Registry  runners at the forge              ──▶ Forge      (seam)
//!                ├── Keeping   what is kept, and for how long
//!                └── Views     what others read
//! ```
//!
//! Each part has its fields to itself. What concerns two of them is here and in the files beside
//! this one, as calls to one after the other.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinError;

use super::backlog::{Backlog, Desk};
use super::clock::Clock;
use super::decide::{self, JobKey, Load, MachineKey, Obstacle, PoolId, View};
use super::error::DaemonError;
use super::fleet::{Fleet, Shepherds};
use super::happening::Happening;
use super::keeping::Keeping;
use super::millis::Millis;
use super::names::Names;
use super::pools::{Pools, load};
use super::registry::{Registry, registers};
use super::tasks::Tasks;
use super::views::{Look, Views};
use crate::config::{Pool, Settings};
use crate::failure::contained;
use crate::forge::{Forge, Said};
use crate::host::state::StateDirectory;
use crate::ledger::{self, Ledger, Reader};
use crate::shepherd::plan::Id;

/// What the forge says waits here, in so many words; it waits with the rest.
const SAID: usize = 256;
/// What is taken in before the next decision.
const AT_ONCE: usize = 256;
/// How long the loop waits where nothing tells it how long.
const FAR: std::time::Duration = std::time::Duration::from_secs(3600);

/// The daemon as it is, for those who look on. No method, which would borrow the views with the rest.
macro_rules! look {
    ($daemon:ident) => {
        Look {
            settings: &$daemon.settings,
            pools: &$daemon.pools,
            fleet: &$daemon.fleet,
            backlog: &$daemon.backlog,
            registry: &$daemon.registry,
            blockers: &$daemon.blockers,
            draining: $daemon.draining.is_some(),
            clock: $daemon.clock,
        }
    };
}

/// The daemon.
pub(super) struct Daemon {
    pub(super) settings: Settings,
    pub(super) state: StateDirectory,
    pub(super) ledger: Ledger,
    pub(super) clock: Clock,
    pub(super) pools: Pools,
    pub(super) fleet: Fleet,
    pub(super) backlog: Backlog,
    pub(super) registry: Registry,
    pub(super) keeping: Keeping,
    pub(super) names: Names,
    pub(super) views: Views,
    pub(super) tasks: Tasks,
    /// Why each pool's jobs wait, by the last decision.
    blockers: BTreeMap<PoolId, Obstacle>,
    draining: Option<Drain>,
}

/// The end, being approached.
#[derive(Debug, Clone, Copy)]
pub(super) struct Drain {
    /// Since when.
    pub(super) since: Millis,
    /// When jobs that still run are left to a later daemon.
    pub(super) until: Millis,
    /// Whether jobs that run are ended.
    ends_jobs: bool,
}

/// What comes to the loop.
pub(super) struct Inbox {
    heard: mpsc::Receiver<Happening>,
    said: mpsc::Receiver<Said>,
}

/// Why the loop goes on.
pub(super) enum Woken {
    /// A task told something.
    Happened(Happening),
    /// The forge said something.
    Said(Said),
    /// A task ended.
    Ended(Result<(), JoinError>),
    /// It is time, or the daemon was absent.
    Time,
}

impl Daemon {
    /// Composes the parts. Nothing is adopted yet, nobody listened to.
    pub(super) fn compose(
        settings: Settings,
        state: StateDirectory,
        mut ledger: Ledger,
        clock: Clock,
        forge: Option<Arc<dyn Forge>>,
        shepherds: Arc<dyn Shepherds>,
    ) -> Result<(Self, Inbox), DaemonError> {
        let instance = ledger.instance()?;
        let (views, exporter) = Views::new(&settings, &state.ledger(), &ledger, &instance)?;
        let (mut tasks, heard) = Tasks::new();
        if let Some(exporter) = exporter {
            tasks.spawn(exporter.run(tasks.end()));
        }
        let (to, said) = mpsc::channel(SAID);
        let backlog = Backlog::new(forge.as_deref());
        let names = Names::new(forge.is_some(), &mut ledger)?;
        let mut registry = Registry::new(forge, prefix(&instance));
        let pools = Pools::new(&settings.pools);
        registry.take_on(settings.github.as_ref());
        registry.holds(ledger.places()?);
        registry.want(&pools, false, clock.absences());
        registry.listen(to, &mut tasks);
        let daemon = Self {
            keeping: Keeping::new(state.clone()),
            names,
            settings,
            state,
            ledger,
            clock,
            pools,
            fleet: Fleet::new(shepherds),
            backlog,
            registry,
            views,
            tasks,
            blockers: BTreeMap::new(),
            draining: None,
        };
        Ok((daemon, Inbox { heard, said }))
    }

    pub(super) fn now(&self) -> Millis {
        self.clock.now()
    }

    /// What can be read of the ledger.
    pub(super) fn reader(&self) -> &Reader {
        self.ledger.reader()
    }

    /// The backlog, and what it is told with each word.
    pub(super) fn desk(&mut self) -> (&mut Backlog, Desk<'_>) {
        let desk = Desk {
            pools: &self.pools,
            forge: self.registry.forge(),
            prefix: self.registry.prefix(),
            ledger: &mut self.ledger,
            clock: self.clock,
        };
        (&mut self.backlog, desk)
    }

    /// The daemon as it is, for those who look on.
    pub(super) fn look(&self) -> Look<'_> {
        look!(self)
    }

    /// What the log says from here on is about that microVM.
    pub(super) fn about(&self, key: Option<MachineKey>) -> Option<tracing::span::EnteredSpan> {
        self.fleet.about(key, self.ledger.reader())
    }

    /// What the ledger knows of a local job.
    pub(super) fn known(&self, job: JobKey) -> Result<Option<ledger::Job>, DaemonError> {
        Ok(self.reader().job(ledger::JobId(job.0))?)
    }

    /// The pool of a microVM, where the settings have it.
    pub(super) fn pool_of(&self, key: MachineKey) -> Option<(PoolId, &Pool)> {
        let id = self.fleet.get(key)?.pool();
        Some((id, self.pools.get(id)?))
    }

    /// The name of a microVM, once it has one.
    pub(super) fn id_of(&self, key: MachineKey) -> Option<Id> {
        self.fleet.get(key)?.id().cloned()
    }

    /// Decides and acts. Gives when to come back, even if nothing happens.
    pub(super) fn round(&mut self) -> Result<Option<Millis>, DaemonError> {
        // Whatever woke the loop: where calls come all the time, nobody waits for the clock.
        self.look_at_the_clock();
        let now = self.now();
        self.backlog.expire(now);
        let decided = self.decide(now);
        if !decided.actions.is_empty() || decided.blockers != self.blockers {
            self.views.change();
        }
        self.blockers = decided.blockers;
        for action in decided.actions {
            self.act(action)?;
        }
        self.fleet.end_overdue(&self.clock, self.ledger.reader());
        self.registry.act(now, &mut self.tasks);
        self.names.act(self.registry.shared_forge(), now, &mut self.tasks);
        self.keeping.act(&self.settings, now, &mut self.tasks);
        let look = look!(self);
        let wakes = [
            decided.wake,
            self.registry.wake(),
            self.fleet.wake(&self.clock),
            self.keeping.wake(),
            self.names.wake(),
            self.draining.map(|drain| drain.until),
            self.views.show(look, self.ledger.reader())?,
        ];
        Ok(wakes.into_iter().flatten().min())
    }

    fn decide(&self, now: Millis) -> decide::Decision {
        let pools: Vec<_> = self.pools.iter().map(|(id, pool)| self.decided(id, pool)).collect();
        let host = &self.settings.host;
        decide::decide(&View {
            now,
            pools: &pools,
            machines: &self.fleet.machines(),
            demand: &self.backlog.waiting(),
            budget: Load { processors: host.cpus, memory: host.memory.0 },
            draining: self.draining.is_some(),
        })
    }

    /// What the decisions see of a pool.
    fn decided(&self, id: PoolId, pool: &Pool) -> decide::Pool {
        decide::Pool {
            id,
            load: load(pool),
            min_idle: pool.min_idle,
            max: pool.max,
            registers: registers(pool),
            idle: pool.deadlines.idle,
            claim: pool.deadlines.claim,
            boot_obstacle: self.fleet.obstacle(id),
            forge_obstacle: self.registry.obstacle(id, pool),
        }
    }

    /// Waits for what comes next, until `wake` at most. Nothing is lost where the wait is given up.
    pub(super) async fn next(&mut self, inbox: &mut Inbox, wake: Option<Millis>) -> Woken {
        let wake = wake.unwrap_or(self.now() + FAR);
        loop {
            tokio::select! {
                Some(happening) = inbox.heard.recv() => return Woken::Happened(happening),
                Some(said) = inbox.said.recv() => return Woken::Said(said),
                Some(ended) = self.tasks.ended() => return Woken::Ended(ended),
                () = self.clock.wait(wake) => {
                    if self.look_at_the_clock() || self.now() >= wake {
                        return Woken::Time;
                    }
                }
            }
        }
    }

    /// Takes in what came, and what came with it.
    pub(super) fn take(&mut self, woken: Woken, inbox: &mut Inbox) -> Result<(), DaemonError> {
        self.look_at_the_clock();
        match woken {
            Woken::Happened(happening) => self.hear(happening)?,
            Woken::Said(said) => self.listen(said)?,
            Woken::Ended(ended) => contained(ended),
            Woken::Time => {}
        }
        for _ in 1..AT_ONCE {
            let Ok(happening) = inbox.heard.try_recv() else { break };
            self.hear(happening)?;
        }
        for _ in 1..AT_ONCE {
            let Ok(said) = inbox.said.try_recv() else { break };
            self.listen(said)?;
        }
        Ok(())
    }

    /// Whether the daemon was absent. What was said meanwhile is asked for again.
    fn look_at_the_clock(&mut self) -> bool {
        let absent = self.clock.look();
        if absent {
            self.views.change();
            self.want();
        }
        absent
    }

    /// Tells the forge what is wanted of it now.
    pub(super) fn want(&mut self) {
        self.registry.want(&self.pools, self.draining.is_some(), self.clock.absences());
    }

    /// Whether no more work is taken.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.is_some()
    }

    /// Whether there is nothing left to wait for.
    pub(super) fn is_drained(&self) -> bool {
        let Some(drain) = self.draining else { return false };
        let idle = self.fleet.len() == 0 && self.registry.is_settled(drain.since);
        idle || self.now() >= drain.until
    }

    /// Takes no more work from here on.
    pub(super) fn drain(&mut self) -> Drain {
        let now = self.now();
        if let Some(drain) = self.draining {
            return drain;
        }
        tracing::info!("draining: no new work is taken, running jobs are waited for");
        let until = now + self.settings.host.drain;
        let drain = Drain { since: now, until, ends_jobs: false };
        self.draining = Some(drain);
        self.registry.hurry(now);
        self.want();
        self.views.change();
        drain
    }

    /// A drain under way has as long as the settings say now, unless its jobs are being ended.
    pub(super) fn postpone_drain(&mut self) {
        if let Some(drain) = self.draining.as_mut().filter(|drain| !drain.ends_jobs) {
            drain.until = drain.since + self.settings.host.drain;
        }
    }

    /// The end, which was being approached, comes by then.
    pub(super) fn end_by(&mut self, latest: Millis) {
        if let Some(drain) = &mut self.draining {
            drain.until = drain.until.min(latest);
            drain.ends_jobs = true;
        }
    }

    /// Whether jobs that run are being ended, so that the end of the daemon is near.
    pub(super) fn ends_jobs(&self) -> bool {
        self.draining.is_some_and(|drain| drain.ends_jobs)
    }

    /// Ends everything but the microVMs.
    pub(super) async fn close(mut self, inbox: Inbox) {
        // What was heard and not recorded is not acknowledged.
        drop(inbox);
        let left = self.fleet.running();
        if left > 0 {
            tracing::warn!(jobs = left, "jobs still run; the next daemon takes them back");
        }
        self.registry.tell_left();
        // Those that follow shepherds, and the forge, end with the way to them.
        self.fleet.let_go();
        drop(self.registry);
        self.tasks.close().await;
        tracing::info!("ended");
    }
}

/// How the names of a daemon's runners begin.
pub(super) fn prefix(instance: &str) -> String {
    format!("mayfly-{instance}-")
}

//! The daemon's loop: its parts, and one round of it: decide, act, wait, handle events.
//!
//! ```text
//!                ┌── Fleet     microVMs and their shepherds      ──▶ Shepherds  (driver trait)
//! Daemon ────────┼── Backlog   waiting jobs, and the results of jobs
//! (loop)         ├── Registry  runners at the forge              ──▶ Forge      (driver trait)
//!                ├── Pruner    what is retained, and for how long
//!                └── Views     what the API and the metrics read
//! ```
//!
//! Each part has private fields. Whatever concerns two parts is in this file and the files beside
//! it, as calls to one part after the other.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinError;

use super::backlog::{Backlog, BacklogContext};
use super::clock::Clock;
use super::decide::{self, ActiveBlocker, DecisionInput, JobKey, MicrovmKey, PoolId, Resources};
use super::error::DaemonError;
use super::event::DaemonEvent;
use super::fleet::{Fleet, Shepherds};
use super::pools::{Pools, microvm_resources};
use super::registry::{Registry, registration_policy};
use super::retention::Pruner;
use super::runner_domains::RunnerDomains;
use super::tasks::Tasks;
use super::time::Millis;
use super::views::{DaemonView, Views};
use mayfly_config::{PoolConfig, Settings};
use mayfly_forge::{Forge, ForgeEvent};
use mayfly_host::state::StateDirectory;
use mayfly_ledger::{Ledger, LedgerReader};
use mayfly_shepherd::plan::MicrovmId;
use mayfly_telemetry::report_panic;

/// Forge events that may wait for the loop. A forge that finds the channel full waits too.
const FORGE_EVENTS_CAPACITY: usize = 256;
/// Events that are handled before the next decision.
const EVENTS_PER_ROUND: usize = 256;
/// How long the loop waits at most.
const LONGEST_WAIT: std::time::Duration = std::time::Duration::from_secs(3600);

/// Borrows the daemon's state as a [`DaemonView`]. Not a method, because that would borrow the
/// views too.
macro_rules! view {
    ($daemon:ident) => {
        DaemonView {
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
    pub(super) pruner: Pruner,
    pub(super) runner_domains: RunnerDomains,
    pub(super) views: Views,
    pub(super) tasks: Tasks,
    /// Why each pool's jobs wait, from the last decision.
    blockers: BTreeMap<PoolId, ActiveBlocker>,
    draining: Option<Drain>,
}

/// A drain in progress.
#[derive(Debug, Clone, Copy)]
pub(super) struct Drain {
    /// When it started.
    pub(super) since: Millis,
    /// When the daemon ends and leaves running jobs to the next one.
    pub(super) until: Millis,
    /// Whether running jobs are being ended.
    is_ending_jobs: bool,
}

/// The receiving ends of the loop's channels.
pub(super) struct Inbox {
    events: mpsc::Receiver<DaemonEvent>,
    forge_events: mpsc::Receiver<ForgeEvent>,
}

/// Why the loop woke up.
pub(super) enum WakeReason {
    /// A task sent an event.
    Event(DaemonEvent),
    /// The forge sent an event.
    ForgeEvent(ForgeEvent),
    /// A task ended.
    TaskEnded(Result<(), JoinError>),
    /// A deadline came, or the process was suspended.
    Timer,
}

impl Daemon {
    /// Composes the parts. Does not adopt microVMs yet.
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
        let (mut tasks, events) = Tasks::new();
        if let Some(exporter) = exporter {
            tasks.spawn(exporter.run(tasks.cancellation_token()));
        }
        let (to, forge_events) = mpsc::channel(FORGE_EVENTS_CAPACITY);
        let backlog = Backlog::new(forge.as_deref());
        let runner_domains = RunnerDomains::new(forge.is_some(), &mut ledger)?;
        let mut registry = Registry::new(forge, prefix(&instance));
        let pools = Pools::new(&settings.pools);
        registry.apply_settings(settings.github.as_ref());
        registry.set_locations(ledger.locations()?);
        registry.update_listen_request(&pools, false, clock.absences());
        registry.listen(to, &mut tasks);
        let daemon = Self {
            pruner: Pruner::new(state.clone()),
            runner_domains,
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
        Ok((daemon, Inbox { events, forge_events }))
    }

    pub(super) fn now(&self) -> Millis {
        self.clock.now()
    }

    /// Returns the reader of the ledger.
    pub(super) fn reader(&self) -> &LedgerReader {
        self.ledger.reader()
    }

    /// Returns the backlog together with the context that its methods need.
    pub(super) fn backlog_and_context(&mut self) -> (&mut Backlog, BacklogContext<'_>) {
        let context = BacklogContext {
            pools: &self.pools,
            forge: self.registry.forge(),
            prefix: self.registry.prefix(),
            ledger: &mut self.ledger,
            clock: self.clock,
        };
        (&mut self.backlog, context)
    }

    /// Returns the state of the daemon for those who read it.
    pub(super) fn view(&self) -> DaemonView<'_> {
        view!(self)
    }

    /// Enters a log context for a microVM. Log lines belong to it until the returned guard is
    /// dropped.
    pub(super) fn log_span(&self, key: Option<MicrovmKey>) -> Option<tracing::span::EnteredSpan> {
        self.fleet.log_span(key, self.ledger.reader())
    }

    /// Reads a job from the ledger.
    pub(super) fn find_job(
        &self,
        job: JobKey,
    ) -> Result<Option<mayfly_ledger::JobRecord>, DaemonError> {
        Ok(self.reader().job(mayfly_ledger::JobId(job.0))?)
    }

    /// Returns the pool of a microVM, if the settings have it.
    pub(super) fn pool_of(&self, key: MicrovmKey) -> Option<(PoolId, &PoolConfig)> {
        let id = self.fleet.get(key)?.pool();
        Some((id, self.pools.get(id)?))
    }

    /// Returns the id of a microVM, once it is planned.
    pub(super) fn id_of(&self, key: MicrovmKey) -> Option<MicrovmId> {
        self.fleet.get(key)?.id().cloned()
    }

    /// Decides and acts. Returns when to run again, even if nothing happens.
    pub(super) fn decide_and_act(&mut self) -> Result<Option<Millis>, DaemonError> {
        // Check it here too: under constant API calls the timer may never fire.
        self.check_clock();
        let now = self.now();
        self.backlog.expire(now);
        let decision = self.decide(now);
        if !decision.actions.is_empty() || decision.blockers != self.blockers {
            self.views.mark_changed();
        }
        self.blockers = decision.blockers;
        for action in decision.actions {
            self.execute(action)?;
        }
        self.fleet.end_overdue(&self.clock, self.ledger.reader());
        self.registry.start_due_calls(now, &mut self.tasks);
        self.runner_domains.start_if_due(self.registry.shared_forge(), now, &mut self.tasks);
        self.pruner.start_if_due(&self.settings, now, &mut self.tasks);
        let view = view!(self);
        let wakes = [
            decision.wake,
            self.registry.next_wake(),
            self.fleet.next_wake(&self.clock),
            self.pruner.next_wake(),
            self.runner_domains.next_wake(),
            self.draining.map(|drain| drain.until),
            self.views.publish(view, self.ledger.reader())?,
        ];
        Ok(wakes.into_iter().flatten().min())
    }

    fn decide(&self, now: Millis) -> decide::Decision {
        let pools: Vec<_> =
            self.pools.iter().map(|(id, pool)| self.decision_pool(id, pool)).collect();
        let host = &self.settings.host;
        decide::decide(&DecisionInput {
            now,
            pools: &pools,
            microvms: &self.fleet.microvm_states(),
            demand: &self.backlog.waiting(),
            budget: Resources { processors: host.cpus, memory: host.memory.0 },
            draining: self.draining.is_some(),
        })
    }

    /// Returns a pool as decisions see it.
    fn decision_pool(&self, id: PoolId, pool: &PoolConfig) -> decide::Pool {
        decide::Pool {
            id,
            resources: microvm_resources(pool),
            min_idle: pool.min_idle,
            max: pool.max,
            registration: registration_policy(pool),
            idle: pool.deadlines.idle,
            claim: pool.deadlines.claim,
            boot_blocker: self.fleet.blocker(id),
            forge_blocker: self.registry.blocker(id, pool),
        }
    }

    /// Waits for the next event, until `wake` at most. Cancel-safe.
    pub(super) async fn next_wake(
        &mut self,
        inbox: &mut Inbox,
        wake: Option<Millis>,
    ) -> WakeReason {
        let wake = wake.unwrap_or(self.now() + LONGEST_WAIT);
        loop {
            tokio::select! {
                Some(event) = inbox.events.recv() => return WakeReason::Event(event),
                Some(event) = inbox.forge_events.recv() => return WakeReason::ForgeEvent(event),
                Some(ended) = self.tasks.next_ended() => return WakeReason::TaskEnded(ended),
                () = self.clock.wait(wake) => {
                    if self.check_clock() || self.now() >= wake {
                        return WakeReason::Timer;
                    }
                }
            }
        }
    }

    /// Handles the wake reason, and further events that are already there.
    pub(super) fn handle(
        &mut self,
        reason: WakeReason,
        inbox: &mut Inbox,
    ) -> Result<(), DaemonError> {
        self.check_clock();
        match reason {
            WakeReason::Event(event) => self.handle_event(event)?,
            WakeReason::ForgeEvent(event) => self.handle_forge_event(event)?,
            WakeReason::TaskEnded(ended) => report_panic(ended),
            WakeReason::Timer => {}
        }
        for _ in 1..EVENTS_PER_ROUND {
            let Ok(event) = inbox.events.try_recv() else { break };
            self.handle_event(event)?;
        }
        for _ in 1..EVENTS_PER_ROUND {
            let Ok(event) = inbox.forge_events.try_recv() else { break };
            self.handle_forge_event(event)?;
        }
        Ok(())
    }

    /// Checks the clock. Returns whether the process was suspended; if so, the forge is asked again
    /// for what it sent meanwhile.
    fn check_clock(&mut self) -> bool {
        let was_suspended = self.clock.update();
        if was_suspended {
            self.views.mark_changed();
            self.update_listen_request();
        }
        was_suspended
    }

    /// Updates what the forge listens for.
    pub(super) fn update_listen_request(&mut self) {
        self.registry.update_listen_request(
            &self.pools,
            self.draining.is_some(),
            self.clock.absences(),
        );
    }

    /// Returns whether the daemon takes no more work.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.is_some()
    }

    /// Returns whether the drain is complete or its time is up.
    pub(super) fn is_drained(&self) -> bool {
        let Some(drain) = self.draining else { return false };
        let idle = self.fleet.len() == 0 && self.registry.are_removals_tried_since(drain.since);
        idle || self.now() >= drain.until
    }

    /// Starts to drain: the daemon takes no more work. A drain that already runs is returned as it
    /// is.
    pub(super) fn start_drain(&mut self) -> Drain {
        let now = self.now();
        if let Some(drain) = self.draining {
            return drain;
        }
        tracing::info!("draining: waiting for running jobs, taking no new ones");
        let until = now + self.settings.host.drain;
        let drain = Drain { since: now, until, is_ending_jobs: false };
        self.draining = Some(drain);
        self.registry.retry_removals_now(now);
        self.update_listen_request();
        self.views.mark_changed();
        drain
    }

    /// Applies the settings' drain time to a running drain, unless its jobs are being ended.
    pub(super) fn update_drain_deadline(&mut self) {
        if let Some(drain) = self.draining.as_mut().filter(|drain| !drain.is_ending_jobs) {
            drain.until = drain.since + self.settings.host.drain;
        }
    }

    /// Limits a running drain: the daemon ends by `latest`, and its jobs are being ended.
    pub(super) fn limit_drain(&mut self, latest: Millis) {
        if let Some(drain) = &mut self.draining {
            drain.until = drain.until.min(latest);
            drain.is_ending_jobs = true;
        }
    }

    /// Returns whether running jobs are being ended, so that the daemon ends soon.
    pub(super) fn is_ending_jobs(&self) -> bool {
        self.draining.is_some_and(|drain| drain.is_ending_jobs)
    }

    /// Ends everything except the microVMs.
    pub(super) async fn close(mut self, inbox: Inbox) {
        // Events that were not recorded stay unacknowledged.
        drop(inbox);
        let left = self.fleet.running();
        if left > 0 {
            tracing::warn!(jobs = left, "jobs still run; the next daemon adopts them");
        }
        self.registry.log_remaining();
        // Followers of shepherds and the forge's listener end when their channels close.
        self.fleet.release_all();
        drop(self.registry);
        self.tasks.close().await;
        tracing::info!("the daemon ended");
    }
}

/// Returns the prefix of the names of a daemon's runners.
pub(super) fn prefix(instance: &str) -> String {
    format!("mayfly-{instance}-")
}

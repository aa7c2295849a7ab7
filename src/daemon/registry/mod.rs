//! The registry: this daemon's runners at the forge, from the choice of a name until the forge has
//! none of that name any more.
//!
//! Owns the forge ([`Forge`]), what is wanted of it, which registrations have to go ([`Removals`]),
//! what stands in the way of new ones, and of the ledger the registrations. Which microVM becomes a
//! runner is decided elsewhere.

mod reach;
mod removals;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};

use super::clock::Clock;
use super::decide::{Blocker, MachineKey, Obstacle, PoolId, Registers};
use super::error::DaemonError;
use super::happening::Happening;
use super::millis::Millis;
use super::pools::{Pools, Troubles};
use super::tasks::Tasks;
use crate::api::types::Check;
use crate::config::{self, Pool, Trigger};
use crate::forge::{Forge, ForgeError, Places, Removal, Runner, Said, Wanted};
use crate::ledger::{Ledger, RegistrationState};
use reach::Reach;
use removals::{Removals, orphans};

/// Between two lists of the forge's runners at most after an answer that never came: what it left
/// behind shows itself by then.
const LIST_SOON: Duration = Duration::from_secs(20);
/// The least wait after a rate limit, whose end is told in whole seconds.
const SOON: Duration = Duration::from_secs(1);
/// How long any call may take. A forge has deadlines of its own; this one holds for all.
const CALL: Duration = Duration::from_secs(5 * 60);

/// The registrations, and the way to the forge.
pub(super) struct Registry {
    forge: Option<Arc<dyn Forge>>,
    /// How the names of this daemon's runners begin.
    prefix: String,
    removals: Removals,
    /// When the forge's runners are listed next; none while they are.
    next_list: Option<Millis>,
    /// Between two lists.
    reconcile: Duration,
    /// Runners of ours that the last list did not have.
    missed: Vec<String>,
    reach: Reach,
    calls: Troubles,
    runners: Troubles,
    /// The pools of which the forge said that their runners can be registered.
    ready: BTreeSet<PoolId>,
    /// Where the forge has something for pools.
    held: Places,
    wanted: watch::Sender<Wanted>,
}

/// What the end of a registration means for its microVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deregistered {
    /// The runner is no more: its microVM can go.
    Gone,
    /// The runner has a job.
    Busy,
    /// It is tried again.
    Later,
}

impl Registry {
    pub(super) fn new(forge: Option<Arc<dyn Forge>>, prefix: String) -> Self {
        Self {
            next_list: forge.as_ref().map(|_| Millis(0)),
            forge,
            prefix,
            removals: Removals::default(),
            reconcile: LIST_SOON,
            missed: Vec::new(),
            reach: Reach::default(),
            calls: Troubles::default(),
            runners: Troubles::default(),
            ready: BTreeSet::new(),
            held: Places::new(),
            wanted: watch::Sender::new(Wanted::default()),
        }
    }

    pub(super) fn forge(&self) -> Option<&dyn Forge> {
        self.forge.as_deref()
    }

    pub(super) fn shared_forge(&self) -> Option<Arc<dyn Forge>> {
        self.forge.clone()
    }

    /// How the names of this daemon's runners begin.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Says what the forge is to listen for: work for these pools, and none where the daemon drains.
    pub(super) fn want(&mut self, pools: &Pools, draining: bool, absences: u64) {
        let wanted = pools.iter().map(|(_, pool)| {
            let most = if draining { 0 } else { pool.max };
            (pool.name.clone(), (pool.clone(), most))
        });
        let (pools, held) = (wanted.collect(), self.held.clone());
        self.wanted.send_replace(Wanted { pools, held, absences });
    }

    /// Takes on where the forge has something for pools.
    pub(super) fn holds(&mut self, held: Places) {
        self.held = held;
    }

    /// Takes on how often runners are listed.
    pub(super) fn take_on(&mut self, settings: Option<&config::GitHub>) {
        self.reconcile = settings.map_or(LIST_SOON, |settings| settings.reconcile);
    }

    /// Begins to listen; ends with this registry.
    pub(super) fn listen(&self, to: mpsc::Sender<Said>, tasks: &mut Tasks) {
        if let Some(forge) = &self.forge {
            tasks.spawn(forge.clone().listen(self.wanted.subscribe(), to));
        }
    }

    /// Why no runner of a pool can be registered.
    pub(super) fn obstacle(&self, id: PoolId, pool: &Pool) -> Option<Obstacle> {
        if registers(pool) == Registers::Never {
            return None;
        }
        let finds_out = matches!(pool.trigger, Trigger::ScaleSet | Trigger::Auto);
        let is_ready = self.forge.is_some() && (!finds_out || self.ready.contains(&id));
        match (self.calls.obstacle(id), is_ready) {
            (Some(failure), _) => Some(failure),
            (None, true) => self.runners.obstacle(id),
            (None, false) => {
                let why = "its registration is being set up".to_owned();
                Some(Obstacle { until: None, why: Blocker::Unreachable(why) })
            }
        }
    }

    /// Whether the forge is in reach; none without a forge.
    pub(super) fn check(&self, now: Millis) -> Option<Check> {
        self.forge.as_ref().map(|_| self.reach.check(self.reconcile, now))
    }

    /// Runners of a pool can be registered from now on.
    pub(super) fn is_ready(&mut self, pool: PoolId, now: Millis) {
        self.reach.take(None, now);
        self.ready.insert(pool);
        self.calls.worked(pool);
    }

    /// The forge answered.
    pub(super) fn answers(&mut self, now: Millis) {
        self.reach.take(None, now);
    }

    /// The forge can't be listened to: for a pool, or at all.
    pub(super) fn fails(&mut self, pool: Option<(PoolId, &str)>, error: &ForgeError, clock: Clock) {
        self.reach.take(Some(error), clock.now());
        let Some((id, name)) = pool else {
            tracing::warn!("can't poll: {error}");
            return;
        };
        tracing::warn!(pool = name, "the scale set can't be heard: {error}");
        if !self.ready.contains(&id) {
            self.call_failed(id, error, clock);
        }
    }

    fn call_failed(&mut self, pool: PoolId, error: &ForgeError, clock: Clock) {
        let now = clock.now();
        match error {
            ForgeError::RateLimited { until, .. } => {
                self.calls.failed_until(pool, blocker(error), now + from_now(*until), now);
            }
            _ => self.calls.failed(pool, blocker(error), now),
        }
    }

    /// A runner of a pool ended before it had a job.
    pub(super) fn runner_failed(&mut self, pool: PoolId, why: String, now: Millis) {
        self.runners.failed(pool, Blocker::RunnersFail(why), now);
    }

    /// Chooses a name for a runner, writes it down, and asks the forge for it.
    pub(super) fn register(
        &mut self,
        key: MachineKey,
        microvm: &str,
        pool: &Pool,
        ledger: &mut Ledger,
        tasks: &mut Tasks,
    ) -> Result<Option<String>, DaemonError> {
        let Some(forge) = self.forge.clone() else { return Ok(None) };
        let random = crate::host::random::<8>().map_err(DaemonError::Random)?;
        let random = data_encoding::BASE32_DNSSEC.encode(&random);
        let name = format!("{}{}-{}", self.prefix, pool.name, &random[..10]);
        ledger.intend(&name, pool.name.as_str(), microvm)?;
        let (pool, asked) = (pool.clone(), name.clone());
        tasks.report(async move {
            let registered = in_time(forge.register(&asked, &pool)).await;
            Happening::Registered(key, asked, registered)
        });
        Ok(Some(name))
    }

    /// The forge made a runner. What was forgotten meanwhile stays so.
    pub(super) fn registered(
        &mut self,
        name: &str,
        number: u64,
        pool: Option<PoolId>,
        ledger: &mut Ledger,
        now: Millis,
    ) -> Result<(), DaemonError> {
        self.reach.take(None, now);
        if let Some(pool) = pool {
            self.calls.worked(pool);
        }
        if is_open(name, ledger)? {
            ledger.registered(name, number)?;
        }
        Ok(())
    }

    /// The forge made no runner, or did not say so.
    pub(super) fn not_registered(
        &mut self,
        name: &str,
        pool: Option<(PoolId, &str)>,
        error: &ForgeError,
        ledger: &mut Ledger,
        clock: Clock,
    ) -> Result<(), DaemonError> {
        let now = clock.now();
        tracing::warn!(runner = name, "not registered: {error}");
        self.reach.take(Some(error), now);
        if let Some((id, _)) = pool {
            self.call_failed(id, error, clock);
        }
        match error {
            // It may be there all the same, now or in a moment.
            ForgeError::Ambiguous(_) | ForgeError::NameTaken(_) => {
                self.removals.add(name, pool.map(|(_, name)| name), None, now);
                self.list_soon(now);
            }
            _ => _ = ledger.deleted(name)?,
        }
        Ok(())
    }

    /// A runner has to go.
    pub(super) fn remove(
        &mut self,
        name: &str,
        number: Option<u64>,
        ledger: &Ledger,
        now: Millis,
    ) -> Result<(), DaemonError> {
        let known = ledger.reader().registration(name)?;
        let number = number.or(known.as_ref().and_then(|known| known.runner_id));
        self.removals.add(name, known.as_ref().map(|known| known.pool.as_str()), number, now);
        Ok(())
    }

    /// A runner is over and did its job: a forge removes it by itself. What it did not, the next
    /// list shows.
    pub(super) fn spent(name: &str, ledger: &mut Ledger) -> Result<(), DaemonError> {
        ledger.deleted(name)?;
        Ok(())
    }

    /// A runner took a job: that one was registered, or listens, does not say that it can.
    pub(super) fn took(
        &mut self,
        name: &str,
        pool: PoolId,
        job: &str,
        ledger: &mut Ledger,
    ) -> Result<(), DaemonError> {
        self.runners.worked(pool);
        // It may have been told already: by the runner, by the forge, or to a daemon before.
        if is_open(name, ledger)? {
            ledger.job_taken(name, job)?;
        }
        Ok(())
    }

    /// A runner was to be deleted.
    pub(super) fn deregistered(
        &mut self,
        name: &str,
        removed: &Result<Removal, ForgeError>,
        has_microvm: bool,
        ledger: &mut Ledger,
        now: Millis,
    ) -> Result<Deregistered, DaemonError> {
        self.reach.take(removed.as_ref().err(), now);
        Ok(match removed {
            Ok(Removal::Gone) => {
                self.removals.done(name);
                if ledger.reader().registration(name)?.is_some() {
                    ledger.deleted(name)?;
                }
                Deregistered::Gone
            }
            Ok(Removal::Busy) if has_microvm => {
                // It got its job while it was being retired: it stays.
                self.removals.done(name);
                Deregistered::Busy
            }
            Ok(Removal::Busy) => {
                self.removals.again(name, now);
                Deregistered::Later
            }
            Err(error) => {
                tracing::warn!(runner = name, "can't delete the runner: {error}");
                match error {
                    ForgeError::RateLimited { until, .. } => {
                        self.removals.postpone(name, now + from_now(*until).max(SOON), now);
                    }
                    _ => self.removals.again(name, now),
                }
                Deregistered::Later
            }
        })
    }

    /// The runners that the forge has: ours that nothing uses any more have to go. Gives those in
    /// use, of `listening` since before the list was asked for, that two lists did not have: the
    /// forge dropped them.
    pub(super) fn listed(
        &mut self,
        runners: &Result<Vec<Runner>, ForgeError>,
        in_use: &BTreeSet<&str>,
        listening: &BTreeSet<&str>,
        ledger: &Ledger,
        now: Millis,
    ) -> Result<Vec<String>, DaemonError> {
        self.reach.take(runners.as_ref().err(), now);
        let runners = match runners {
            Ok(runners) => runners,
            Err(error) => {
                tracing::warn!("can't list the runners: {error}");
                self.next_list = Some(now + self.reconcile.min(LIST_SOON));
                return Ok(Vec::new());
            }
        };
        self.next_list = Some(now + self.reconcile);
        for runner in orphans(runners, &self.prefix, in_use) {
            if !runner.busy && !self.removals.contains(&runner.name) {
                tracing::warn!(
                    runner = runner.name,
                    "a runner of ours that nothing uses is deleted"
                );
                self.remove(&runner.name, Some(runner.number), ledger, now)?;
            }
        }
        let is_there = |name: &str| runners.iter().any(|runner| runner.name == name);
        let missing =
            listening.iter().filter(|name| !is_there(name)).map(|name| (*name).to_owned());
        let before = std::mem::take(&mut self.missed);
        let (dropped, missed) = missing.partition(|name| before.contains(name));
        self.missed = missed;
        if !self.missed.is_empty() {
            self.list_soon(now);
        }
        Ok(dropped)
    }

    /// Lists the runners sooner than usual.
    fn list_soon(&mut self, now: Millis) {
        let soon = now + self.reconcile.min(LIST_SOON);
        self.next_list = self.next_list.map(|at| at.min(soon));
    }

    /// Does what is due: deletes runners that have to go, lists those that are there.
    pub(super) fn act(&mut self, now: Millis, tasks: &mut Tasks) {
        let Some(forge) = self.forge.clone() else { return };
        for due in self.removals.due(now) {
            let forge = forge.clone();
            tasks.report(async move {
                let removed = forge.deregister(&due.name, due.pool.as_deref(), due.number);
                let removed = in_time(removed).await;
                Happening::Deregistered(due.name, removed)
            });
        }
        if self.next_list.is_some_and(|at| at <= now) {
            self.next_list = None;
            tasks.report(async move { Happening::Listed(now, in_time(forge.runners()).await) });
        }
    }

    /// When something is due next.
    pub(super) fn wake(&self) -> Option<Millis> {
        self.forge.as_ref()?;
        self.removals.wake().into_iter().chain(self.next_list).min()
    }

    /// The daemon begins to drain: every removal is tried once more, now.
    pub(super) fn hurry(&mut self, now: Millis) {
        self.removals.hurry(now);
    }

    /// Whether every removal that is left was tried since then. What could not be removed is told,
    /// and swept by the next daemon.
    pub(super) fn is_settled(&self, since: Millis) -> bool {
        self.forge.is_none() || self.removals.were_tried_since(since)
    }

    /// Says what the next daemon has to remove.
    pub(super) fn tell_left(&self) {
        let names: Vec<_> = self.removals.names().collect();
        if !names.is_empty() {
            let names = names.join(", ");
            tracing::warn!("registrations are left, and removed at the next start: {names}");
        }
    }
}

/// Whether a registration still waits for its runner, or for its runner's job.
fn is_open(name: &str, ledger: &Ledger) -> Result<bool, DaemonError> {
    let known = ledger.reader().registration(name)?;
    Ok(known.is_some_and(|known| {
        matches!(known.state, RegistrationState::Intended | RegistrationState::Registered)
    }))
}

/// A call that does not come back may have had its effect.
async fn in_time<T>(call: impl Future<Output = Result<T, ForgeError>>) -> Result<T, ForgeError> {
    tokio::time::timeout(CALL, call).await.unwrap_or_else(|_| {
        let within = humantime::format_duration(CALL);
        Err(ForgeError::Ambiguous(format!("no answer came within {within}")))
    })
}

/// When a pool's microVMs become runners.
pub(super) fn registers(pool: &Pool) -> Registers {
    match pool.trigger {
        Trigger::None => Registers::Never,
        Trigger::Always => Registers::Always,
        Trigger::Webhook | Trigger::Poll | Trigger::ScaleSet | Trigger::Auto => Registers::Late,
    }
}

fn from_now(until: SystemTime) -> Duration {
    until.duration_since(SystemTime::now()).unwrap_or_default()
}

/// What an error of the forge's means for those who wait.
fn blocker(error: &ForgeError) -> Blocker {
    match error {
        ForgeError::RateLimited { .. } => Blocker::RateLimited,
        ForgeError::Unreachable(why) | ForgeError::Ambiguous(why) => {
            Blocker::Unreachable(why.clone())
        }
        ForgeError::Unauthorized(why) | ForgeError::Refused(why) | ForgeError::NameTaken(why) => {
            Blocker::Refused(why.clone())
        }
    }
}

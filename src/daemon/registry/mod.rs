//! The registry: this daemon's runners at the forge, from the choice of a name until the forge has
//! removed it.
//!
//! Owns the forge ([`Forge`]), the request what it listens for, the registrations to delete
//! ([`Removals`]), the failures of new ones, and of the ledger the registrations. Which microVM
//! becomes a runner is decided elsewhere.

mod reachability;
mod removals;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};

use super::clock::Clock;
use super::decide::{ActiveBlocker, Blocker, MicrovmKey, PoolId, RegistrationPolicy};
use super::error::DaemonError;
use super::event::DaemonEvent;
use super::pools::{PoolFailures, Pools};
use super::tasks::Tasks;
use super::time::Millis;
use mayfly_api::types::ReadinessCheck;
use mayfly_config::{PoolConfig, Trigger};
use mayfly_forge::{
    Forge, ForgeError, ForgeEvent, ListenRequest, RemoteRunner, RemovalOutcome, ScaleSetLocations,
};
use mayfly_ledger::{Ledger, RegistrationState};
use reachability::Reachability;
use removals::{Removals, orphans};

/// The longest wait before the next list of runners after an unanswered call. The list shows what
/// the call left behind.
const LIST_SOON: Duration = Duration::from_secs(20);
/// The minimum wait after a rate limit, whose end is given in whole seconds.
const MIN_RATE_LIMIT_WAIT: Duration = Duration::from_secs(1);
/// How long a call may take. A forge has its own deadlines; this one applies to all calls.
const CALL_TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// The registrations, and the access to the forge.
pub(super) struct Registry {
    forge: Option<Arc<dyn Forge>>,
    /// How the names of this daemon's runners begin.
    prefix: String,
    removals: Removals,
    /// When the forge's runners are listed next; `None` while a list is being fetched.
    next_list_at: Option<Millis>,
    /// Time between two lists.
    reconcile: Duration,
    /// Runners of this daemon that the last list did not have.
    missing_once: Vec<String>,
    reachability: Reachability,
    call_failures: PoolFailures,
    runner_failures: PoolFailures,
    /// The pools whose runners can be registered, as the forge reported.
    ready_pools: BTreeSet<PoolId>,
    /// The scale sets that the forge has for pools.
    locations: ScaleSetLocations,
    listen_request: watch::Sender<ListenRequest>,
}

/// The result of a deletion for the runner's microVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeregistrationResult {
    /// The runner is gone: its microVM can end.
    Gone,
    /// The runner has a job.
    Busy,
    /// The deletion is retried.
    Retrying,
}

impl Registry {
    pub(super) fn new(forge: Option<Arc<dyn Forge>>, prefix: String) -> Self {
        Self {
            next_list_at: forge.as_ref().map(|_| Millis(0)),
            forge,
            prefix,
            removals: Removals::default(),
            reconcile: LIST_SOON,
            missing_once: Vec::new(),
            reachability: Reachability::default(),
            call_failures: PoolFailures::default(),
            runner_failures: PoolFailures::default(),
            ready_pools: BTreeSet::new(),
            locations: ScaleSetLocations::new(),
            listen_request: watch::Sender::new(ListenRequest::default()),
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

    /// Updates what the forge listens for: jobs for these pools, or none while the daemon drains.
    pub(super) fn update_listen_request(&mut self, pools: &Pools, draining: bool, absences: u64) {
        let requested = pools.iter().map(|(_, pool)| {
            let most = if draining { 0 } else { pool.max };
            (pool.name.clone(), (pool.clone(), most))
        });
        let (pools, locations) = (requested.collect(), self.locations.clone());
        self.listen_request.send_replace(ListenRequest { pools, locations, absences });
    }

    /// Sets the scale sets that the forge has for pools.
    pub(super) fn set_locations(&mut self, locations: ScaleSetLocations) {
        self.locations = locations;
    }

    /// Applies the settings: how often runners are listed.
    pub(super) fn apply_settings(&mut self, settings: Option<&mayfly_config::GitHubConfig>) {
        self.reconcile = settings.map_or(LIST_SOON, |settings| settings.reconcile);
    }

    /// Starts the forge's listener, which ends with this registry.
    pub(super) fn listen(&self, to: mpsc::Sender<ForgeEvent>, tasks: &mut Tasks) {
        if let Some(forge) = &self.forge {
            tasks.spawn(forge.clone().listen(self.listen_request.subscribe(), to));
        }
    }

    /// Returns why no runner of a pool can be registered, if so.
    pub(super) fn blocker(&self, id: PoolId, pool: &PoolConfig) -> Option<ActiveBlocker> {
        if registration_policy(pool) == RegistrationPolicy::Never {
            return None;
        }
        let discovers_registration = matches!(pool.trigger, Trigger::ScaleSet | Trigger::Auto);
        let is_ready =
            self.forge.is_some() && (!discovers_registration || self.ready_pools.contains(&id));
        match (self.call_failures.blocker(id), is_ready) {
            (Some(failure), _) => Some(failure),
            (None, true) => self.runner_failures.blocker(id),
            (None, false) => {
                let why = "the pool's registration is still being set up".to_owned();
                Some(ActiveBlocker { until: None, reason: Blocker::Unreachable(why) })
            }
        }
    }

    /// Returns whether the forge is reachable; `None` without a forge.
    pub(super) fn check(&self, now: Millis) -> Option<ReadinessCheck> {
        self.forge.as_ref().map(|_| self.reachability.check(self.reconcile, now))
    }

    /// Records that runners of a pool can be registered from now on.
    pub(super) fn mark_ready(&mut self, pool: PoolId, now: Millis) {
        self.reachability.record(None, now);
        self.ready_pools.insert(pool);
        self.call_failures.clear(pool);
    }

    /// Records that the forge responded.
    pub(super) fn mark_reachable(&mut self, now: Millis) {
        self.reachability.record(None, now);
    }

    /// Records that listening failed, for a pool or for all.
    pub(super) fn record_listen_failure(
        &mut self,
        pool: Option<(PoolId, &str)>,
        error: &ForgeError,
        clock: Clock,
    ) {
        self.reachability.record(Some(error), clock.now());
        let Some((id, name)) = pool else {
            tracing::warn!("can't poll GitHub for jobs: {error}");
            return;
        };
        tracing::warn!(pool = name, "can't receive messages of the scale set: {error}");
        if !self.ready_pools.contains(&id) {
            self.record_call_failure(id, error, clock);
        }
    }

    fn record_call_failure(&mut self, pool: PoolId, error: &ForgeError, clock: Clock) {
        let now = clock.now();
        match error {
            ForgeError::RateLimited { until, .. } => {
                self.call_failures.record_until(pool, blocker(error), now + from_now(*until), now);
            }
            _ => self.call_failures.record(pool, blocker(error), now),
        }
    }

    /// Records that a runner of a pool ended before it had a job.
    pub(super) fn record_runner_failure(&mut self, pool: PoolId, why: String, now: Millis) {
        self.runner_failures.record(pool, Blocker::RunnersFail(why), now);
    }

    /// Chooses and records a name for a runner, and starts its registration at the forge.
    pub(super) fn register(
        &mut self,
        key: MicrovmKey,
        microvm: &str,
        pool: &PoolConfig,
        ledger: &mut Ledger,
        tasks: &mut Tasks,
    ) -> Result<Option<String>, DaemonError> {
        let Some(forge) = self.forge.clone() else { return Ok(None) };
        let random = mayfly_host::random::<8>().map_err(DaemonError::Random)?;
        let random = data_encoding::BASE32_DNSSEC.encode(&random);
        let name = format!("{}{}-{}", self.prefix, pool.name, &random[..10]);
        ledger.intend_registration(&name, pool.name.as_str(), microvm)?;
        let (pool, requested_name) = (pool.clone(), name.clone());
        tasks.spawn_reporting(async move {
            let registered = with_timeout(forge.register(&requested_name, &pool)).await;
            DaemonEvent::Registered(key, requested_name, registered)
        });
        Ok(Some(name))
    }

    /// Records a successful registration. A registration that was removed meanwhile stays removed.
    pub(super) fn record_registered(
        &mut self,
        name: &str,
        number: u64,
        pool: Option<PoolId>,
        ledger: &mut Ledger,
        now: Millis,
    ) -> Result<(), DaemonError> {
        self.reachability.record(None, now);
        if let Some(pool) = pool {
            self.call_failures.clear(pool);
        }
        if is_open(name, ledger)? {
            ledger.record_registered(name, number)?;
        }
        Ok(())
    }

    /// Records a failed or unanswered registration.
    pub(super) fn record_registration_failure(
        &mut self,
        name: &str,
        pool: Option<(PoolId, &str)>,
        error: &ForgeError,
        ledger: &mut Ledger,
        clock: Clock,
    ) -> Result<(), DaemonError> {
        let now = clock.now();
        tracing::warn!(runner = name, "can't register the runner: {error}");
        self.reachability.record(Some(error), now);
        if let Some((id, _)) = pool {
            self.record_call_failure(id, error, clock);
        }
        match error {
            // It may exist anyway, now or soon.
            ForgeError::Ambiguous(_) | ForgeError::NameTaken(_) => {
                self.removals.add(name, pool.map(|(_, name)| name), None, now);
                self.list_soon(now);
            }
            _ => _ = ledger.record_deleted(name)?,
        }
        Ok(())
    }

    /// Schedules the deletion of a runner.
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

    /// Records that the forge removed a runner whose job is done. If it did not, the next list
    /// shows it.
    pub(super) fn record_removed_by_forge(
        name: &str,
        ledger: &mut Ledger,
    ) -> Result<(), DaemonError> {
        ledger.record_deleted(name)?;
        Ok(())
    }

    /// Records that a runner took a job. Only that proves that runners of the pool work;
    /// registering and listening do not.
    pub(super) fn record_job_taken(
        &mut self,
        name: &str,
        pool: PoolId,
        job: &str,
        ledger: &mut Ledger,
    ) -> Result<(), DaemonError> {
        self.runner_failures.clear(pool);
        // It may be recorded already: from the runner, from the forge, or by an earlier daemon.
        if is_open(name, ledger)? {
            ledger.record_taken(name, job)?;
        }
        Ok(())
    }

    /// Records the result of a deletion.
    pub(super) fn record_deregistration(
        &mut self,
        name: &str,
        removed: &Result<RemovalOutcome, ForgeError>,
        has_microvm: bool,
        ledger: &mut Ledger,
        now: Millis,
    ) -> Result<DeregistrationResult, DaemonError> {
        self.reachability.record(removed.as_ref().err(), now);
        Ok(match removed {
            Ok(RemovalOutcome::Gone) => {
                self.removals.remove(name);
                if ledger.reader().registration(name)?.is_some() {
                    ledger.record_deleted(name)?;
                }
                DeregistrationResult::Gone
            }
            Ok(RemovalOutcome::Busy) if has_microvm => {
                // It got a job while it was being retired, so it stays.
                self.removals.remove(name);
                DeregistrationResult::Busy
            }
            Ok(RemovalOutcome::Busy) => {
                self.removals.record_failure(name, now);
                DeregistrationResult::Retrying
            }
            Err(error) => {
                tracing::warn!(runner = name, "can't delete the runner: {error}");
                match error {
                    ForgeError::RateLimited { until, .. } => {
                        self.removals.postpone(
                            name,
                            now + from_now(*until).max(MIN_RATE_LIMIT_WAIT),
                            now,
                        );
                    }
                    _ => self.removals.record_failure(name, now),
                }
                DeregistrationResult::Retrying
            }
        })
    }

    /// Applies the forge's list of runners: schedules the deletion of this daemon's unused runners.
    /// Returns those of `listening` that two lists in a row did not have: the forge dropped them.
    /// `listening` has the runners that listened before the list was requested.
    pub(super) fn reconcile_runners(
        &mut self,
        runners: &Result<Vec<RemoteRunner>, ForgeError>,
        in_use: &BTreeSet<&str>,
        listening: &BTreeSet<&str>,
        ledger: &Ledger,
        now: Millis,
    ) -> Result<Vec<String>, DaemonError> {
        self.reachability.record(runners.as_ref().err(), now);
        let runners = match runners {
            Ok(runners) => runners,
            Err(error) => {
                tracing::warn!("can't list the runners: {error}");
                self.next_list_at = Some(now + self.reconcile.min(LIST_SOON));
                return Ok(Vec::new());
            }
        };
        self.next_list_at = Some(now + self.reconcile);
        for runner in orphans(runners, &self.prefix, in_use) {
            if !runner.busy && !self.removals.contains(&runner.name) {
                tracing::warn!(runner = runner.name, "deleting an unused runner of this daemon");
                self.remove(&runner.name, Some(runner.id), ledger, now)?;
            }
        }
        let is_there = |name: &str| runners.iter().any(|runner| runner.name == name);
        let missing =
            listening.iter().filter(|name| !is_there(name)).map(|name| (*name).to_owned());
        let before = std::mem::take(&mut self.missing_once);
        let (dropped, missing_once) = missing.partition(|name| before.contains(name));
        self.missing_once = missing_once;
        if !self.missing_once.is_empty() {
            self.list_soon(now);
        }
        Ok(dropped)
    }

    /// Schedules the next list sooner than usual.
    fn list_soon(&mut self, now: Millis) {
        let soon = now + self.reconcile.min(LIST_SOON);
        self.next_list_at = self.next_list_at.map(|at| at.min(soon));
    }

    /// Starts the due calls: deletions, and the list of runners.
    pub(super) fn start_due_calls(&mut self, now: Millis, tasks: &mut Tasks) {
        let Some(forge) = self.forge.clone() else { return };
        for due in self.removals.due(now) {
            let forge = forge.clone();
            tasks.spawn_reporting(async move {
                let removed = forge.deregister(&due.name, due.pool.as_deref(), due.number);
                let removed = with_timeout(removed).await;
                DaemonEvent::Deregistered(due.name, removed)
            });
        }
        if self.next_list_at.is_some_and(|at| at <= now) {
            self.next_list_at = None;
            tasks.spawn_reporting(async move {
                DaemonEvent::RunnersListed(now, with_timeout(forge.runners()).await)
            });
        }
    }

    /// Returns when the next call is due.
    pub(super) fn next_wake(&self) -> Option<Millis> {
        self.forge.as_ref()?;
        self.removals.next_wake().into_iter().chain(self.next_list_at).min()
    }

    /// Makes every deletion due now, because the daemon starts to drain.
    pub(super) fn retry_removals_now(&mut self, now: Millis) {
        self.removals.retry_now(now);
    }

    /// Returns whether every remaining deletion was tried since `since`. The next daemon does those
    /// that failed.
    pub(super) fn are_removals_tried_since(&self, since: Millis) -> bool {
        self.forge.is_none() || self.removals.were_all_tried_since(since)
    }

    /// Logs what the next daemon has to remove.
    pub(super) fn log_remaining(&self) {
        let names: Vec<_> = self.removals.names().collect();
        if !names.is_empty() {
            let names = names.join(", ");
            tracing::warn!("runners are still registered; the next start deletes them: {names}");
        }
    }
}

/// Returns whether a registration still waits for its runner, or for its runner's job.
fn is_open(name: &str, ledger: &Ledger) -> Result<bool, DaemonError> {
    let known = ledger.reader().registration(name)?;
    Ok(known.is_some_and(|known| {
        matches!(known.state, RegistrationState::Intended | RegistrationState::Registered)
    }))
}

/// Limits the duration of a call. A call that timed out may have had its effect.
async fn with_timeout<T>(
    call: impl Future<Output = Result<T, ForgeError>>,
) -> Result<T, ForgeError> {
    tokio::time::timeout(CALL_TIMEOUT, call).await.unwrap_or_else(|_| {
        let within = humantime::format_duration(CALL_TIMEOUT);
        Err(ForgeError::Ambiguous(format!("no response within {within}")))
    })
}

/// Returns when a pool's microVMs become runners.
pub(super) fn registration_policy(pool: &PoolConfig) -> RegistrationPolicy {
    match pool.trigger {
        Trigger::None => RegistrationPolicy::Never,
        Trigger::Always => RegistrationPolicy::Always,
        Trigger::Webhook | Trigger::Poll | Trigger::ScaleSet | Trigger::Auto => {
            RegistrationPolicy::OnDemand
        }
    }
}

fn from_now(until: SystemTime) -> Duration {
    until.duration_since(SystemTime::now()).unwrap_or_default()
}

/// Converts an error of the forge to the reason why jobs wait.
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

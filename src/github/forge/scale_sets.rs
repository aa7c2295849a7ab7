//! The tasks of scale sets: one per pool, which creates or finds its set and holds its session; and
//! one per former set, which removes it.
//!
//! Like every source of events, they only report what they receive.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::GitHubForge;
use super::registrar::Registrar;
use crate::CallError;
use crate::scale_set::{
    JobMessage, JobMessageKind, MessageSession, PollResult, ScaleSetClient, ScaleSetStatistics,
    SessionMessage, is_session_conflict,
};
use mayfly_config::github::Target;
use mayfly_config::{PoolConfig, PoolName, Trigger};
use mayfly_failure::chain;
use mayfly_forge::{ForgeEvent, ListenRequest, ScaleSetLocations};

/// The wait before a lost session is replaced.
const SESSION_RETRY: Duration = Duration::from_secs(5);
/// The wait after a session conflict. A session lingers for about 50 s after its owner exits.
const CONFLICT_RETRY: Duration = Duration::from_secs(15);
/// The wait between two attempts to acquire offered jobs.
const ACQUIRE_RETRY: Duration = Duration::from_secs(1);
/// The wait between two attempts to remove a former set: refused while it has running jobs.
const REMOVE_RETRY: Duration = Duration::from_secs(60);

/// The tasks of scale sets. Dropping an entry cancels its task.
#[derive(Default)]
pub(super) struct ScaleSetTasks {
    active: BTreeMap<PoolName, ActiveSet>,
    /// Removals of former sets. This includes sets of existing pools in a group that the pool no
    /// longer uses: jobs would keep waiting there.
    removals: BTreeMap<SetLocation, DropGuard>,
}

/// A pool's set with a running task.
struct ActiveSet {
    /// The maximum number of runners; 0 takes no more jobs.
    capacity: watch::Sender<u32>,
    /// The labels and the group that the set was created with.
    labels: Vec<String>,
    group: Option<String>,
    _cancel: DropGuard,
}

/// A pool's name and the location of a set with that name.
type SetLocation = (String, String);

/// Starts and stops tasks so that exactly the pools that use scale sets have one.
pub(super) fn reconcile(
    github: &Arc<GitHubForge>,
    request: &mut watch::Receiver<ListenRequest>,
    sets: &mut ScaleSetTasks,
    tasks: &mut JoinSet<()>,
    events: &mpsc::Sender<ForgeEvent>,
) {
    let current = request.borrow_and_update().clone();
    let uses_set = |pool: &PoolConfig| matches!(pool.trigger, Trigger::ScaleSet | Trigger::Auto);
    let pools: BTreeMap<_, _> =
        current.pools.iter().filter(|(_, (pool, _))| uses_set(pool)).collect();
    // A set whose labels changed gets a new task, which updates them at the service.
    sets.active.retain(|name, active| {
        let is_same =
            |pool: &PoolConfig| pool.labels == active.labels && pool.runner_group == active.group;
        pools.get(name).is_some_and(|(pool, _)| is_same(pool))
    });
    let scope = github.client.target();
    let location_of = |(name, (pool, _)): (&&PoolName, &&(PoolConfig, u32))| {
        (name.to_string(), location(scope, pool.runner_group.as_deref()))
    };
    let former = former_sets(scope, &current.locations, &pools.iter().map(location_of).collect());
    sets.removals.retain(|set, _| former.contains(set));
    for set in former {
        sets.removals.entry(set).or_insert_with_key(|set| {
            let cancel = CancellationToken::new();
            let removal = remove(github.scale_sets.clone(), set.clone(), events.clone());
            let token = cancel.clone();
            tasks.spawn(async move {
                token.run_until_cancelled(removal).await.unwrap_or_default();
            });
            cancel.drop_guard()
        });
    }
    for (name, (pool, capacity)) in pools {
        if let Some(active) = sets.active.get(name) {
            active.capacity.send_replace(*capacity);
            continue;
        }
        let (sender, capacity) = watch::channel(*capacity);
        let cancel = CancellationToken::new();
        let task = ScaleSetTask {
            github: github.clone(),
            pool: pool.clone(),
            request: request.clone(),
            capacity,
            events: events.clone(),
            cancel: cancel.clone(),
        };
        tasks.spawn(task.run());
        let (labels, group) = (pool.labels.clone(), pool.runner_group.clone());
        let active = ActiveSet { capacity: sender, labels, group, _cancel: cancel.drop_guard() };
        sets.active.insert(name.clone(), active);
    }
}

/// Returns the known sets of this scope that no pool uses now. Those of another scope stay until a
/// daemon with credentials for it runs.
fn former_sets(
    scope: &Target,
    known: &ScaleSetLocations,
    current: &BTreeSet<SetLocation>,
) -> BTreeSet<SetLocation> {
    let all = known.iter().flat_map(|(pool, locations)| {
        locations.iter().map(move |location| (pool.clone(), location.clone()))
    });
    let is_in_scope = |location: &str| {
        location.strip_prefix(&scope.to_string()).is_some_and(|rest| rest.starts_with(' '))
    };
    all.filter(|set| is_in_scope(&set.1) && !current.contains(set)).collect()
}

/// Returns a set's location as it is stored: the scope, which has no spaces, a space, and the
/// runner group's name, which is empty for the default group.
fn location(scope: &Target, group: Option<&str>) -> String {
    format!("{scope} {}", group.unwrap_or_default())
}

/// Removes a set, with retries. Canceled if its pool uses it again.
async fn remove(
    sets: ScaleSetClient,
    (pool, location): SetLocation,
    events: mpsc::Sender<ForgeEvent>,
) {
    let group = location.split_once(' ').map(|(_, group)| group).filter(|group| !group.is_empty());
    while let Err(error) = sets.remove_named(&pool, group).await {
        tracing::warn!(pool, group, "can't remove a former scale set: {}", chain(&error));
        tokio::time::sleep(REMOVE_RETRY).await;
    }
    tracing::info!(pool, group, "removed a former scale set");
    // The receiver may be closed during shutdown; the next daemon then repeats the removal.
    let _ = events.send(ForgeEvent::ScaleSetRemoved { pool, location }).await;
}

struct ScaleSetTask {
    github: Arc<GitHubForge>,
    pool: PoolConfig,
    request: watch::Receiver<ListenRequest>,
    capacity: watch::Receiver<u32>,
    events: mpsc::Sender<ForgeEvent>,
    cancel: CancellationToken,
}

/// The task was canceled.
struct Canceled;

impl ScaleSetTask {
    async fn run(self) {
        // It ends when it is canceled, or when the pool falls back to polling.
        let _ = self.hold_set().await;
    }

    /// Awaits `work`, unless the task is canceled.
    async fn until_canceled<T>(&self, work: impl Future<Output = T>) -> Result<T, Canceled> {
        self.cancel.run_until_cancelled(work).await.ok_or(Canceled)
    }

    async fn emit(&self, event: ForgeEvent) {
        // The receiver may be closed during shutdown; the event is then not needed.
        let _ = self.events.send(event).await;
    }

    async fn report_failure(&self, error: CallError) {
        self.emit(ForgeEvent::Failed(Some(self.pool.name.clone()), error.into())).await;
    }

    async fn set_registrar(&self, registrar: Registrar) {
        self.github.set_registrar(&self.pool.name, registrar);
        self.emit(ForgeEvent::PoolReady(self.pool.name.clone())).await;
    }

    /// Has the set's location recorded before the set is created: if this daemon is killed in
    /// between, the next one finds it.
    async fn record_location(&self) -> Result<(), Canceled> {
        let (pool, location) = (self.pool.name.to_string(), self.location());
        let planned =
            ForgeEvent::ScaleSetPlanned { pool: pool.clone(), location: location.clone() };
        self.emit(planned).await;
        let mut request = self.request.clone();
        let is_recorded = |request: &ListenRequest| {
            request.locations.get(&pool).is_some_and(|all| all.contains(&location))
        };
        let recorded = async { request.wait_for(is_recorded).await.map(drop) };
        self.until_canceled(recorded).await?.map_err(|_| Canceled)
    }

    fn location(&self) -> String {
        location(self.github.client.target(), self.pool.runner_group.as_deref())
    }

    /// Creates or finds the set, then holds its sessions; starts over if the set is lost.
    async fn hold_set(&self) -> Result<(), Canceled> {
        let (pool, sets) = (&self.pool, &self.github.scale_sets);
        let group = pool.runner_group.as_deref();
        self.record_location().await?;
        loop {
            let ensured =
                self.until_canceled(sets.ensure(pool.name.as_str(), group, &pool.labels)).await?;
            match ensured {
                Ok(set) => {
                    self.set_registrar(Registrar::ScaleSet(sets.clone(), set.id)).await;
                    self.hold_sessions(set.id).await?;
                }
                // GitHub has no scale sets for this scope: register with the scope, and poll.
                Err(error) if pool.trigger == Trigger::Auto && !error.is_transient() => {
                    let why = chain(&error);
                    let pool = &pool.name;
                    tracing::info!(%pool, "scale sets are not available, polling instead: {why}");
                    self.set_registrar(Registrar::Scope(self.github.client.clone())).await;
                    let (pool, location) = (pool.to_string(), self.location());
                    self.emit(ForgeEvent::ScaleSetRemoved { pool, location }).await;
                    return Ok(());
                }
                Err(error) => self.report_failure(error).await,
            }
            self.until_canceled(tokio::time::sleep(SESSION_RETRY)).await?;
        }
    }

    /// Holds one session after another until the set is gone.
    async fn hold_sessions(&self, set: u64) -> Result<(), Canceled> {
        loop {
            let open = self.github.scale_sets.open(set, &self.github.session_owner);
            let wait = match self.until_canceled(open).await? {
                Ok(session) => {
                    self.emit(ForgeEvent::Reachable).await;
                    match self.run_session(session).await? {
                        Some(wait) => wait,
                        None => return Ok(()),
                    }
                }
                Err(CallError::NotFound { .. }) => return Ok(()),
                Err(error) => {
                    let is_conflict = is_session_conflict(&error);
                    self.report_failure(error).await;
                    if is_conflict { CONFLICT_RETRY } else { SESSION_RETRY }
                }
            };
            self.until_canceled(tokio::time::sleep(wait)).await?;
        }
    }

    /// Polls a session and closes it. Returns the wait before the next session; `None` if the set
    /// is gone.
    async fn run_session(&self, mut session: MessageSession) -> Result<Option<Duration>, Canceled> {
        let result = self.poll_session(&mut session).await;
        if let Err(error) = session.close().await {
            tracing::debug!("can't close a scale set session, it will expire: {}", chain(&error));
        }
        result
    }

    async fn poll_session(
        &self,
        session: &mut MessageSession,
    ) -> Result<Option<Duration>, Canceled> {
        self.report_statistics(session.statistics()).await;
        loop {
            let announced = *self.capacity.borrow();
            // Drop the poll when the capacity changes: its result would be for the old capacity.
            let mut capacity = self.capacity.clone();
            let polled = tokio::select! {
                polled = self.until_canceled(session.poll(announced)) => polled?,
                Ok(_) = capacity.wait_for(|now| *now != announced) => continue,
            };
            match polled {
                Ok(PollResult::Nothing) => {}
                Ok(PollResult::Message(message)) => {
                    self.handle_message(session, message, announced).await?;
                }
                Ok(PollResult::SessionLost(wait)) => return Ok(Some(wait)),
                Ok(PollResult::ScaleSetLost) => {
                    tracing::error!(pool = %self.pool.name, "the scale set was deleted at GitHub");
                    return Ok(None);
                }
                Err(error) => {
                    // The session survives transient errors; its polls pause by themselves.
                    let is_transient = error.is_transient();
                    self.report_failure(error).await;
                    if !is_transient {
                        return Ok(Some(SESSION_RETRY));
                    }
                }
            }
        }
    }

    /// Handles a message from a poll that announced a capacity of `announced`.
    async fn handle_message(
        &self,
        session: &mut MessageSession,
        message: SessionMessage,
        announced: u32,
    ) -> Result<(), Canceled> {
        let offered = message.items.iter().filter(|item| item.kind == JobMessageKind::Available);
        let offered: Vec<u64> = offered.map(|item| item.request_id).collect();
        if !offered.is_empty() && (announced == 0 || *self.capacity.borrow() == 0) {
            // Unacknowledged, the offer is repeated to the next owner of the session.
            tracing::info!(pool = %self.pool.name, "ignored offered jobs: the pool takes no more");
            return self.until_canceled(tokio::time::sleep(ACQUIRE_RETRY)).await;
        }
        if !offered.is_empty()
            && let Err(error) = session.acquire(&offered).await
        {
            // The service makes the offer once; unacknowledged, its message is repeated.
            tracing::warn!("can't acquire jobs of a scale set: {}", chain(&error));
            return self.until_canceled(tokio::time::sleep(ACQUIRE_RETRY)).await;
        }
        for item in message.items {
            self.handle_item(item).await;
        }
        if let Some(statistics) = message.statistics {
            self.report_statistics(statistics).await;
        }
        // The events are sent; if this process dies with them, the next statistics cover them.
        if let Err(error) = session.acknowledge(message.id).await {
            tracing::debug!("can't acknowledge a message, it will be repeated: {}", chain(&error));
        }
        Ok(())
    }

    /// Handles the change of one job: which runner has it. Statistics, not items, count jobs.
    async fn handle_item(&self, item: JobMessage) {
        let JobMessage { kind, name: job, run_id: run, runner_name: runner, .. } = item;
        let pool = self.pool.name.clone();
        tracing::info!(%pool, job, run, runner, %kind, "a job of the scale set changed");
        match (kind, runner) {
            (JobMessageKind::Started, Some(runner)) => {
                self.emit(ForgeEvent::JobStarted { pool, runner, job }).await;
            }
            (JobMessageKind::Completed, Some(runner)) => {
                self.emit(ForgeEvent::JobEnded { runner }).await;
            }
            _ => {}
        }
    }

    async fn report_statistics(&self, counts: ScaleSetStatistics) {
        let waiting = counts.assigned_jobs.saturating_sub(counts.running_jobs);
        self.emit(ForgeEvent::JobsCounted { pool: self.pool.name.clone(), waiting }).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_locations(all: &[(&str, &str)]) -> BTreeSet<SetLocation> {
        all.iter().map(|(pool, location)| ((*pool).to_owned(), (*location).to_owned())).collect()
    }

    #[test]
    fn sets_without_a_pool_are_former_unless_in_another_scope() {
        let scope: Target = "https://github.com/acme".parse().unwrap();
        let mut known = ScaleSetLocations::new();
        for (pool, location) in [
            ("moved", "https://github.com/acme "),
            ("moved", "https://github.com/acme two words"),
            ("gone", "https://github.com/acme "),
            ("kept", "https://github.com/acme "),
            ("moved", "https://github.com/acme-other "),
            ("gone", "https://github.com/acme/site "),
        ] {
            known.entry(pool.to_owned()).or_default().insert(location.to_owned());
        }
        let group = location(&scope, Some("two words"));
        let current = set_locations(&[("moved", &group), ("kept", &location(&scope, None))]);
        let here = "https://github.com/acme ";
        assert_eq!(
            former_sets(&scope, &known, &current),
            set_locations(&[("moved", here), ("gone", here)])
        );
    }
}

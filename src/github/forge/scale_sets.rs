//! The scale sets of pools: one task each, which makes the set, or finds it, and holds its session;
//! and one for each set that no pool has any more, which removes it.
//!
//! Like every source of jobs it only says what it heard.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::GitHub;
use super::registrar::Registrar;
use crate::config::{Pool, PoolName, Trigger};
use crate::failure::chain;
use crate::forge::{Places, Said, Wanted};
use crate::github::scale_set::{
    Client, Item, ItemKind, Message, Polled, Session, Statistics, is_session_conflict,
};
use crate::github::{CallError, Target};

/// Between the loss of a session and the next.
const SESSION_AGAIN: Duration = Duration::from_secs(5);
/// How long another's session may linger after its owner's death: it is about 50 s.
const CONFLICT_AGAIN: Duration = Duration::from_secs(15);
/// Between two tries to take offered jobs.
const ACQUIRE_AGAIN: Duration = Duration::from_secs(1);
/// Between two tries to remove a set that was left: it is refused while the set has running jobs.
const REMOVE_AGAIN: Duration = Duration::from_secs(60);

/// The tasks of scale sets. Each ends with what is here of it.
#[derive(Default)]
pub(super) struct Sets {
    held: BTreeMap<PoolName, Held>,
    /// Those of a pool's name in a group that is not its own any more are removed: jobs would go
    /// on to wait there.
    left: BTreeMap<Placed, DropGuard>,
}

/// A set that is held.
struct Held {
    /// The most runners that there may be; 0 where no more jobs are to be taken.
    capacity: watch::Sender<u32>,
    /// What the set was made with.
    labels: Vec<String>,
    group: Option<String>,
    _ends: DropGuard,
}

/// A pool's name and the place of a set of that name.
type Placed = (String, String);

/// Holds the scale sets of the pools that want one, and no others.
pub(super) fn hold(
    github: &Arc<GitHub>,
    told: &mut watch::Receiver<Wanted>,
    sets: &mut Sets,
    tasks: &mut JoinSet<()>,
    to: &mpsc::Sender<Said>,
) {
    let wanted = told.borrow_and_update().clone();
    let holds = |pool: &Pool| matches!(pool.trigger, Trigger::ScaleSet | Trigger::Auto);
    let pools: BTreeMap<_, _> = wanted.pools.iter().filter(|(_, (pool, _))| holds(pool)).collect();
    // One whose labels changed is held anew, which tells the service of them.
    sets.held.retain(|name, held| {
        let stays = |pool: &Pool| pool.labels == held.labels && pool.runner_group == held.group;
        pools.get(name).is_some_and(|(pool, _)| stays(pool))
    });
    let scope = github.client.target();
    let now = |(name, (pool, _)): (&&PoolName, &&(Pool, u32))| {
        (name.to_string(), place(scope, pool.runner_group.as_deref()))
    };
    let former = former(scope, &wanted.held, &pools.iter().map(now).collect());
    sets.left.retain(|left, _| former.contains(left));
    for left in former {
        sets.left.entry(left).or_insert_with_key(|left| {
            let cancel = CancellationToken::new();
            let removed = remove(github.sets.clone(), left.clone(), to.clone());
            let ends = cancel.clone();
            tasks.spawn(async move { ends.run_until_cancelled(removed).await.unwrap_or_default() });
            cancel.drop_guard()
        });
    }
    for (name, (pool, capacity)) in pools {
        if let Some(held) = sets.held.get(name) {
            held.capacity.send_replace(*capacity);
            continue;
        }
        let (sender, capacity) = watch::channel(*capacity);
        let cancel = CancellationToken::new();
        let task = Task {
            github: github.clone(),
            pool: pool.clone(),
            wanted: told.clone(),
            capacity,
            to: to.clone(),
            cancel: cancel.clone(),
        };
        tasks.spawn(task.run());
        let (labels, group) = (pool.labels.clone(), pool.runner_group.clone());
        let held = Held { capacity: sender, labels, group, _ends: cancel.drop_guard() };
        sets.held.insert(name.clone(), held);
    }
}

/// The sets of this scope that are held, or were, and are not what a pool has now. Those of another
/// scope wait for a daemon with its credentials.
fn former(scope: &Target, held: &Places, now: &BTreeSet<Placed>) -> BTreeSet<Placed> {
    let all = held
        .iter()
        .flat_map(|(pool, places)| places.iter().map(move |place| (pool.clone(), place.clone())));
    let is_here = |place: &str| {
        place.strip_prefix(&scope.to_string()).is_some_and(|rest| rest.starts_with(' '))
    };
    all.filter(|placed| is_here(&placed.1) && !now.contains(placed)).collect()
}

/// What is kept of where a set is: the scope, in which there is no space, and the name of the
/// runner group, empty for the default one.
fn place(scope: &Target, group: Option<&str>) -> String {
    format!("{scope} {}", group.unwrap_or_default())
}

/// Removes a set, however often it takes. Given up where its pool has it again.
async fn remove(sets: Client, (pool, place): Placed, to: mpsc::Sender<Said>) {
    let group = place.split_once(' ').map(|(_, group)| group).filter(|group| !group.is_empty());
    while let Err(error) = sets.remove_named(&pool, group).await {
        tracing::warn!(pool, group, "can't remove a former scale set: {}", chain(&error));
        tokio::time::sleep(REMOVE_AGAIN).await;
    }
    tracing::info!(pool, group, "the former scale set is removed");
    // The loop ends after its tasks; then the next daemon finds out.
    let _ = to.send(Said::Left { pool, place }).await;
}

struct Task {
    github: Arc<GitHub>,
    pool: Pool,
    wanted: watch::Receiver<Wanted>,
    capacity: watch::Receiver<u32>,
    to: mpsc::Sender<Said>,
    cancel: CancellationToken,
}

/// Nothing more is to be done: the task is cancelled.
struct Cancelled;

impl Task {
    async fn run(self) {
        // It ends by being cancelled; also where the pool falls back to polling.
        let _ = self.hold().await;
    }

    /// Waits for work, unless the task is cancelled.
    async fn unless<T>(&self, work: impl Future<Output = T>) -> Result<T, Cancelled> {
        self.cancel.run_until_cancelled(work).await.ok_or(Cancelled)
    }

    async fn say(&self, said: Said) {
        // The loop ends after its tasks; then nobody needs to know.
        let _ = self.to.send(said).await;
    }

    async fn fails(&self, error: CallError) {
        self.say(Said::Fails(Some(self.pool.name.clone()), error.into())).await;
    }

    async fn registers(&self, registrar: Registrar) {
        self.github.find(&self.pool.name, registrar);
        self.say(Said::Ready(self.pool.name.clone())).await;
    }

    /// Has it kept, before a set is made, that there may be one: a daemon that is killed in between
    /// leaves it to the next.
    async fn keep(&self) -> Result<(), Cancelled> {
        let (pool, place) = (self.pool.name.to_string(), self.place());
        self.say(Said::Holds { pool: pool.clone(), place: place.clone() }).await;
        let mut wanted = self.wanted.clone();
        let is_kept =
            |wanted: &Wanted| wanted.held.get(&pool).is_some_and(|all| all.contains(&place));
        let kept = async { wanted.wait_for(is_kept).await.map(drop) };
        self.unless(kept).await?.map_err(|_| Cancelled)
    }

    fn place(&self) -> String {
        place(self.github.client.target(), self.pool.runner_group.as_deref())
    }

    /// Makes the set, or finds it, then holds its session; again where the set got lost.
    async fn hold(&self) -> Result<(), Cancelled> {
        let (pool, sets) = (&self.pool, &self.github.sets);
        let group = pool.runner_group.as_deref();
        self.keep().await?;
        loop {
            let made = self.unless(sets.ensure(pool.name.as_str(), group, &pool.labels)).await?;
            match made {
                Ok(set) => {
                    self.registers(Registrar::ScaleSet(sets.clone(), set.id)).await;
                    self.sessions(set.id).await?;
                }
                // GitHub has no scale sets for this scope: the scope registers, and polls tell.
                Err(error) if pool.trigger == Trigger::Auto && !error.is_transient() => {
                    let why = chain(&error);
                    tracing::info!(pool = %pool.name, "no scale set here, polling instead: {why}");
                    self.registers(Registrar::Scope(self.github.client.clone())).await;
                    let (pool, place) = (pool.name.to_string(), self.place());
                    self.say(Said::Left { pool, place }).await;
                    return Ok(());
                }
                Err(error) => self.fails(error).await,
            }
            self.unless(tokio::time::sleep(SESSION_AGAIN)).await?;
        }
    }

    /// Holds one session after another, until the set is gone.
    async fn sessions(&self, set: u64) -> Result<(), Cancelled> {
        loop {
            let wait = match self.unless(self.github.sets.open(set, &self.github.owner)).await? {
                Ok(session) => {
                    self.say(Said::Answers).await;
                    match self.session(session).await? {
                        Some(wait) => wait,
                        None => return Ok(()),
                    }
                }
                Err(CallError::NotFound { .. }) => return Ok(()),
                Err(error) => {
                    let conflict = is_session_conflict(&error);
                    self.fails(error).await;
                    if conflict { CONFLICT_AGAIN } else { SESSION_AGAIN }
                }
            };
            self.unless(tokio::time::sleep(wait)).await?;
        }
    }

    /// Listens to a session and ends it; gives how long to wait before the next, none where its
    /// set is gone.
    async fn session(&self, mut session: Session) -> Result<Option<Duration>, Cancelled> {
        let ended = self.listen(&mut session).await;
        if let Err(error) = session.close().await {
            tracing::debug!("a session lingers: {}", chain(&error));
        }
        ended
    }

    async fn listen(&self, session: &mut Session) -> Result<Option<Duration>, Cancelled> {
        self.count(session.statistics()).await;
        loop {
            let announced = *self.capacity.borrow();
            // A poll that announced another capacity brings nothing that is acted on.
            let mut capacity = self.capacity.clone();
            let polled = tokio::select! {
                polled = self.unless(session.poll(announced)) => polled?,
                Ok(_) = capacity.wait_for(|now| *now != announced) => continue,
            };
            match polled {
                Ok(Polled::Nothing) => {}
                Ok(Polled::Message(message)) => self.take(session, message, announced).await?,
                Ok(Polled::SessionLost(wait)) => return Ok(Some(wait)),
                Ok(Polled::ScaleSetLost) => {
                    tracing::error!(pool = %self.pool.name, "the scale set is gone at GitHub");
                    return Ok(None);
                }
                Err(error) => {
                    // What passes leaves the session as it is; its polls pause by themselves.
                    let passes = error.is_transient();
                    self.fails(error).await;
                    if !passes {
                        return Ok(Some(SESSION_AGAIN));
                    }
                }
            }
        }
    }

    /// Takes what a poll brought that announced so much.
    async fn take(
        &self,
        session: &mut Session,
        message: Message,
        announced: u32,
    ) -> Result<(), Cancelled> {
        let offered = message.items.iter().filter(|item| item.kind == ItemKind::Available);
        let offered: Vec<u64> = offered.map(|item| item.request_id).collect();
        if !offered.is_empty() && (announced == 0 || *self.capacity.borrow() == 0) {
            // Not acknowledged, the offer is made again to whoever has the session next.
            tracing::info!(pool = %self.pool.name, "jobs are offered and left: it takes no more");
            return self.unless(tokio::time::sleep(ACQUIRE_AGAIN)).await;
        }
        if !offered.is_empty()
            && let Err(error) = session.acquire(&offered).await
        {
            // The offer is made once: not acknowledged, its message comes again.
            tracing::warn!("can't acquire jobs of a scale set: {}", chain(&error));
            return self.unless(tokio::time::sleep(ACQUIRE_AGAIN)).await;
        }
        for item in message.items {
            self.tell(item).await;
        }
        if let Some(statistics) = message.statistics {
            self.count(statistics).await;
        }
        // It is with the loop; what is lost with this process comes again as statistics.
        if let Err(error) = session.acknowledge(message.id).await {
            tracing::debug!("a message comes again: {}", chain(&error));
        }
        Ok(())
    }

    /// Statistics count; what is said of single jobs tells which runner has which.
    async fn tell(&self, item: Item) {
        let Item { kind, name: job, run_id: run, runner_name: runner, .. } = item;
        let pool = self.pool.name.clone();
        tracing::info!(%pool, job, run, runner, %kind, "a job of the scale set");
        match (kind, runner) {
            (ItemKind::Started, Some(runner)) => self.say(Said::Took { pool, runner, job }).await,
            (ItemKind::Completed, Some(runner)) => self.say(Said::Ended { runner }).await,
            _ => {}
        }
    }

    async fn count(&self, counts: Statistics) {
        let waiting = counts.assigned_jobs.saturating_sub(counts.running_jobs);
        self.say(Said::Counted { pool: self.pool.name.clone(), waiting }).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(all: &[(&str, &str)]) -> BTreeSet<Placed> {
        all.iter().map(|(pool, place)| ((*pool).to_owned(), (*place).to_owned())).collect()
    }

    #[test]
    fn sets_that_no_pool_has_are_former_and_those_of_another_scope_are_left_alone() {
        let scope: Target = "https://github.com/acme".parse().unwrap();
        let mut held = Places::new();
        for (pool, place) in [
            ("moved", "https://github.com/acme "),
            ("moved", "https://github.com/acme two words"),
            ("gone", "https://github.com/acme "),
            ("kept", "https://github.com/acme "),
            ("moved", "https://github.com/acme-other "),
            ("gone", "https://github.com/acme/site "),
        ] {
            held.entry(pool.to_owned()).or_default().insert(place.to_owned());
        }
        let group = place(&scope, Some("two words"));
        let now = placed(&[("moved", &group), ("kept", &place(&scope, None))]);
        let here = "https://github.com/acme ";
        assert_eq!(former(&scope, &held, &now), placed(&[("moved", here), ("gone", here)]));
    }
}

//! A forge in memory: jobs, runners, and deliveries that are repeated until they are acknowledged.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::faults::{DriverCall, Fault, Faults};
use mayfly_config::{PoolConfig, Trigger};
use mayfly_forge::{
    BoxFuture, Forge, ForgeError, ForgeEvent, JobChange, JobDelivery, ListenRequest, NewRunner,
    RemoteJob, RemoteRunner, RemovalOutcome,
};

/// The prefix of a runner's start configuration. Its name follows.
pub(super) const START: &str = "start ";
/// Time between two tries of an unacknowledged delivery.
const AGAIN: Duration = Duration::from_secs(60);

/// The forge.
#[derive(Debug)]
pub(crate) struct FakeForge {
    state: Mutex<State>,
    changes: watch::Sender<u64>,
    faults: Arc<Faults>,
}

#[derive(Debug, Default)]
struct State {
    jobs: BTreeMap<u64, FakeJob>,
    runners: BTreeMap<String, Registration>,
    numbers: u64,
    registrations: usize,
    /// The domains that it lists, and whether the request for them fails.
    domains: Vec<String>,
    fails_domain_requests: bool,
    outbox: Vec<PendingDelivery>,
    listen_request: ListenRequest,
}

#[derive(Debug, Clone, Copy)]
struct Registration {
    number: u64,
    listens: bool,
    busy: bool,
}

/// A job of the forge.
#[derive(Debug, Clone)]
pub(crate) struct FakeJob {
    pub(crate) job: RemoteJob,
    /// How many runners got it.
    pub(crate) runs: u32,
    pub(crate) over: bool,
}

#[derive(Debug, Clone)]
struct PendingDelivery {
    guid: String,
    change: JobChange,
    job: RemoteJob,
    sent: Option<Instant>,
    acknowledged: Arc<Mutex<bool>>,
}

impl FakeForge {
    pub(crate) fn new(faults: Arc<Faults>) -> Self {
        Self { state: Mutex::default(), changes: watch::Sender::new(0), faults }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Queues a job for runners with a label.
    pub(crate) fn queue(&self, label: &str) -> u64 {
        let mut state = self.state();
        state.numbers += 1;
        let id = state.numbers;
        let job = RemoteJob {
            id,
            run_id: id,
            attempt: 1,
            repository: "octo/hello".to_owned(),
            name: format!("job {id}"),
            labels: vec![label.to_owned()],
            ..RemoteJob::default()
        };
        state.jobs.insert(id, FakeJob { job: job.clone(), runs: 0, over: false });
        state.tell(JobChange::Queued, job);
        drop(state);
        self.changed();
        id
    }

    pub(crate) fn jobs(&self) -> Vec<FakeJob> {
        self.state().jobs.values().cloned().collect()
    }

    /// Returns the maximum number of runners that is requested for each pool.
    pub(crate) fn max_runners(&self) -> Vec<u32> {
        self.state().listen_request.pools.values().map(|(_, most)| *most).collect()
    }

    /// Returns how often the daemon reported a suspension.
    pub(crate) fn absences(&self) -> u64 {
        self.state().listen_request.absences
    }

    /// Returns the names of the registered runners.
    pub(crate) fn registered(&self) -> Vec<String> {
        self.state().runners.keys().cloned().collect()
    }

    /// Sets the domains that it lists from now on; with `None` the request fails.
    pub(crate) fn set_domains(&self, names: Option<&[&str]>) {
        let mut state = self.state();
        state.fails_domain_requests = names.is_none();
        state.domains = names.unwrap_or_default().iter().map(|&name| name.into()).collect();
    }

    /// Returns the number of registrations so far.
    pub(crate) fn registrations(&self) -> usize {
        self.state().registrations
    }

    /// Makes a runner listen. Returns the job that it gets.
    pub(super) async fn job_for(&self, runner: &str) -> (u64, String) {
        let mut changes = self.changes.subscribe();
        loop {
            if let Some(given) = self.give(runner) {
                return given;
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn give(&self, runner: &str) -> Option<(u64, String)> {
        let mut state = self.state();
        state.runners.get_mut(runner)?.listens = true;
        let waits = |fake_job: &&mut FakeJob| fake_job.runs == 0 && !fake_job.over;
        let fake_job = state.jobs.values_mut().find(waits)?;
        fake_job.runs += 1;
        fake_job.job.runner = Some(runner.to_owned());
        let job = fake_job.job.clone();
        state.runners.get_mut(runner)?.busy = true;
        state.tell(JobChange::Running, job.clone());
        drop(state);
        self.changed();
        Some((job.id, job.name))
    }

    /// Ends the job of a runner, and removes the runner.
    pub(super) fn end_job(&self, job: u64, conclusion: &str) {
        let mut state = self.state();
        let Some(fake_job) = state.jobs.get_mut(&job).filter(|fake_job| !fake_job.over) else {
            return;
        };
        fake_job.over = true;
        fake_job.job.conclusion = Some(conclusion.to_owned());
        let job = fake_job.job.clone();
        if let Some(runner) = &job.runner {
            state.runners.remove(runner);
        }
        state.tell(JobChange::Completed, job);
        drop(state);
        self.changed();
    }

    /// Returns the next due delivery, or when the next one is due.
    fn next_delivery(&self) -> Result<PendingDelivery, Option<Instant>> {
        let now = Instant::now();
        let mut state = self.state();
        let is_done = |delivery: &PendingDelivery| *delivery.acknowledged.lock().unwrap();
        state.outbox.retain(|delivery| !is_done(delivery));
        let due =
            |delivery: &&mut PendingDelivery| delivery.sent.is_none_or(|sent| sent + AGAIN <= now);
        if let Some(delivery) = state.outbox.iter_mut().find(due) {
            delivery.sent = Some(now);
            return Ok(delivery.clone());
        }
        let next = state.outbox.iter().filter_map(|delivery| Some(delivery.sent? + AGAIN));
        Err(next.min())
    }

    async fn deliver(&self, to: &mpsc::Sender<ForgeEvent>) {
        let mut changes = self.changes.subscribe();
        loop {
            let PendingDelivery { guid, change, job, acknowledged, .. } = match self.next_delivery()
            {
                Ok(delivery) => delivery,
                Err(next) => {
                    let next = next.unwrap_or_else(|| Instant::now() + AGAIN);
                    let _ = tokio::time::timeout_at(next, changes.changed()).await;
                    continue;
                }
            };
            let said = || {
                let acknowledged = acknowledged.clone();
                let acknowledge = Box::new(move || *acknowledged.lock().unwrap() = true);
                let (guid, change, job) = (guid.clone(), Some(change), job.clone());
                ForgeEvent::JobDelivered(Box::new(JobDelivery { guid, change, job, acknowledge }))
            };
            let fault = self.faults.at(DriverCall::ForgeEvent);
            if let Some(Fault::Late(time)) = fault {
                tokio::time::sleep(time).await;
            }
            // One that never comes is lost on its way.
            let is_lost = matches!(fault, Some(Fault::Never));
            if !is_lost && fault.is_none_or(Fault::has_effect) && to.send(said()).await.is_err() {
                return;
            }
            match fault {
                Some(Fault::Twice) => _ = to.send(said()).await,
                Some(Fault::KilledBefore | Fault::KilledAfter) => {
                    tokio::task::yield_now().await;
                    self.faults.kill();
                }
                _ => {}
            }
        }
    }
}

impl State {
    fn tell(&mut self, change: JobChange, job: RemoteJob) {
        let guid = format!("{change:?} {}", job.id);
        let acknowledged = Arc::default();
        self.outbox.push(PendingDelivery { guid, change, job, sent: None, acknowledged });
    }

    fn register(&mut self, name: &str) -> Result<NewRunner, ForgeError> {
        if self.runners.contains_key(name) {
            return Err(ForgeError::NameTaken("the name is taken".to_owned()));
        }
        self.numbers += 1;
        self.registrations += 1;
        let number = self.numbers;
        let registration = Registration { number, listens: false, busy: false };
        self.runners.insert(name.to_owned(), registration);
        Ok(NewRunner { id: number, start_config: format!("{START}{name}").into() })
    }

    fn deregister(&mut self, name: &str) -> RemovalOutcome {
        if self.runners.get(name).is_some_and(|registration| registration.busy) {
            return RemovalOutcome::Busy;
        }
        self.runners.remove(name);
        RemovalOutcome::Gone
    }
}

fn unreachable_error() -> ForgeError {
    ForgeError::Unreachable("no route to the forge".to_owned())
}

impl Forge for FakeForge {
    fn register<'a>(
        &'a self,
        name: &'a str,
        _pool: &'a PoolConfig,
    ) -> BoxFuture<'a, Result<NewRunner, ForgeError>> {
        let effect = || self.state().register(name);
        Box::pin(self.faults.call(DriverCall::Register, effect, || Err(unreachable_error())))
    }

    fn deregister<'a>(
        &'a self,
        name: &'a str,
        _pool: Option<&'a str>,
        _number: Option<u64>,
    ) -> BoxFuture<'a, Result<RemovalOutcome, ForgeError>> {
        let effect = || Ok(self.state().deregister(name));
        Box::pin(self.faults.call(DriverCall::Deregister, effect, || Err(unreachable_error())))
    }

    fn runners(&self) -> BoxFuture<'_, Result<Vec<RemoteRunner>, ForgeError>> {
        let runner = |(name, one): (&String, &Registration)| RemoteRunner {
            id: one.number,
            name: name.clone(),
            busy: one.busy,
        };
        let effect = move || Ok(self.state().runners.iter().map(runner).collect());
        Box::pin(self.faults.call(DriverCall::Runners, effect, || Err(unreachable_error())))
    }

    fn runner_domains(&self) -> BoxFuture<'_, Result<Option<Vec<String>>, ForgeError>> {
        let State { domains: names, fails_domain_requests, .. } = &*self.state();
        let names = (!names.is_empty()).then(|| names.clone());
        let result = if *fails_domain_requests { Err(unreachable_error()) } else { Ok(names) };
        Box::pin(async move { result })
    }

    fn listen(
        self: Arc<Self>,
        mut listen_request: watch::Receiver<ListenRequest>,
        to: mpsc::Sender<ForgeEvent>,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            // A new listener gets missed deliveries again.
            self.state().outbox.iter_mut().for_each(|delivery| delivery.sent = None);
            let ends = async {
                loop {
                    let now = listen_request.borrow_and_update().clone();
                    let has_set = |pool: &PoolConfig| {
                        matches!(pool.trigger, Trigger::ScaleSet | Trigger::Auto)
                    };
                    let sets = now.pools.iter().filter(|(_, (pool, _))| has_set(pool));
                    for (name, _) in sets {
                        let _ = to.send(ForgeEvent::PoolReady(name.clone())).await;
                    }
                    self.state().listen_request = now;
                    if listen_request.changed().await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = self.deliver(&to) => {}
                () = ends => {}
            }
        })
    }

    fn serves(&self, job: &[String], pool: &[String]) -> bool {
        job.iter().all(|label| pool.contains(label))
    }

    fn relists_waiting_jobs(&self) -> bool {
        false
    }
}

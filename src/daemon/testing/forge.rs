//! A forge in memory: jobs, runners, deliveries that are repeated until they are acknowledged.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::faults::{Call, Fault, Faults};
use crate::config::Pool;
use crate::forge::{
    Change, Delivery, Forge, ForgeError, Job, Promise, Registered, Removal, Runner, Said, Wanted,
};

/// How what starts a runner begins; its name follows.
pub(super) const START: &str = "start ";
/// Between two tries to deliver what was not acknowledged.
const AGAIN: Duration = Duration::from_secs(60);

/// The forge.
#[derive(Debug)]
pub(in crate::daemon) struct FakeForge {
    state: Mutex<State>,
    changes: watch::Sender<u64>,
    faults: Arc<Faults>,
}

#[derive(Debug, Default)]
struct State {
    jobs: BTreeMap<u64, Held>,
    runners: BTreeMap<String, Registration>,
    numbers: u64,
    registrations: usize,
    /// The names that it lists, and whether it does not answer when it is asked for them.
    names: Vec<String>,
    is_silent: bool,
    outbox: Vec<Letter>,
    wanted: Wanted,
}

#[derive(Debug, Clone, Copy)]
struct Registration {
    number: u64,
    listens: bool,
    busy: bool,
}

/// A job as the forge has it.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct Held {
    pub(in crate::daemon) job: Job,
    /// How often it was given to a runner.
    pub(in crate::daemon) runs: u32,
    pub(in crate::daemon) over: bool,
}

#[derive(Debug, Clone)]
struct Letter {
    guid: String,
    change: Change,
    job: Job,
    sent: Option<Instant>,
    acknowledged: Arc<Mutex<bool>>,
}

impl FakeForge {
    pub(in crate::daemon) fn new(faults: Arc<Faults>) -> Self {
        Self { state: Mutex::default(), changes: watch::Sender::new(0), faults }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Queues a job for runners with that label.
    pub(in crate::daemon) fn queue(&self, label: &str) -> u64 {
        let mut state = self.state();
        state.numbers += 1;
        let id = state.numbers;
        let job = Job {
            id,
            run_id: id,
            attempt: 1,
            repository: "octo/hello".to_owned(),
            name: format!("job {id}"),
            labels: vec![label.to_owned()],
            ..Job::default()
        };
        state.jobs.insert(id, Held { job: job.clone(), runs: 0, over: false });
        state.tell(Change::Queued, job);
        drop(state);
        self.changed();
        id
    }

    pub(in crate::daemon) fn jobs(&self) -> Vec<Held> {
        self.state().jobs.values().cloned().collect()
    }

    /// How many runners are wanted of each pool at most.
    pub(in crate::daemon) fn wanted(&self) -> Vec<u32> {
        self.state().wanted.pools.values().map(|(_, most)| *most).collect()
    }

    /// How often the daemon said that it was absent.
    pub(in crate::daemon) fn absences(&self) -> u64 {
        self.state().wanted.absences
    }

    /// The names of the runners that are registered.
    pub(in crate::daemon) fn registered(&self) -> Vec<String> {
        self.state().runners.keys().cloned().collect()
    }

    /// What it lists as its own names from now on; none where it does not answer.
    pub(in crate::daemon) fn list(&self, names: Option<&[&str]>) {
        let mut state = self.state();
        state.is_silent = names.is_none();
        state.names = names.unwrap_or_default().iter().map(|&name| name.into()).collect();
    }

    /// How many runners were registered so far.
    pub(in crate::daemon) fn registrations(&self) -> usize {
        self.state().registrations
    }

    /// A runner listens from now on; gives the job that it gets.
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
        let waits = |held: &&mut Held| held.runs == 0 && !held.over;
        let held = state.jobs.values_mut().find(waits)?;
        held.runs += 1;
        held.job.runner = Some(runner.to_owned());
        let job = held.job.clone();
        state.runners.get_mut(runner)?.busy = true;
        state.tell(Change::Running, job.clone());
        drop(state);
        self.changed();
        Some((job.id, job.name))
    }

    /// The job of a runner is over, and with it the runner.
    pub(super) fn over(&self, job: u64, conclusion: &str) {
        let mut state = self.state();
        let Some(held) = state.jobs.get_mut(&job).filter(|held| !held.over) else { return };
        held.over = true;
        held.job.conclusion = Some(conclusion.to_owned());
        let job = held.job.clone();
        if let Some(runner) = &job.runner {
            state.runners.remove(runner);
        }
        state.tell(Change::Over, job);
        drop(state);
        self.changed();
    }

    /// The next delivery that is to be tried; or when there is one.
    fn next_letter(&self) -> Result<Letter, Option<Instant>> {
        let now = Instant::now();
        let mut state = self.state();
        let is_done = |letter: &Letter| *letter.acknowledged.lock().unwrap();
        state.outbox.retain(|letter| !is_done(letter));
        let due = |letter: &&mut Letter| letter.sent.is_none_or(|sent| sent + AGAIN <= now);
        if let Some(letter) = state.outbox.iter_mut().find(due) {
            letter.sent = Some(now);
            return Ok(letter.clone());
        }
        let next = state.outbox.iter().filter_map(|letter| Some(letter.sent? + AGAIN));
        Err(next.min())
    }

    async fn deliver(&self, to: &mpsc::Sender<Said>) {
        let mut changes = self.changes.subscribe();
        loop {
            let Letter { guid, change, job, acknowledged, .. } = match self.next_letter() {
                Ok(letter) => letter,
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
                Said::Delivered(Box::new(Delivery { guid, change, job, acknowledge }))
            };
            let fault = self.faults.at(Call::Said);
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
    fn tell(&mut self, change: Change, job: Job) {
        let guid = format!("{change:?} {}", job.id);
        let acknowledged = Arc::default();
        self.outbox.push(Letter { guid, change, job, sent: None, acknowledged });
    }

    fn register(&mut self, name: &str) -> Result<Registered, ForgeError> {
        if self.runners.contains_key(name) {
            return Err(ForgeError::NameTaken("there is one of that name".to_owned()));
        }
        self.numbers += 1;
        self.registrations += 1;
        let number = self.numbers;
        let registration = Registration { number, listens: false, busy: false };
        self.runners.insert(name.to_owned(), registration);
        Ok(Registered { number, start: format!("{START}{name}").into() })
    }

    fn deregister(&mut self, name: &str) -> Removal {
        if self.runners.get(name).is_some_and(|registration| registration.busy) {
            return Removal::Busy;
        }
        self.runners.remove(name);
        Removal::Gone
    }
}

fn away() -> ForgeError {
    ForgeError::Unreachable("no route to the forge".to_owned())
}

impl Forge for FakeForge {
    fn register<'a>(
        &'a self,
        name: &'a str,
        _pool: &'a Pool,
    ) -> Promise<'a, Result<Registered, ForgeError>> {
        let effect = || self.state().register(name);
        Box::pin(self.faults.call(Call::Register, effect, || Err(away())))
    }

    fn deregister<'a>(
        &'a self,
        name: &'a str,
        _pool: Option<&'a str>,
        _number: Option<u64>,
    ) -> Promise<'a, Result<Removal, ForgeError>> {
        let effect = || Ok(self.state().deregister(name));
        Box::pin(self.faults.call(Call::Deregister, effect, || Err(away())))
    }

    fn runners(&self) -> Promise<'_, Result<Vec<Runner>, ForgeError>> {
        let runner = |(name, one): (&String, &Registration)| Runner {
            number: one.number,
            name: name.clone(),
            busy: one.busy,
        };
        let effect = move || Ok(self.state().runners.iter().map(runner).collect());
        Box::pin(self.faults.call(Call::Runners, effect, || Err(away())))
    }

    fn names(&self) -> Promise<'_, Result<Option<Vec<String>>, ForgeError>> {
        let State { names, is_silent, .. } = &*self.state();
        let names = (!names.is_empty()).then(|| names.clone());
        let answer = if *is_silent { Err(away()) } else { Ok(names) };
        Box::pin(async move { answer })
    }

    fn listen(
        self: Arc<Self>,
        mut wanted: watch::Receiver<Wanted>,
        to: mpsc::Sender<Said>,
    ) -> Promise<'static, ()> {
        Box::pin(async move {
            // Whoever listens anew asks for what was missed.
            self.state().outbox.iter_mut().for_each(|letter| letter.sent = None);
            let ends = async {
                loop {
                    let now = wanted.borrow_and_update().clone();
                    self.state().wanted = now;
                    if wanted.changed().await.is_err() {
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

    fn confirms(&self) -> bool {
        false
    }
}

//! The part with sockets: a thread that serves the state, holds long polls, sends webhooks.
//!
//! The server lives on a thread of its own with a runtime of its own, so that tests with and without
//! a runtime use it alike. It ends when its [`Simulator`] is dropped.

mod connection;
mod webhooks;

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use crate::contract::{self, Violation};
use crate::faults::Rule;
use crate::http::sim::{self, Summary};
use crate::record::Exchange;
use crate::state::State;
use crate::state::jobs::{Job, NewJob, Status};
use crate::state::settings::Settings;
use crate::time::{self, Millis};

/// How often what time alone brings about is looked after.
const TICK: Duration = Duration::from_millis(50);

/// The state, with who wants to know of its changes.
pub(crate) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    generation: watch::Sender<u64>,
    clock_skew: i64,
}

impl Shared {
    /// This GitHub's clock.
    pub(crate) fn now(&self) -> Millis {
        time::now().saturating_add_signed(self.clock_skew)
    }

    /// A test that failed while it held the state has poisoned nothing that matters to others.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and tells whoever waits. Not for those who wait themselves: each would
    /// wake all others for ever.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State, Millis) -> T) -> T {
        let result = self.change_quietly(change);
        self.changed.notify_all();
        self.generation.send_modify(|generation| *generation += 1);
        result
    }

    /// Changes the state, and leaves it to the next tick to tell.
    pub(crate) fn change_quietly<T>(&self, change: impl FnOnce(&mut State, Millis) -> T) -> T {
        let now = self.now();
        change(&mut self.lock(), now)
    }

    /// Follows changes.
    pub(crate) fn follow(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }
}

/// A GitHub that runs until it is dropped.
pub struct Simulator {
    shared: Arc<Shared>,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Simulator {
    /// Starts on a free port of 127.0.0.1.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn start(settings: Settings) -> std::io::Result<Self> {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), settings)
    }

    /// Starts at an address.
    ///
    /// # Errors
    ///
    /// If it can't be had.
    pub fn start_at(address: SocketAddr, settings: Settings) -> std::io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let clock_skew = settings.clock_skew;
        let url = settings.url.clone().unwrap_or_else(|| format!("http://{address}"));
        let state = State::new(settings, url);
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            generation: watch::Sender::new(0),
            clock_skew,
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let served = Arc::clone(&shared);
        let thread =
            std::thread::Builder::new().name("github-sim".to_owned()).spawn(move || {
                runtime.block_on(serve(listener, served, stopped));
            })?;
        Ok(Self { shared, address, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it is reached: `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Looks at the state, or changes it.
    pub fn with<T>(&self, change: impl FnOnce(&mut State, Millis) -> T) -> T {
        self.shared.change(change)
    }

    /// Queues a job. Returns its number.
    pub fn queue(&self, job: NewJob) -> u64 {
        self.with(|state, now| state.queue(job, now))
    }

    /// Makes something go wrong.
    pub fn add_fault(&self, rule: Rule) {
        self.with(|state, _| state.faults.add(rule));
    }

    /// A job as it is.
    pub fn job(&self, id: u64) -> Option<Job> {
        self.shared.lock().jobs.get(&id).cloned()
    }

    /// Waits until something holds of the state. Returns whether it does.
    pub fn wait(&self, most: Duration, holds: impl Fn(&State) -> bool) -> bool {
        let deadline = Instant::now() + most;
        let mut state = self.shared.lock();
        while !holds(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Waits until all jobs have ended. Returns whether they have.
    pub fn wait_for_all(&self, most: Duration) -> bool {
        self.wait(most, |state| state.jobs.values().all(|job| job.status == Status::Completed))
    }

    /// Every exchange so far.
    pub fn exchanges(&self) -> Vec<Exchange> {
        self.shared.lock().recorder.exchanges().to_vec()
    }

    /// Everything counted.
    pub fn summary(&self) -> Summary {
        sim::summary(&self.shared.lock())
    }

    /// Checks every exchange so far against the contract, if there is one
    /// ([`contract::Contract::from_environment`]).
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn validate(&self, contract: &contract::Contract) -> Result<(), Vec<Violation>> {
        contract.validate(&self.exchanges())
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        // The thread may have ended by itself; nothing is lost then.
        let _ = self.stop.take().map(|stop| stop.send(()));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Serves until told to stop.
async fn serve(
    listener: std::net::TcpListener,
    shared: Arc<Shared>,
    stopped: oneshot::Receiver<()>,
) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    let router = connection::router(Arc::clone(&shared));
    tokio::select! {
        _ = axum::serve(listener, router) => {}
        () = tick(&shared) => {}
        () = webhooks::send(&shared) => {}
        _ = stopped => {}
    }
}

async fn tick(shared: &Shared) {
    let mut interval = tokio::time::interval(TICK);
    loop {
        interval.tick().await;
        shared.change(State::tick);
    }
}

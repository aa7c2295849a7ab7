//! The server: a thread that serves the state, holds long polls and sends webhooks.
//!
//! It has its own thread and runtime, so that tests with and without a runtime can use it. It stops
//! when its [`Simulator`] is dropped.

mod connection;
mod webhooks;

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use crate::contract::{self, Violation};
use crate::faults::Rule;
use crate::http::control::{self, Summary};
use crate::record::Exchange;
use crate::state::State;
use crate::state::jobs::{Job, NewJob, Status};
use crate::state::settings::Settings;
use crate::time::{self, Millis};

/// The interval of time-driven changes.
const TICK: Duration = Duration::from_millis(50);

/// The state with its change notifications.
pub(crate) struct SharedState {
    state: Mutex<State>,
    changed: Condvar,
    generation: watch::Sender<u64>,
    clock_skew: i64,
}

impl SharedState {
    /// Returns the time on this GitHub's clock.
    pub(crate) fn now(&self) -> Millis {
        time::now().saturating_add_signed(self.clock_skew)
    }

    /// Locks the state. A test that panicked while holding it does not affect others.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and notifies all waiters. Waiters must not use it: each would wake all
    /// others forever.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State, Millis) -> T) -> T {
        let result = self.change_without_notify(change);
        self.changed.notify_all();
        self.generation.send_modify(|generation| *generation += 1);
        result
    }

    /// Changes the state; the next tick notifies the waiters.
    pub(crate) fn change_without_notify<T>(
        &self,
        change: impl FnOnce(&mut State, Millis) -> T,
    ) -> T {
        let now = self.now();
        change(&mut self.lock(), now)
    }

    /// Subscribes to changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }
}

/// A running simulator; dropping it stops it.
pub struct Simulator {
    shared: Arc<SharedState>,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Simulator {
    /// Starts on a free port of 127.0.0.1.
    ///
    /// # Errors
    ///
    /// No port is free.
    pub fn start(settings: Settings) -> std::io::Result<Self> {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), settings)
    }

    /// Starts on an address.
    ///
    /// # Errors
    ///
    /// The address can't be bound.
    pub fn start_at(address: SocketAddr, settings: Settings) -> std::io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let clock_skew = settings.clock_skew;
        let url = settings.url.clone().unwrap_or_else(|| format!("http://{address}"));
        let state = State::new(settings, url);
        let shared = Arc::new(SharedState {
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

    /// Returns its URL: `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns its address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Reads or changes the state.
    pub fn with<T>(&self, change: impl FnOnce(&mut State, Millis) -> T) -> T {
        self.shared.change(change)
    }

    /// Queues a job and returns its ID.
    pub fn queue(&self, job: NewJob) -> u64 {
        self.with(|state, now| state.queue(job, now))
    }

    /// Adds a fault rule.
    pub fn add_fault(&self, rule: Rule) {
        self.with(|state, _| state.faults.add(rule));
    }

    /// Returns a job's current state.
    pub fn job(&self, id: u64) -> Option<Job> {
        self.shared.lock().jobs.get(&id).cloned()
    }

    /// Waits until a condition holds. Returns whether it does.
    pub fn wait(&self, timeout: Duration, condition: impl Fn(&State) -> bool) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = self.shared.lock();
        while !condition(&state) {
            let remaining = deadline.saturating_duration_since(Instant::now());
            if remaining.is_zero() {
                return false;
            }
            let waited = self.shared.changed.wait_timeout(state, remaining);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Waits until all jobs have ended. Returns whether they have.
    pub fn wait_for_all(&self, timeout: Duration) -> bool {
        self.wait(timeout, |state| state.jobs.values().all(|job| job.status == Status::Completed))
    }

    /// Returns all exchanges so far.
    pub fn exchanges(&self) -> Vec<Exchange> {
        self.shared.lock().recorder.exchanges().to_vec()
    }

    /// Returns a summary of the state.
    pub fn summary(&self) -> Summary {
        control::summary(&self.shared.lock())
    }

    /// Validates all exchanges so far against a contract
    /// ([`contract::Contract::from_environment`]).
    ///
    /// # Errors
    ///
    /// All violations.
    pub fn validate(&self, contract: &contract::Contract) -> Result<(), Vec<Violation>> {
        contract.validate(&self.exchanges())
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        // The thread may already have ended.
        let _ = self.stop.take().map(|stop| stop.send(()));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Serves until stopped.
async fn serve(
    listener: std::net::TcpListener,
    shared: Arc<SharedState>,
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

async fn tick(shared: &SharedState) {
    let mut interval = tokio::time::interval(TICK);
    loop {
        interval.tick().await;
        shared.change(State::tick);
    }
}

//! The task that holds one shepherd: errands go in, events come out to the loop.
//!
//! A shepherd is gone when its directory is free and its process has ended, and for no other
//! reason. Whatever else goes wrong between it and this task is tried again: with back-off, with a
//! line in the log, for as long as it lives.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;

use super::decide::MachineKey;
use super::happening::Happening;
use crate::failure::chain;
use crate::shepherd::event::{Event, FailureReport, Happened, Outcome, Phase};
use crate::shepherd::plan::{Order, Plan, monotonic};
use crate::shepherd::record::{self, Liveness};
use crate::shepherd::{AttachError, Handle};

/// Errands that wait for a shepherd.
pub(super) const ERRANDS: usize = 8;
/// Between the loss of a connection and the next try, and what it doubles up to.
const AGAIN: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(10);
/// How long a shepherd that told its end may take to end, and one that was killed to be gone.
const LAST: Duration = Duration::from_secs(5);
/// Between two looks at whether it has.
const LOOK: Duration = Duration::from_millis(10);

/// What the loop wants of a shepherd.
#[derive(Debug)]
pub(super) enum Errand {
    /// Give it this order.
    Order(Order),
    /// Kill it: it did not obey.
    Kill,
}

/// Orders that it did not acknowledge, with their numbers.
type Unacknowledged = VecDeque<(u64, Order)>;

/// Starts a shepherd and follows it to its end.
pub(super) async fn boot(
    program: PathBuf,
    plan: Plan,
    key: MachineKey,
    errands: mpsc::Receiver<Errand>,
    to: mpsc::Sender<Happening>,
) {
    match Handle::spawn_detached(&program, &plan).await {
        Ok(handle) => Follower::new(plan.directory, key, errands, to).follow(handle).await,
        Err(error) => {
            // The loop ends after its tasks; then nobody needs to know.
            let _ = to.send(Happening::NotBooted(key, chain(&error))).await;
        }
    }
}

/// Takes up a shepherd that was started earlier, living or not, and follows it to its end.
pub(super) async fn adopt(
    directory: PathBuf,
    key: MachineKey,
    errands: mpsc::Receiver<Errand>,
    to: mpsc::Sender<Happening>,
) {
    let mut follower = Follower::new(directory, key, errands, to);
    if let Some(handle) = follower.attach(VecDeque::new()).await {
        follower.follow(handle).await;
    }
}

/// How long to wait after that many failures to attach in a row.
fn pause(failures: u32) -> Duration {
    AGAIN.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX)).min(LONGEST)
}

enum Followed {
    /// It told its end, by this event.
    ToItsEnd(usize, Box<Event>),
    /// No more events came.
    UntilSilence,
    /// The loop is gone.
    NobodyListens,
}

struct Follower {
    directory: PathBuf,
    key: MachineKey,
    errands: mpsc::Receiver<Errand>,
    to: mpsc::Sender<Happening>,
    /// Events that the loop was told.
    told: usize,
}

impl Follower {
    fn new(
        directory: PathBuf,
        key: MachineKey,
        errands: mpsc::Receiver<Errand>,
        to: mpsc::Sender<Happening>,
    ) -> Self {
        Self { directory, key, errands, to, told: 0 }
    }

    fn name(&self) -> &str {
        self.directory.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    async fn follow(mut self, mut handle: Handle) {
        loop {
            match self.follow_once(&mut handle).await {
                Followed::ToItsEnd(number, event) => {
                    self.gone(handle).await;
                    // The loop ends after its tasks; then nobody needs to know.
                    let _ = self.to.send(Happening::Event(self.key, number, event)).await;
                    return;
                }
                Followed::NobodyListens => return,
                Followed::UntilSilence => {}
            }
            if is_gone(&self.directory) {
                let how = match handle.ended().await {
                    Ok(how) => how,
                    Err(error) => chain(&error),
                };
                return self.vanished(&how).await;
            }
            // It lives, or may: the connection was lost only.
            tokio::time::sleep(AGAIN).await;
            match self.attach(handle.into_unacknowledged()).await {
                Some(again) => handle = again,
                None => return,
            }
        }
    }

    /// Attaches, however often that fails, and gives again what was not acknowledged. None where
    /// the loop is gone, or the directory.
    async fn attach(&mut self, unacknowledged: Unacknowledged) -> Option<Handle> {
        let (mut failures, mut orders) = (0, Vec::new());
        let mut handle = loop {
            let error = tokio::select! {
                attached = Handle::attach(&self.directory) => match attached {
                    Ok(handle) => break handle,
                    Err(error) => error,
                },
                errand = self.errands.recv() => {
                    self.keep(errand?, &mut orders);
                    continue;
                }
            };
            if matches!(error, AttachError::NoDirectory) {
                self.vanished(&chain(&error)).await;
                return None;
            }
            let wait = pause(failures);
            let (microvm, again) = (self.name(), humantime::format_duration(wait));
            tracing::warn!(microvm, "tried again in {again}: {}", chain(&error));
            failures = failures.saturating_add(1);
            let over = tokio::time::sleep(wait);
            tokio::pin!(over);
            loop {
                tokio::select! {
                    () = &mut over => break,
                    errand = self.errands.recv() => self.keep(errand?, &mut orders),
                }
            }
        };
        if let Err(error) = handle.resume(unacknowledged) {
            tracing::warn!(microvm = self.name(), "orders are not given again: {}", chain(&error));
        }
        for order in orders {
            self.order(&mut handle, &order);
        }
        Some(handle)
    }

    /// An errand while there is no connection: an order waits for the next one, a kill needs none.
    fn keep(&self, errand: Errand, orders: &mut Vec<Order>) {
        match errand {
            Errand::Order(order) if orders.len() < ERRANDS => orders.push(order),
            // The deadline of the order ends what does not hear of it.
            Errand::Order(_) => tracing::warn!(microvm = self.name(), "an order is dropped"),
            Errand::Kill => self.killed(record::kill(&self.directory)),
        }
    }

    fn order(&self, handle: &mut Handle, order: &Order) {
        // A lost connection shows itself where news are read.
        if let Err(error) = handle.order(order) {
            tracing::warn!(microvm = self.name(), "an order is not given: {}", chain(&error));
        }
    }

    fn kill(&self, handle: &Handle) {
        self.killed(handle.kill().map_err(io::Error::other));
    }

    fn killed(&self, killed: io::Result<()>) {
        if let Err(error) = killed {
            tracing::warn!(microvm = self.name(), "can't kill the shepherd: {error}");
        }
    }

    /// Waits until nothing of the microVM is left, so that what it had is free and its directory
    /// can go; one that told its end and does not end is killed, until it has.
    async fn gone(&self, handle: Handle) {
        while tokio::time::timeout(LAST, self.free()).await.is_err() {
            tracing::warn!(microvm = self.name(), "the shepherd told its end and lives: killed");
            self.kill(&handle);
        }
        // One that has let go of its directory and lives on was taken over.
        self.kill(&handle);
        // A child is not left as a zombie.
        let _ = tokio::time::timeout(LAST, handle.ended()).await;
    }

    async fn free(&self) {
        while !is_gone(&self.directory) {
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn follow_once(&mut self, handle: &mut Handle) -> Followed {
        // A handle tells everything from the beginning.
        let mut number = 0;
        loop {
            tokio::select! {
                event = handle.event() => {
                    let Some(event) = event else { return Followed::UntilSilence };
                    number += 1;
                    if number <= self.told {
                        continue;
                    }
                    self.told = number;
                    let event = Box::new(event);
                    if matches!(event.happened, Happened::Ended(_)) {
                        return Followed::ToItsEnd(number, event);
                    }
                    let told = Happening::Event(self.key, number, event);
                    if self.to.send(told).await.is_err() {
                        return Followed::NobodyListens;
                    }
                }
                errand = self.errands.recv() => match errand {
                    Some(Errand::Order(order)) => self.order(handle, &order),
                    Some(Errand::Kill) => self.kill(handle),
                    None => return Followed::NobodyListens,
                },
            }
        }
    }

    /// Tells the end of a shepherd that could not tell it itself.
    async fn vanished(&self, how: &str) {
        let report = FailureReport {
            phase: Phase::Failed,
            cause: "vanished".to_owned(),
            message: format!("the shepherd ended without a word: {how}"),
            hint: None,
            code: crate::failure::Code::MachineFailed as u8,
            statistics: None,
            black_box: self.directory.clone(),
        };
        let ended = Happened::Ended(Outcome::Failed(report));
        let Some(id) = crate::shepherd::plan::Id::parse(self.name()) else { return };
        let event = Box::new(Event::now(&id, monotonic(), ended));
        let _ = self.to.send(Happening::Event(self.key, usize::MAX, event)).await;
    }
}

/// Whether nothing of a microVM is left. What can't be looked at may live.
fn is_gone(directory: &Path) -> bool {
    match record::liveness(directory) {
        Ok(liveness) => liveness == Liveness::Gone,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
#[path = "following_tests.rs"]
mod tests;

//! The task that holds one shepherd: errands go in, events come out to the loop.
//!
//! A shepherd is gone when its directory is free and its process has ended, and for no other
//! reason. Whatever else goes wrong between it and this task is tried again: with back-off, with a
//! line in the log, for as long as it lives.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::shepherds::{Shepherd, Shepherds, Unacknowledged};
use crate::daemon::decide::MachineKey;
use crate::daemon::happening::Happening;
use crate::failure::chain;
use crate::shepherd::AttachError;
use crate::shepherd::event::{Event, FailureReport, Happened, Outcome, Phase};
use crate::shepherd::plan::{Id, Order, Plan, monotonic};

/// Errands that wait for a shepherd.
pub(super) const ERRANDS: usize = 8;
/// Between the loss of a connection and the next try, and what it doubles up to.
const AGAIN: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(10);
/// How long a shepherd that told its end may take to end, and one that was killed to be gone.
const LAST: Duration = Duration::from_secs(5);
/// How long a start, and an attempt to attach, may take whatever happens.
const START: Duration = Duration::from_secs(120);
const ATTACH: Duration = Duration::from_secs(30);
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

/// The way of a follower to the loop, and of the loop to it.
pub(super) struct Ways {
    pub(super) key: MachineKey,
    pub(super) errands: mpsc::Receiver<Errand>,
    pub(super) to: mpsc::Sender<Happening>,
}

/// Starts a shepherd and follows it to its end.
pub(super) async fn boot(shepherds: Arc<dyn Shepherds>, plan: Plan, ways: Ways) {
    let id = plan.id.clone();
    let why = match tokio::time::timeout(START, shepherds.start(plan)).await {
        Ok(Ok(shepherd)) => {
            return Follower { shepherds: &*shepherds, id, ways, told: 0 }.follow(shepherd).await;
        }
        Ok(Err(why)) => why,
        Err(_) => {
            let follower = Follower { shepherds: &*shepherds, id, ways, told: 0 };
            return follower.give_up().await;
        }
    };
    // The loop ends after its tasks; then nobody needs to know.
    let _ = ways.to.send(Happening::NotBooted(ways.key, why)).await;
}

/// Takes up a shepherd that was started earlier, living or not, and follows it to its end.
pub(super) async fn adopt(shepherds: Arc<dyn Shepherds>, id: Id, ways: Ways) {
    let mut follower = Follower { shepherds: &*shepherds, id, ways, told: 0 };
    if let Some(shepherd) = follower.attach(Unacknowledged::new()).await {
        follower.follow(shepherd).await;
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

struct Follower<'a> {
    shepherds: &'a dyn Shepherds,
    id: Id,
    ways: Ways,
    /// Events that the loop was told.
    told: usize,
}

impl Follower<'_> {
    async fn follow(mut self, mut shepherd: Box<dyn Shepherd>) {
        // How one that is gone ended, while its record is read: it may have its end.
        let mut gone: Option<String> = None;
        loop {
            match self.follow_once(&mut *shepherd).await {
                Followed::ToItsEnd(number, event) => {
                    self.gone(shepherd).await;
                    // The loop ends after its tasks; then nobody needs to know.
                    let told = Happening::Event(self.ways.key, number, event);
                    let _ = self.ways.to.send(told).await;
                    return;
                }
                Followed::NobodyListens => return,
                Followed::UntilSilence => {}
            }
            if let Some(how) = gone {
                return self.vanished(&how).await;
            }
            let unacknowledged = if self.shepherds.is_gone(&self.id) {
                let how = tokio::time::timeout(LAST, shepherd.ended()).await;
                gone = Some(how.unwrap_or_else(|_| "its process was not heard of".to_owned()));
                Unacknowledged::new()
            } else {
                // It lives, or may: the connection was lost only.
                tokio::time::sleep(AGAIN).await;
                shepherd.into_unacknowledged()
            };
            match self.attach(unacknowledged).await {
                Some(again) => shepherd = again,
                None => return,
            }
        }
    }

    /// Attaches, however often that fails, and gives again what was not acknowledged. None where
    /// the loop is gone, or the directory.
    async fn attach(&mut self, unacknowledged: Unacknowledged) -> Option<Box<dyn Shepherd>> {
        let (mut failures, mut orders) = (0, Vec::new());
        let mut shepherd = loop {
            let attach = tokio::time::timeout(ATTACH, self.shepherds.attach(&self.id));
            let error = tokio::select! {
                attached = attach => match attached {
                    Ok(Ok(shepherd)) => break shepherd,
                    Ok(Err(error)) => error,
                    Err(_) => AttachError::Silent,
                },
                errand = self.ways.errands.recv() => {
                    self.keep(errand?, &mut orders);
                    continue;
                }
            };
            if matches!(error, AttachError::NoDirectory) {
                self.vanished(&chain(&error)).await;
                return None;
            }
            let wait = pause(failures);
            let again = humantime::format_duration(wait);
            tracing::warn!(microvm = %self.id, "tried again in {again}: {}", chain(&error));
            failures = failures.saturating_add(1);
            let over = tokio::time::sleep(wait);
            tokio::pin!(over);
            loop {
                tokio::select! {
                    () = &mut over => break,
                    errand = self.ways.errands.recv() => self.keep(errand?, &mut orders),
                }
            }
        };
        if let Err(why) = shepherd.resume(unacknowledged) {
            tracing::warn!(microvm = %self.id, "orders are not given again: {why}");
        }
        for order in orders {
            self.order(&mut *shepherd, &order);
        }
        Some(shepherd)
    }

    /// An errand while there is no connection: an order waits for the next one, a kill needs none.
    fn keep(&self, errand: Errand, orders: &mut Vec<Order>) {
        match errand {
            Errand::Order(order) if orders.len() < ERRANDS => orders.push(order),
            // The deadline of the order ends what does not hear of it.
            Errand::Order(_) => tracing::warn!(microvm = %self.id, "an order is dropped"),
            Errand::Kill => self.killed(self.shepherds.kill(&self.id)),
        }
    }

    fn order(&self, shepherd: &mut dyn Shepherd, order: &Order) {
        // A lost connection shows itself where news are read.
        if let Err(why) = shepherd.order(order) {
            tracing::warn!(microvm = %self.id, "an order is not given: {why}");
        }
    }

    fn killed(&self, killed: io::Result<()>) {
        if let Err(error) = killed {
            tracing::warn!(microvm = %self.id, "can't kill the shepherd: {error}");
        }
    }

    /// Waits until nothing of the microVM is left, so that what it had is free and its directory
    /// can go; one that told its end and does not end is killed, until it has.
    async fn gone(&self, shepherd: Box<dyn Shepherd>) {
        while tokio::time::timeout(LAST, self.free()).await.is_err() {
            tracing::warn!(microvm = %self.id, "the shepherd told its end and lives: killed");
            self.killed(shepherd.kill());
        }
        // One that has let go of its directory and lives on was taken over.
        self.killed(shepherd.kill());
        // A child is not left as a zombie.
        let _ = tokio::time::timeout(LAST, shepherd.ended()).await;
    }

    async fn free(&self) {
        while !self.shepherds.is_gone(&self.id) {
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn follow_once(&mut self, shepherd: &mut dyn Shepherd) -> Followed {
        // A connection tells everything from the beginning.
        let (mut number, mut killed) = (0, false);
        loop {
            tokio::select! {
                // What it still told comes first.
                biased;
                event = shepherd.event() => {
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
                    let told = Happening::Event(self.ways.key, number, event);
                    if self.ways.to.send(told).await.is_err() {
                        return Followed::NobodyListens;
                    }
                }
                errand = self.ways.errands.recv() => match errand {
                    Some(Errand::Order(order)) => self.order(shepherd, &order),
                    Some(Errand::Kill) => {
                        self.killed(shepherd.kill());
                        killed = true;
                    }
                    None => return Followed::NobodyListens,
                },
                // Whether the connection ends with it or not.
                () = tokio::time::sleep(LAST), if killed => {
                    if self.shepherds.is_gone(&self.id) {
                        return Followed::UntilSilence;
                    }
                }
            }
        }
    }

    /// One that may have been started and can't be known to have been: nothing of it stays.
    async fn give_up(self) {
        tracing::warn!(microvm = %self.id, "the shepherd was not started in time: killed");
        loop {
            self.killed(self.shepherds.kill(&self.id));
            if tokio::time::timeout(LAST, self.free()).await.is_ok() {
                break;
            }
        }
        self.vanished("it was not started in time").await;
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
            black_box: std::path::PathBuf::new(),
        };
        let ended = Happened::Ended(Outcome::Failed(report));
        let event = Box::new(Event::now(&self.id, monotonic(), ended));
        let _ = self.ways.to.send(Happening::Event(self.ways.key, usize::MAX, event)).await;
    }
}

#[cfg(test)]
#[path = "following_tests.rs"]
mod tests;

//! The task that holds one shepherd: orders go in, events come out to the loop.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;

use super::decide::MachineKey;
use super::happening::Happening;
use crate::failure::chain;
use crate::shepherd::event::{Event, FailureReport, Happened, Outcome, Phase};
use crate::shepherd::plan::{Order, Plan, monotonic};
use crate::shepherd::{Handle, record};

/// Orders that wait for a shepherd.
pub(super) const ORDERS: usize = 8;
/// Between the loss of a connection and the next try.
const AGAIN: Duration = Duration::from_millis(200);
/// How long a shepherd that told its end may take to end.
const LAST: Duration = Duration::from_secs(5);
/// Between two looks at whether it has.
const LOOK: Duration = Duration::from_millis(5);

/// Starts a shepherd and follows it to its end.
pub(super) async fn boot(
    program: PathBuf,
    plan: Plan,
    key: MachineKey,
    orders: mpsc::Receiver<Order>,
    to: mpsc::Sender<Happening>,
) {
    let directory = plan.directory.clone();
    match Handle::spawn_detached(&program, &plan).await {
        Ok(handle) => follow(handle, directory, key, orders, to).await,
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
    orders: mpsc::Receiver<Order>,
    to: mpsc::Sender<Happening>,
) {
    match Handle::attach(&directory).await {
        Ok(handle) => follow(handle, directory, key, orders, to).await,
        Err(error) => vanish(&directory, key, &chain(&error), &to).await,
    }
}

async fn follow(
    mut handle: Handle,
    directory: PathBuf,
    key: MachineKey,
    mut orders: mpsc::Receiver<Order>,
    to: mpsc::Sender<Happening>,
) {
    let mut told = 0;
    loop {
        match follow_once(&mut handle, &mut told, key, &mut orders, &to).await {
            Followed::ToItsEnd(number, event) => {
                gone(handle, &directory).await;
                // The loop ends after its tasks; then nobody needs to know.
                let _ = to.send(Happening::Event(key, number, event)).await;
                return;
            }
            Followed::NobodyListens => return,
            Followed::UntilSilence => {}
        }
        if !record::is_living(&directory).unwrap_or(false) {
            let how = match handle.ended().await {
                Ok(how) => how,
                Err(error) => chain(&error),
            };
            return vanish(&directory, key, &how, &to).await;
        }
        // It lives: the connection was lost only.
        tokio::time::sleep(AGAIN).await;
        handle = match Handle::attach(&directory).await {
            Ok(handle) => handle,
            Err(error) => return vanish(&directory, key, &chain(&error), &to).await,
        };
    }
}

/// Waits until nothing of the microVM is left, so that what it had is free and its directory can
/// go; one that told its end and does not end is killed.
async fn gone(handle: Handle, directory: &Path) {
    let kill = async {
        tokio::time::sleep(LAST).await;
        if let Err(error) = handle.kill() {
            let microvm = directory.file_name().and_then(|name| name.to_str());
            tracing::warn!(microvm, "it can't be killed: {}", chain(&error));
        }
    };
    let free = async {
        while record::is_living(directory).unwrap_or(false) {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        () = kill => {}
        () = free => {}
    }
    // It has ended, or is about to: a child is not left as a zombie.
    let _ = tokio::time::timeout(LAST, handle.ended()).await;
}

enum Followed {
    /// It told its end, by this event.
    ToItsEnd(usize, Box<Event>),
    /// No more events came.
    UntilSilence,
    /// The loop is gone.
    NobodyListens,
}

async fn follow_once(
    handle: &mut Handle,
    told: &mut usize,
    key: MachineKey,
    orders: &mut mpsc::Receiver<Order>,
    to: &mpsc::Sender<Happening>,
) -> Followed {
    // A handle tells everything from the beginning.
    let mut number = 0;
    loop {
        tokio::select! {
            event = handle.event() => {
                let Some(event) = event else { return Followed::UntilSilence };
                number += 1;
                if number <= *told {
                    continue;
                }
                *told = number;
                if matches!(event.happened, Happened::Ended(_)) {
                    return Followed::ToItsEnd(number, Box::new(event));
                }
                if to.send(Happening::Event(key, number, Box::new(event))).await.is_err() {
                    return Followed::NobodyListens;
                }
            }
            order = orders.recv() => match order {
                // A lost connection shows itself where events are read.
                Some(order) => { let _ = handle.order(&order); }
                None => return Followed::NobodyListens,
            },
        }
    }
}

/// Tells the end of a shepherd that could not tell it itself.
async fn vanish(directory: &Path, key: MachineKey, how: &str, to: &mpsc::Sender<Happening>) {
    let report = FailureReport {
        phase: Phase::Failed,
        cause: "vanished".to_owned(),
        message: format!("the shepherd ended without a word: {how}"),
        hint: None,
        code: crate::failure::Code::MachineFailed as u8,
        statistics: None,
        black_box: directory.to_owned(),
    };
    let ended = Happened::Ended(Outcome::Failed(report));
    let name = directory.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some(id) = crate::shepherd::plan::Id::parse(name) else { return };
    let event = Event::now(&id, monotonic(), ended);
    let _ = to.send(Happening::Event(key, usize::MAX, Box::new(event))).await;
}

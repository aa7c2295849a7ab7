//! The daemon's tasks. They report to its loop and end with it.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::event::DaemonEvent;
use mayfly_telemetry::report_panic;

/// Events that may wait for the loop. A task that finds the channel full waits too.
const EVENTS_CAPACITY: usize = 1024;
/// How long tasks may take to end when the daemon ends.
const GRACE: Duration = Duration::from_secs(5);

/// The tasks, and the channel to the loop.
#[derive(Debug)]
pub(super) struct Tasks {
    set: JoinSet<()>,
    events: mpsc::Sender<DaemonEvent>,
    cancel: CancellationToken,
}

impl Tasks {
    /// Creates an empty set, and the receiver of its events.
    pub(super) fn new() -> (Self, mpsc::Receiver<DaemonEvent>) {
        let (events, receiver) = mpsc::channel(EVENTS_CAPACITY);
        (Self { set: JoinSet::new(), events, cancel: CancellationToken::new() }, receiver)
    }

    /// Returns a sender of events to the loop.
    pub(super) fn event_sender(&self) -> mpsc::Sender<DaemonEvent> {
        self.events.clone()
    }

    /// Returns the token that is canceled when the daemon ends.
    pub(super) fn cancellation_token(&self) -> CancellationToken {
        self.cancel.clone()
    }

    /// Spawns a task.
    pub(super) fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.set.spawn(task);
    }

    /// Spawns a task whose result is sent to the loop as an event.
    pub(super) fn spawn_reporting(
        &mut self,
        task: impl Future<Output = DaemonEvent> + Send + 'static,
    ) {
        let events = self.events.clone();
        self.set.spawn(async move {
            // Fails only when the daemon is ending.
            let _ = events.send(task.await).await;
        });
    }

    /// Waits for the next task to end. Returns `None` if there are no tasks.
    pub(super) async fn next_ended(&mut self) -> Option<Result<(), JoinError>> {
        self.set.join_next().await
    }

    /// Cancels all tasks, and aborts those that don't end within [`GRACE`].
    pub(super) async fn close(mut self) {
        self.cancel.cancel();
        let ended = async {
            while let Some(ended) = self.set.join_next().await {
                report_panic(ended);
            }
        };
        if tokio::time::timeout(GRACE, ended).await.is_err() {
            self.set.abort_all();
        }
    }
}

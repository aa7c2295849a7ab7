//! The tasks of the daemon, which all report to its loop, and end with it.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::happening::Happening;
use crate::failure::contained;

/// What the tasks tell the loop waits here; a task that finds it full waits, too.
const HAPPENINGS: usize = 1024;
/// How long tasks may take to end with the daemon.
const GRACE: Duration = Duration::from_secs(5);

/// The tasks, and their way to the loop.
#[derive(Debug)]
pub(super) struct Tasks {
    set: JoinSet<()>,
    to: mpsc::Sender<Happening>,
    cancel: CancellationToken,
}

impl Tasks {
    /// None yet, with what hears them.
    pub(super) fn new() -> (Self, mpsc::Receiver<Happening>) {
        let (to, heard) = mpsc::channel(HAPPENINGS);
        (Self { set: JoinSet::new(), to, cancel: CancellationToken::new() }, heard)
    }

    /// Where tasks tell what happened.
    pub(super) fn way(&self) -> mpsc::Sender<Happening> {
        self.to.clone()
    }

    /// Cancelled at the end of the daemon.
    pub(super) fn end(&self) -> CancellationToken {
        self.cancel.clone()
    }

    /// Begins a task.
    pub(super) fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.set.spawn(task);
    }

    /// Begins a task that tells the loop what it came to.
    pub(super) fn report(&mut self, task: impl Future<Output = Happening> + Send + 'static) {
        let to = self.to.clone();
        self.set.spawn(async move {
            // The loop ends after its tasks; then nobody needs to know.
            let _ = to.send(task.await).await;
        });
    }

    /// Waits for the end of a task, where there is any.
    pub(super) async fn ended(&mut self) -> Option<Result<(), JoinError>> {
        self.set.join_next().await
    }

    /// Ends them all, those that don't after a while by force.
    pub(super) async fn close(mut self) {
        self.cancel.cancel();
        let ended = async {
            while let Some(ended) = self.set.join_next().await {
                contained(ended);
            }
        };
        if tokio::time::timeout(GRACE, ended).await.is_err() {
            self.set.abort_all();
        }
    }
}

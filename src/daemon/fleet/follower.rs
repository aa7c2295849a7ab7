//! The task that follows one shepherd: it takes tasks from the loop, and sends events to it.
//!
//! A shepherd is gone when its directory is unlocked and its process has ended, and for no other
//! reason. Any other failure between it and this task is retried, with back-off and a log line, for
//! as long as the shepherd runs.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::shepherds::{Shepherd, Shepherds, Unacknowledged};
use crate::decide::MicrovmKey;
use crate::event::DaemonEvent;
use mayfly_common::backoff::delay;
use mayfly_failure::chain;
use mayfly_shepherd::AttachError;
use mayfly_shepherd::event::{Event, EventKind, FailureReport, JobOutcome, Phase};
use mayfly_shepherd::plan::{MicrovmId, MicrovmPlan, ShepherdCommand, monotonic};

/// Tasks that may wait for a shepherd.
pub(super) const SHEPHERD_TASKS_CAPACITY: usize = 8;
/// The wait before a reconnect, and the limit up to which it doubles.
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(10);
/// How long a shepherd may take to exit after it reported its end, or after a kill.
const EXIT_GRACE: Duration = Duration::from_secs(5);
/// How long a start, and one attempt to attach, may take.
const START_TIMEOUT: Duration = Duration::from_secs(120);
const ATTACH_TIMEOUT: Duration = Duration::from_secs(30);
/// How often to check whether it has.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// A task from the loop for a shepherd.
#[derive(Debug)]
pub(super) enum ShepherdTask {
    /// Send it this command.
    Command(ShepherdCommand),
    /// Kill it, because it did not end on command.
    Kill,
}

/// The channels between a follower and the loop.
pub(super) struct FollowerChannels {
    pub(super) key: MicrovmKey,
    pub(super) shepherd_tasks: mpsc::Receiver<ShepherdTask>,
    pub(super) events: mpsc::Sender<DaemonEvent>,
}

/// Starts a shepherd and follows it until it ends.
pub(super) async fn boot(
    shepherds: Arc<dyn Shepherds>,
    plan: MicrovmPlan,
    channels: FollowerChannels,
) {
    let id = plan.id.clone();
    let why = match tokio::time::timeout(START_TIMEOUT, shepherds.start(plan)).await {
        Ok(Ok(shepherd)) => {
            return Follower { shepherds: &*shepherds, id, channels, delivered: 0 }
                .follow(shepherd)
                .await;
        }
        Ok(Err(why)) => why,
        Err(_) => {
            let follower = Follower { shepherds: &*shepherds, id, channels, delivered: 0 };
            return follower.abandon_start().await;
        }
    };
    // Fails only when the daemon is ending.
    let _ = channels.events.send(DaemonEvent::StartFailed(channels.key, why)).await;
}

/// Attaches to a shepherd that was started earlier, running or not, and follows it until it ends.
pub(super) async fn adopt(
    shepherds: Arc<dyn Shepherds>,
    id: MicrovmId,
    channels: FollowerChannels,
) {
    let mut follower = Follower { shepherds: &*shepherds, id, channels, delivered: 0 };
    if let Some(shepherd) = follower.attach(Unacknowledged::new()).await {
        follower.follow(shepherd).await;
    }
}

enum FollowEnd {
    /// The shepherd reported its end with this event.
    Ended(usize, Box<Event>),
    /// The connection ended.
    Disconnected,
    /// The daemon's loop has ended.
    LoopGone,
}

struct Follower<'a> {
    shepherds: &'a dyn Shepherds,
    id: MicrovmId,
    channels: FollowerChannels,
    /// The number of events sent to the loop.
    delivered: usize,
}

impl Follower<'_> {
    async fn follow(mut self, mut shepherd: Box<dyn Shepherd>) {
        // How the process ended, once it is gone. Its record is read once more, because it may have
        // the end event.
        let mut gone: Option<String> = None;
        loop {
            match self.follow_once(&mut *shepherd).await {
                FollowEnd::Ended(number, event) => {
                    self.wait_until_gone(shepherd).await;
                    // Fails only when the daemon is ending.
                    let event = DaemonEvent::ShepherdEvent(self.channels.key, number, event);
                    let _ = self.channels.events.send(event).await;
                    return;
                }
                FollowEnd::LoopGone => return,
                FollowEnd::Disconnected => {}
            }
            if let Some(how) = gone {
                return self.report_vanished(&how).await;
            }
            let unacknowledged = if self.shepherds.is_gone(&self.id) {
                let how = tokio::time::timeout(EXIT_GRACE, shepherd.wait()).await;
                gone = Some(how.unwrap_or_else(|_| "its exit status is unknown".to_owned()));
                Unacknowledged::new()
            } else {
                // It runs, or may run: only the connection was lost.
                tokio::time::sleep(FIRST_RETRY).await;
                shepherd.into_unacknowledged()
            };
            match self.attach(unacknowledged).await {
                Some(again) => shepherd = again,
                None => return,
            }
        }
    }

    /// Attaches, retrying without limit, and resends unacknowledged commands. Returns `None` if the
    /// loop or the directory is gone.
    async fn attach(&mut self, unacknowledged: Unacknowledged) -> Option<Box<dyn Shepherd>> {
        let (mut failures, mut commands) = (0, Vec::new());
        let mut shepherd = loop {
            let attach = tokio::time::timeout(ATTACH_TIMEOUT, self.shepherds.attach(&self.id));
            let error = tokio::select! {
                attached = attach => match attached {
                    Ok(Ok(shepherd)) => break shepherd,
                    Ok(Err(error)) => error,
                    Err(_) => AttachError::Silent,
                },
                task = self.channels.shepherd_tasks.recv() => {
                    self.queue_task(task?, &mut commands);
                    continue;
                }
            };
            if matches!(error, AttachError::NoDirectory) {
                self.report_vanished(&chain(&error)).await;
                return None;
            }
            let wait = delay(failures, FIRST_RETRY, LONGEST_RETRY);
            let again = humantime::format_duration(wait);
            let why = chain(&error);
            tracing::warn!(microvm = %self.id, "can't attach, retrying in {again}: {why}");
            failures = failures.saturating_add(1);
            let over = tokio::time::sleep(wait);
            tokio::pin!(over);
            loop {
                tokio::select! {
                    () = &mut over => break,
                    task = self.channels.shepherd_tasks.recv() => {
                        self.queue_task(task?, &mut commands);
                    }
                }
            }
        };
        if let Err(why) = shepherd.resume(unacknowledged) {
            tracing::warn!(microvm = %self.id, "can't resend commands to the shepherd: {why}");
        }
        for command in commands {
            self.send_command(&mut *shepherd, &command);
        }
        Some(shepherd)
    }

    /// Handles a task while there is no connection: commands wait for the next connection, a kill
    /// is done at once.
    fn queue_task(&self, task: ShepherdTask, commands: &mut Vec<ShepherdCommand>) {
        match task {
            ShepherdTask::Command(command) if commands.len() < SHEPHERD_TASKS_CAPACITY => {
                commands.push(command);
            }
            // The microVM's deadline ends it if the command never arrives.
            ShepherdTask::Command(_) => {
                tracing::warn!(microvm = %self.id, "dropped a command to the shepherd: its queue is full");
            }
            ShepherdTask::Kill => self.log_kill_error(self.shepherds.kill(&self.id)),
        }
    }

    fn send_command(&self, shepherd: &mut dyn Shepherd, command: &ShepherdCommand) {
        // A lost connection is noticed where events are read.
        if let Err(why) = shepherd.send_command(command) {
            tracing::warn!(microvm = %self.id, "can't send a command to the shepherd: {why}");
        }
    }

    fn log_kill_error(&self, killed: io::Result<()>) {
        if let Err(error) = killed {
            tracing::warn!(microvm = %self.id, "can't kill the shepherd: {error}");
        }
    }

    /// Waits until nothing of the microVM runs, so that its resources are free and its directory
    /// can be removed. Kills a shepherd that reported its end but does not exit.
    async fn wait_until_gone(&self, shepherd: Box<dyn Shepherd>) {
        while tokio::time::timeout(EXIT_GRACE, self.wait_until_free()).await.is_err() {
            tracing::warn!(microvm = %self.id, "killing the shepherd: it did not exit at its end");
            self.log_kill_error(shepherd.kill());
        }
        // It released its directory but may still run.
        self.log_kill_error(shepherd.kill());
        // Reap it, so that no zombie is left.
        let _ = tokio::time::timeout(EXIT_GRACE, shepherd.wait()).await;
    }

    async fn wait_until_free(&self) {
        while !self.shepherds.is_gone(&self.id) {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    async fn follow_once(&mut self, shepherd: &mut dyn Shepherd) -> FollowEnd {
        // Each connection sends all events from the beginning.
        let (mut number, mut killed) = (0, false);
        loop {
            tokio::select! {
                // Its remaining events come first.
                biased;
                event = shepherd.event() => {
                    let Some(event) = event else { return FollowEnd::Disconnected };
                    number += 1;
                    if number <= self.delivered {
                        continue;
                    }
                    self.delivered = number;
                    let event = Box::new(event);
                    if matches!(event.kind, EventKind::Ended(_)) {
                        return FollowEnd::Ended(number, event);
                    }
                    let event = DaemonEvent::ShepherdEvent(self.channels.key, number, event);
                    if self.channels.events.send(event).await.is_err() {
                        return FollowEnd::LoopGone;
                    }
                }
                task = self.channels.shepherd_tasks.recv() => match task {
                    Some(ShepherdTask::Command(command)) => self.send_command(shepherd, &command),
                    Some(ShepherdTask::Kill) => {
                        self.log_kill_error(shepherd.kill());
                        killed = true;
                    }
                    None => return FollowEnd::LoopGone,
                },
                // The connection may stay open after the kill.
                () = tokio::time::sleep(EXIT_GRACE), if killed => {
                    if self.shepherds.is_gone(&self.id) {
                        return FollowEnd::Disconnected;
                    }
                }
            }
        }
    }

    /// Cleans up after a start that timed out and may have succeeded: nothing of it may stay.
    async fn abandon_start(self) {
        tracing::warn!(microvm = %self.id, "killing the shepherd: it did not start in time");
        loop {
            self.log_kill_error(self.shepherds.kill(&self.id));
            if tokio::time::timeout(EXIT_GRACE, self.wait_until_free()).await.is_ok() {
                break;
            }
        }
        self.report_vanished("it did not start in time").await;
    }

    /// Reports the end of a shepherd that could not report it itself.
    async fn report_vanished(&self, how: &str) {
        let report = FailureReport {
            phase: Phase::Failed,
            cause: "vanished".to_owned(),
            message: format!("the shepherd ended without reporting a result: {how}"),
            hint: None,
            code: mayfly_failure::Code::MachineFailed as u8,
            statistics: None,
            black_box: std::path::PathBuf::new(),
        };
        let ended = EventKind::Ended(JobOutcome::Failed(report));
        let event = Box::new(Event::now(&self.id, monotonic(), ended));
        let _ = self
            .channels
            .events
            .send(DaemonEvent::ShepherdEvent(self.channels.key, usize::MAX, event))
            .await;
    }
}

#[cfg(test)]
#[path = "follower_tests.rs"]
mod tests;

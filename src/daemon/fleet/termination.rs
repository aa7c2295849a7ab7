//! The termination of microVMs by the daemon: on request, or because they are overdue.

use std::time::Duration;

use super::overdue::{self, OverdueAction};
use super::{Assignment, Fleet, ShepherdTask};
use crate::clock::Clock;
use crate::decide::{MicrovmKey, RetireReason, Stage};
use crate::time::Millis;
use mayfly_ledger::LedgerReader;
use mayfly_shepherd::plan::{InterruptRequest, ShepherdCommand};

impl Fleet {
    /// Marks a microVM as ending for a reason, without telling its shepherd yet.
    pub(crate) fn retire(&mut self, key: MicrovmKey, why: &str, now: Millis) {
        if let Some(microvm) = self.get_mut(key) {
            microvm.add_end_reason(why);
            microvm.enter(Stage::Ending, now);
        }
    }

    /// Ends a microVM without a job. If it has a runner, that is deleted first.
    pub(crate) fn retire_idle(&mut self, key: MicrovmKey, why: RetireReason, now: Millis) {
        let Some(microvm) = self.get(key) else { return };
        tracing::debug!(%why, "retiring");
        let is_runner = microvm.runner().is_some();
        let failed = why == RetireReason::Unclaimed && microvm.retrying_since.is_some();
        if let Some(microvm) = self.get_mut(key) {
            microvm.is_runner_failed |= failed;
        }
        self.retire(key, &format!("retired: {why}"), now);
        if !is_runner {
            self.command_end(key, Duration::MAX, now);
        }
    }

    /// Ends a microVM for a reason.
    pub(crate) fn end(&mut self, key: MicrovmKey, why: &str, now: Millis) {
        self.end_within(key, why, Duration::MAX, now);
    }

    /// Ends a microVM for a reason, with a limited farewell time. The record keeps the first reason;
    /// a later one is in the log.
    pub(crate) fn end_within(&mut self, key: MicrovmKey, why: &str, most: Duration, now: Millis) {
        if let Some(microvm) = self.get_mut(key) {
            if let Some(first) = microvm.add_end_reason(why) {
                tracing::info!(
                    first,
                    again = why,
                    "the microVM is already ending: the record keeps the first reason"
                );
            }
            microvm.enter(Stage::Ending, now);
        }
        self.command_end(key, most, now);
    }

    /// Ends a microVM that is being retired, after its runner was deleted.
    pub(crate) fn end_retired(&mut self, key: MicrovmKey, now: Millis) {
        // If it took a job in between, it is busy and continues.
        if self.get(key).is_some_and(|microvm| microvm.stage() == Stage::Ending) {
            self.command_end(key, Duration::MAX, now);
        }
    }

    /// Returns how long a runner may take to end.
    pub(crate) fn farewell(&self, key: MicrovmKey) -> Duration {
        self.get(key).map(|microvm| microvm.timeouts.farewell).unwrap_or_default()
    }

    /// Commands a shepherd to end its microVM. A runner is interrupted first, and has some time to
    /// end its job and report to the forge. A deadline applies from now on.
    fn command_end(&mut self, key: MicrovmKey, most: Duration, now: Millis) {
        let Some(microvm) = self.get_mut(key) else { return };
        microvm.end_requested_at.get_or_insert(now);
        let command = match microvm.assignment {
            Assignment::Runner(_) => ShepherdCommand::Interrupt(InterruptRequest {
                grace: microvm.timeouts.farewell.min(most),
                reason: microvm
                    .end_reason
                    .clone()
                    .unwrap_or_else(|| "ended by the daemon".to_owned()),
            }),
            Assignment::None | Assignment::Local(_) => ShepherdCommand::End,
        };
        self.send_command(key, command);
    }

    /// Ends or kills overdue microVMs.
    pub(crate) fn end_overdue(&mut self, clock: &Clock, reader: &LedgerReader) {
        let now = clock.now();
        if clock.deadlines_resume_at() > now {
            return;
        }
        let due =
            self.microvms.values().filter(|entry| entry.outcome.is_none()).filter_map(|entry| {
                let (at, action) = overdue::next_action(&entry.microvm)?;
                (at <= now).then_some((entry.microvm.key, action))
            });
        for (key, action) in due.collect::<Vec<_>>() {
            let _span = self.log_span(Some(key), reader);
            let Some(microvm) = self.get_mut(key) else { continue };
            microvm.enter(Stage::Ending, now);
            match action {
                OverdueAction::End(why) | OverdueAction::Fail(why) => {
                    tracing::warn!("ending the microVM: {why}");
                    microvm.is_runner_failed = matches!(action, OverdueAction::Fail(_));
                    microvm.add_end_reason(why);
                    self.command_end(key, Duration::MAX, now);
                }
                OverdueAction::Kill(why) => {
                    tracing::warn!("killing the microVM: {why}");
                    if microvm.killed_at.replace(now).is_none() {
                        let before = microvm.end_reason.take();
                        let before = before.map(|why| format!("{why}; ")).unwrap_or_default();
                        microvm.end_reason = Some(format!("{before}{why}, so it was killed"));
                    }
                    self.send_task(key, ShepherdTask::Kill);
                }
            }
        }
    }

    /// Returns when the next microVM is overdue.
    pub(crate) fn next_wake(&self, clock: &Clock) -> Option<Millis> {
        let running = self.microvms.values().filter(|entry| entry.outcome.is_none());
        let actions = running.filter_map(|entry| overdue::next_action(&entry.microvm));
        actions.map(|(at, _)| at.max(clock.deadlines_resume_at())).min()
    }
}

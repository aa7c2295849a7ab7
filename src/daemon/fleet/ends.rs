//! The ends that the daemon decides: by name, or because a microVM took too long.

use std::time::Duration;

use super::overdue::{self, Step};
use super::{Errand, Fleet, Work};
use crate::daemon::clock::Clock;
use crate::daemon::decide::{MachineKey, Retirement, Stage};
use crate::daemon::millis::Millis;
use crate::ledger::Reader;
use crate::shepherd::plan::{Farewell, Order};

impl Fleet {
    /// It is to go for that reason, and is not told so yet.
    pub(in crate::daemon) fn retire(&mut self, key: MachineKey, why: &str, now: Millis) {
        if let Some(microvm) = self.get_mut(key) {
            microvm.ended_for.get_or_insert_with(|| why.to_owned());
            microvm.enter(Stage::Ending, now);
        }
    }

    /// Ends one that has no job. Where it has a runner, that is gone to be deleted first.
    pub(in crate::daemon) fn retire_idle(&mut self, key: MachineKey, why: Retirement, now: Millis) {
        let Some(microvm) = self.get(key) else { return };
        tracing::debug!(%why, "retiring");
        let is_runner = microvm.runner().is_some();
        let failed = why == Retirement::Unclaimed && microvm.retrying.is_some();
        if let Some(microvm) = self.get_mut(key) {
            microvm.failed |= failed;
        }
        self.retire(key, &format!("retired: {why}"), now);
        if !is_runner {
            self.tell_to_end(key, Duration::MAX, now);
        }
    }

    /// Ends one for that reason.
    pub(in crate::daemon) fn end(&mut self, key: MachineKey, why: &str, now: Millis) {
        self.end_within(key, why, Duration::MAX, now);
    }

    /// The same, with a farewell that is no longer than that.
    pub(in crate::daemon) fn end_within(
        &mut self,
        key: MachineKey,
        why: &str,
        most: Duration,
        now: Millis,
    ) {
        if let Some(microvm) = self.get_mut(key) {
            microvm.ended_for = Some(why.to_owned());
            microvm.enter(Stage::Ending, now);
        }
        self.tell_to_end(key, most, now);
    }

    /// Ends one whose runner is deleted, if it was being retired for that.
    pub(in crate::daemon) fn end_retired(&mut self, key: MachineKey, now: Millis) {
        // One that took a job between the two is busy, and goes on.
        if self.get(key).is_some_and(|microvm| microvm.stage() == Stage::Ending) {
            self.tell_to_end(key, Duration::MAX, now);
        }
    }

    /// How long a runner may take to end.
    pub(in crate::daemon) fn farewell(&self, key: MachineKey) -> Duration {
        self.get(key).map(|microvm| microvm.patience.farewell).unwrap_or_default()
    }

    /// Tells a shepherd to end its microVM; a runner is interrupted first, and has a while to end its
    /// job and to tell the forge. From here on there is a deadline.
    fn tell_to_end(&mut self, key: MachineKey, most: Duration, now: Millis) {
        let Some(microvm) = self.get_mut(key) else { return };
        microvm.told_to_end.get_or_insert(now);
        let order = match microvm.work {
            Work::Runner(_) => Order::Farewell(Farewell {
                within: microvm.patience.farewell.min(most),
                why: microvm.ended_for.clone().unwrap_or_else(|| "the daemon ends it".to_owned()),
            }),
            Work::None | Work::Local(_) => Order::End,
        };
        self.order(key, order);
    }

    /// Ends, or kills, microVMs that took too long.
    pub(in crate::daemon) fn end_overdue(&mut self, clock: &Clock, reader: &Reader) {
        let now = clock.now();
        if clock.settles() > now {
            return;
        }
        let due = self.microvms.values().filter(|held| held.over.is_none()).filter_map(|held| {
            let (at, step) = overdue::step(&held.microvm)?;
            (at <= now).then_some((held.microvm.key, step))
        });
        for (key, step) in due.collect::<Vec<_>>() {
            let _about = self.about(Some(key), reader);
            let Some(microvm) = self.get_mut(key) else { continue };
            microvm.enter(Stage::Ending, now);
            match step {
                Step::End(why) | Step::Fail(why) => {
                    tracing::warn!("the microVM ends: {why}");
                    microvm.failed = matches!(step, Step::Fail(_));
                    microvm.ended_for = Some(why.to_owned());
                    self.tell_to_end(key, Duration::MAX, now);
                }
                Step::Kill(why) => {
                    tracing::warn!("the microVM is killed: {why}");
                    if microvm.killed.replace(now).is_none() {
                        let before = microvm.ended_for.take();
                        let before = before.map(|why| format!("{why}; ")).unwrap_or_default();
                        microvm.ended_for = Some(format!("{before}{why}: it was killed"));
                    }
                    self.errand(key, Errand::Kill);
                }
            }
        }
    }

    /// When the next microVM is overdue.
    pub(in crate::daemon) fn wake(&self, clock: &Clock) -> Option<Millis> {
        let living = self.microvms.values().filter(|held| held.over.is_none());
        let steps = living.filter_map(|held| overdue::step(&held.microvm));
        steps.map(|(at, _)| at.max(clock.settles())).min()
    }
}

//! The runners to delete at the forge, and when to retry. Pure.
//!
//! A name is here from the time at which nothing of this daemon can use it any more, until the
//! forge reports that it does not exist. This set is only as complete as the ledger; the list of
//! the scope's runners, compared with those in use, finds the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::time::Millis;
use mayfly_common::backoff::delay;
use mayfly_forge::RemoteRunner;

/// The wait after the first failure, and the limit up to which it doubles.
const FIRST_RETRY: Duration = Duration::from_secs(2);
const LONGEST_RETRY: Duration = Duration::from_secs(5 * 60);
/// The maximum number of deletions that run at the same time.
const MAX_RUNNING: usize = 4;

/// The deletions that are still to be done.
#[derive(Debug, Default)]
pub(super) struct Removals(BTreeMap<String, Removal>);

#[derive(Debug)]
struct Removal {
    // Its pool, if known.
    pool: Option<String>,
    number: Option<u64>,
    tries: u32,
    next: Millis,
    // When the last try failed.
    last_tried_at: Option<Millis>,
    is_running: bool,
}

/// A deletion to be tried now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DueRemoval {
    pub(super) name: String,
    pub(super) pool: Option<String>,
    pub(super) number: Option<u64>,
}

impl Removals {
    /// Adds a runner to delete.
    pub(super) fn add(&mut self, name: &str, pool: Option<&str>, number: Option<u64>, now: Millis) {
        self.0.entry(name.to_owned()).or_insert(Removal {
            pool: pool.map(str::to_owned),
            number,
            tries: 0,
            next: now,
            last_tried_at: None,
            is_running: false,
        });
    }

    /// Returns the deletions to be tried now, and marks them as running.
    pub(super) fn due(&mut self, now: Millis) -> Vec<DueRemoval> {
        let room = MAX_RUNNING.saturating_sub(self.0.values().filter(|one| one.is_running).count());
        let due = self.0.iter_mut().filter(|(_, one)| !one.is_running && one.next <= now);
        due.take(room)
            .map(|(name, one)| {
                one.is_running = true;
                DueRemoval { name: name.clone(), pool: one.pool.clone(), number: one.number }
            })
            .collect()
    }

    /// Records a failed try.
    pub(super) fn record_failure(&mut self, name: &str, now: Millis) {
        if let Some(one) = self.0.get_mut(name) {
            let wait = delay(one.tries, FIRST_RETRY, LONGEST_RETRY);
            one.tries = one.tries.saturating_add(1);
            one.next = now + wait;
            one.last_tried_at = Some(now);
            one.is_running = false;
        }
    }

    /// Postpones a deletion that can't be tried yet.
    pub(super) fn postpone(&mut self, name: &str, until: Millis, now: Millis) {
        if let Some(one) = self.0.get_mut(name) {
            one.next = until;
            one.last_tried_at = Some(now);
            one.is_running = false;
        }
    }

    /// Removes a runner that is deleted.
    pub(super) fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// Returns whether a name is here.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Returns whether every deletion was tried, and failed, at or after that time.
    pub(super) fn were_all_tried_since(&self, moment: Millis) -> bool {
        self.0.values().all(|one| {
            !one.is_running
                && one.last_tried_at.is_some_and(|last_tried_at| last_tried_at >= moment)
        })
    }

    /// Makes all deletions due now.
    pub(super) fn retry_now(&mut self, now: Millis) {
        for one in self.0.values_mut().filter(|one| !one.is_running) {
            one.next = one.next.min(now);
        }
    }

    /// Returns the remaining names.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Returns when the next try is due.
    pub(super) fn next_wake(&self) -> Option<Millis> {
        self.0.values().filter(|one| !one.is_running).map(|one| one.next).min()
    }
}

/// Returns the listed runners that have this daemon's prefix and are not in use: left behind by an
/// unanswered call, or by a daemon that was killed. Runners of others are never among them.
pub(super) fn orphans<'a>(
    listed: &'a [RemoteRunner],
    prefix: &str,
    in_use: &BTreeSet<&str>,
) -> Vec<&'a RemoteRunner> {
    let ours = listed.iter().filter(|runner| runner.name.starts_with(prefix));
    ours.filter(|runner| !in_use.contains(runner.name.as_str())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runner(name: &str) -> RemoteRunner {
        RemoteRunner { id: 1, name: name.to_owned(), busy: false }
    }

    #[test]
    fn a_drain_waits_until_each_removal_was_tried_once_since_it_began() {
        let mut removals = Removals::default();
        assert!(removals.were_all_tried_since(Millis(0)), "there is none");
        removals.add("a", None, None, Millis(0));
        removals.due(Millis(0));
        removals.record_failure("a", Millis(5));
        assert!(!removals.were_all_tried_since(Millis(10)), "that was before");
        removals.retry_now(Millis(10));
        assert_eq!(removals.due(Millis(10)).len(), 1, "its back-off is cut short");
        assert!(!removals.were_all_tried_since(Millis(10)), "it is under way");
        removals.record_failure("a", Millis(12));
        assert!(removals.were_all_tried_since(Millis(10)));
        removals.add("b", None, None, Millis(13));
        assert!(!removals.were_all_tried_since(Millis(10)), "another came");
        removals.due(Millis(13));
        removals.postpone("b", Millis(9999), Millis(14));
        assert!(removals.were_all_tried_since(Millis(10)));
        assert_eq!(removals.names().collect::<Vec<_>>(), ["a", "b"]);
        removals.remove("a");
        removals.remove("b");
        assert!(removals.were_all_tried_since(Millis(10)));
    }

    #[test]
    fn a_removal_is_tried_again_later_each_time_until_it_is_done() {
        let mut removals = Removals::default();
        removals.add("a", None, None, Millis(0));
        let mut now = Millis(0);
        let mut waits = Vec::new();
        for _ in 0..12 {
            assert_eq!(removals.due(now).len(), 1);
            assert_eq!(removals.due(now), [], "one that is under way is not tried twice");
            removals.record_failure("a", now);
            let next = removals.next_wake().unwrap();
            waits.push(next.since(now).as_secs());
            now = next;
        }
        assert_eq!(waits[..3], [2, 4, 8]);
        assert_eq!(waits[11], 300);
        removals.remove("a");
        assert!(removals.names().next().is_none() && removals.next_wake().is_none());
    }

    #[test]
    fn a_postponed_deletion_does_not_count_as_a_failure() {
        let mut removals = Removals::default();
        removals.add("a", None, None, Millis(0));
        for round in 0..9 {
            assert_eq!(removals.due(Millis(round * 10)).len(), 1);
            removals.postpone("a", Millis((round + 1) * 10), Millis(round * 10));
        }
        assert_eq!(removals.due(Millis(90)).len(), 1);
        removals.record_failure("a", Millis(90));
        assert_eq!(removals.next_wake().unwrap().since(Millis(90)), FIRST_RETRY);
    }

    #[test]
    fn the_number_of_running_deletions_is_limited() {
        let mut removals = Removals::default();
        for number in 0..10 {
            removals.add(&number.to_string(), None, Some(number), Millis(0));
        }
        assert_eq!(removals.due(Millis(0)).len(), MAX_RUNNING);
        assert_eq!(removals.due(Millis(0)).len(), 0);
        removals.remove("0");
        assert_eq!(removals.due(Millis(0)).len(), 1);
    }

    #[test]
    fn only_our_own_unused_runners_are_orphans() {
        let listed = ["mayfly-abc-1", "mayfly-abc-2", "mayfly-xyz-1", "theirs"].map(runner);
        let in_use = BTreeSet::from(["mayfly-abc-1"]);
        let orphans = orphans(&listed, "mayfly-abc-", &in_use);
        let names: Vec<_> = orphans.iter().map(|runner| runner.name.as_str()).collect();
        assert_eq!(names, ["mayfly-abc-2"]);
    }
}

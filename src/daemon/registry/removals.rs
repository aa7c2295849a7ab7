//! The runners at the forge that have to go: which, and when to try again. Pure.
//!
//! A name is here from the moment at which nothing of ours can use it any more until the forge
//! says that there is no such runner. What is here is only as good as what was recorded; a list of the
//! scope's runners, compared with those in use, finds the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::daemon::millis::Millis;
use crate::forge::Runner;

/// The wait after the first refusal, and what it doubles up to.
const FIRST: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(5 * 60);
/// Removals that are under way at the same time.
const AT_ONCE: usize = 4;

/// The removals that are still to be done.
#[derive(Debug, Default)]
pub(super) struct Removals(BTreeMap<String, Removal>);

#[derive(Debug)]
struct Removal {
    // Whose it is, where that is known.
    pool: Option<String>,
    number: Option<u64>,
    tries: u32,
    next: Millis,
    // When it was last tried in vain.
    tried: Option<Millis>,
    under_way: bool,
}

/// One to be tried now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) name: String,
    pub(super) pool: Option<String>,
    pub(super) number: Option<u64>,
}

impl Removals {
    /// A runner that has to go.
    pub(super) fn add(&mut self, name: &str, pool: Option<&str>, number: Option<u64>, now: Millis) {
        self.0.entry(name.to_owned()).or_insert(Removal {
            pool: pool.map(str::to_owned),
            number,
            tries: 0,
            next: now,
            tried: None,
            under_way: false,
        });
    }

    /// Those to be tried now, which are under way from here on.
    pub(super) fn due(&mut self, now: Millis) -> Vec<Due> {
        let room = AT_ONCE.saturating_sub(self.0.values().filter(|one| one.under_way).count());
        let due = self.0.iter_mut().filter(|(_, one)| !one.under_way && one.next <= now);
        due.take(room)
            .map(|(name, one)| {
                one.under_way = true;
                Due { name: name.clone(), pool: one.pool.clone(), number: one.number }
            })
            .collect()
    }

    /// One was tried in vain.
    pub(super) fn again(&mut self, name: &str, now: Millis) {
        if let Some(one) = self.0.get_mut(name) {
            let wait = FIRST.saturating_mul(1_u32.checked_shl(one.tries).unwrap_or(u32::MAX));
            one.tries = one.tries.saturating_add(1);
            one.next = now + wait.min(LONGEST);
            one.tried = Some(now);
            one.under_way = false;
        }
    }

    /// One could not be tried yet, and can be at that moment.
    pub(super) fn postpone(&mut self, name: &str, until: Millis, now: Millis) {
        if let Some(one) = self.0.get_mut(name) {
            one.next = until;
            one.tried = Some(now);
            one.under_way = false;
        }
    }

    /// One is gone.
    pub(super) fn done(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// Whether a name is here.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Whether each that is left was tried in vain at or after that moment.
    pub(super) fn were_tried_since(&self, moment: Millis) -> bool {
        self.0.values().all(|one| !one.under_way && one.tried.is_some_and(|tried| tried >= moment))
    }

    /// All that are due at some time are due now.
    pub(super) fn hurry(&mut self, now: Millis) {
        for one in self.0.values_mut().filter(|one| !one.under_way) {
            one.next = one.next.min(now);
        }
    }

    /// The names that are left.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// When the next has to be tried.
    pub(super) fn wake(&self) -> Option<Millis> {
        self.0.values().filter(|one| !one.under_way).map(|one| one.next).min()
    }
}

/// The runners of a list that are ours by their names' prefix and that nothing of ours uses: left
/// behind by an answer that never came, or by a daemon that was killed. Another's are never among
/// them.
pub(super) fn orphans<'a>(
    listed: &'a [Runner],
    prefix: &str,
    in_use: &BTreeSet<&str>,
) -> Vec<&'a Runner> {
    let ours = listed.iter().filter(|runner| runner.name.starts_with(prefix));
    ours.filter(|runner| !in_use.contains(runner.name.as_str())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runner(name: &str) -> Runner {
        Runner { number: 1, name: name.to_owned(), busy: false }
    }

    #[test]
    fn a_drain_waits_until_each_removal_was_tried_once_since_it_began() {
        let mut removals = Removals::default();
        assert!(removals.were_tried_since(Millis(0)), "there is none");
        removals.add("a", None, None, Millis(0));
        removals.due(Millis(0));
        removals.again("a", Millis(5));
        assert!(!removals.were_tried_since(Millis(10)), "that was before");
        removals.hurry(Millis(10));
        assert_eq!(removals.due(Millis(10)).len(), 1, "its back-off is cut short");
        assert!(!removals.were_tried_since(Millis(10)), "it is under way");
        removals.again("a", Millis(12));
        assert!(removals.were_tried_since(Millis(10)));
        removals.add("b", None, None, Millis(13));
        assert!(!removals.were_tried_since(Millis(10)), "another came");
        removals.due(Millis(13));
        removals.postpone("b", Millis(9999), Millis(14));
        assert!(removals.were_tried_since(Millis(10)));
        assert_eq!(removals.names().collect::<Vec<_>>(), ["a", "b"]);
        removals.done("a");
        removals.done("b");
        assert!(removals.were_tried_since(Millis(10)));
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
            removals.again("a", now);
            let next = removals.wake().unwrap();
            waits.push(next.since(now).as_secs());
            now = next;
        }
        assert_eq!(waits[..3], [2, 4, 8]);
        assert_eq!(waits[11], 300);
        removals.done("a");
        assert!(removals.names().next().is_none() && removals.wake().is_none());
    }

    #[test]
    fn what_was_not_tried_does_not_count_as_a_failure() {
        let mut removals = Removals::default();
        removals.add("a", None, None, Millis(0));
        for round in 0..9 {
            assert_eq!(removals.due(Millis(round * 10)).len(), 1);
            removals.postpone("a", Millis((round + 1) * 10), Millis(round * 10));
        }
        assert_eq!(removals.due(Millis(90)).len(), 1);
        removals.again("a", Millis(90));
        assert_eq!(removals.wake().unwrap().since(Millis(90)), FIRST);
    }

    #[test]
    fn few_are_under_way_at_once() {
        let mut removals = Removals::default();
        for number in 0..10 {
            removals.add(&number.to_string(), None, Some(number), Millis(0));
        }
        assert_eq!(removals.due(Millis(0)).len(), AT_ONCE);
        assert_eq!(removals.due(Millis(0)).len(), 0);
        removals.done("0");
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

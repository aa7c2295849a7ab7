//! How often GitHub may be called: what it says of its rate limits, and what follows. Pure.

use std::time::{Duration, SystemTime};

/// The longest that a call waits for its turn; one that would wait longer is not sent.
const MOST_QUEUED: Duration = Duration::from_secs(10);
/// The share of the hourly limit, 1 in this many, that polling leaves to calls that matter more.
const KEPT: u64 = 4;
/// The longest between two polls, whatever the budget.
const SLOWEST_POLL: Duration = Duration::from_secs(15 * 60);

/// The primary rate limit as GitHub last told it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Calls per hour.
    pub limit: u64,
    /// Calls left until `reset`.
    pub remaining: u64,
    /// When `remaining` is `limit` again.
    pub reset: SystemTime,
}

/// What may be sent when.
#[derive(Debug, Clone)]
pub struct Budget {
    gap: Duration,
    rate: Option<Rate>,
    next_mutation: Option<SystemTime>,
    blocked: Option<SystemTime>,
    strikes: u32,
}

impl Budget {
    /// A budget that knows nothing yet, with at least `gap` between two mutations.
    pub fn new(gap: Duration) -> Self {
        Self { gap, rate: None, next_mutation: None, blocked: None, strikes: 0 }
    }

    /// Takes a turn: how long to wait before sending; or `Err` until when nothing may be sent.
    pub fn reserve(&mut self, mutation: bool, now: SystemTime) -> Result<Duration, SystemTime> {
        if let Some(until) = self.blocked {
            if until > now {
                return Err(until);
            }
            self.blocked = None;
        }
        if !mutation {
            return Ok(Duration::ZERO);
        }
        let wait = self
            .next_mutation
            .and_then(|next| next.duration_since(now).ok())
            // A clock that was set back must not hold us up for longer than the queue can be.
            .map_or(Duration::ZERO, |wait| wait.min(MOST_QUEUED + self.gap));
        if wait > MOST_QUEUED {
            return Err(now + wait);
        }
        self.next_mutation = Some(now + wait + self.gap);
        Ok(wait)
    }

    /// Takes note of the common rate limit that an answer told. Answers may come out of order:
    /// within one window the smaller rest is the later one.
    pub fn learn(&mut self, rate: Rate) {
        let stale = self.rate.is_some_and(|known| {
            known.reset > rate.reset
                || (known.reset == rate.reset && known.remaining < rate.remaining)
        });
        if !stale {
            self.rate = Some(rate);
        }
    }

    /// Takes note of a rate limit that holds for every call.
    pub fn block(&mut self, until: SystemTime) {
        self.strikes = self.strikes.saturating_add(1);
        self.blocked = Some(self.blocked.map_or(until, |blocked| blocked.max(until)));
    }

    /// Takes note of a call that went well.
    pub fn succeed(&mut self) {
        self.strikes = 0;
    }

    /// How many rate limits came in a row.
    pub fn strikes(&self) -> u32 {
        self.strikes
    }

    /// The primary rate limit, if one was told and its window is not over.
    pub fn rate(&self, now: SystemTime) -> Option<Rate> {
        self.rate.filter(|rate| rate.reset > now)
    }

    /// How long to wait between two polls of `calls` calls each: `base`, or so long that what is
    /// left lasts until the reset, with a share kept for minting and deleting.
    pub fn poll_interval(&self, base: Duration, calls: u64, now: SystemTime) -> Duration {
        let blocked =
            self.blocked.and_then(|until| until.duration_since(now).ok()).unwrap_or(Duration::ZERO);
        let Some(rate) = self.rate(now) else { return base.max(blocked) };
        let window = rate.reset.duration_since(now).unwrap_or(Duration::ZERO);
        let spare = rate.remaining.saturating_sub(rate.limit / KEPT);
        let polls = u32::try_from(spare / calls.max(1)).unwrap_or(u32::MAX);
        let even = window.checked_div(polls).unwrap_or(window);
        base.max(even.min(SLOWEST_POLL)).max(blocked)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GAP: Duration = Duration::from_secs(1);

    fn at(milliseconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds)
    }

    fn rate(remaining: u64, reset: u64) -> Rate {
        Rate { limit: 5000, remaining, reset: at(reset) }
    }

    #[test]
    fn while_blocked_nothing_is_sent_and_then_everything() {
        let mut budget = Budget::new(GAP);
        budget.block(at(5000));
        budget.block(at(3000));
        assert_eq!(budget.reserve(false, at(1000)), Err(at(5000)));
        assert_eq!(budget.reserve(true, at(4999)), Err(at(5000)));
        assert_eq!(budget.reserve(true, at(5000)), Ok(Duration::ZERO));
        assert_eq!(budget.strikes(), 2);
        budget.succeed();
        assert_eq!(budget.strikes(), 0);
    }

    #[test]
    fn a_late_answer_does_not_give_calls_back() {
        let mut budget = Budget::new(GAP);
        budget.learn(rate(10, 9000));
        budget.learn(rate(11, 9000));
        assert_eq!(budget.rate(at(0)), Some(rate(10, 9000)));
        budget.learn(rate(5000, 19_000));
        budget.learn(rate(9, 9000));
        assert_eq!(budget.rate(at(0)), Some(rate(5000, 19_000)));
        assert_eq!(budget.rate(at(19_000)), None);
    }

    #[test]
    fn polling_slows_as_the_budget_shrinks() {
        let base = Duration::from_secs(10);
        let hour = 3_600_000;
        let interval = |remaining| {
            let mut budget = Budget::new(GAP);
            budget.learn(rate(remaining, hour));
            budget.poll_interval(base, 10, at(0))
        };
        assert_eq!(interval(5000), base);
        assert_eq!(interval(1250 + 100), Duration::from_secs(360));
        assert_eq!(interval(1250), SLOWEST_POLL);
        assert_eq!(interval(0), SLOWEST_POLL);
    }

    proptest! {
        #[test]
        fn mutations_keep_their_distance(steps in proptest::collection::vec(0_u64..3000, 1..60)) {
            let mut budget = Budget::new(GAP);
            let (mut now, mut last) = (1_000_000, None::<SystemTime>);
            for step in steps {
                now += step;
                if let Ok(wait) = budget.reserve(true, at(now)) {
                    let sent = at(now) + wait;
                    prop_assert!(wait <= MOST_QUEUED);
                    prop_assert!(last.is_none_or(|last| sent >= last + GAP));
                    last = Some(sent);
                }
            }
        }

        #[test]
        fn a_poll_never_eats_what_is_kept(
            remaining in 0_u64..5000, calls in 1_u64..200, window in 1_u64..3600,
        ) {
            let mut budget = Budget::new(GAP);
            budget.learn(rate(remaining, window * 1000));
            let base = Duration::from_secs(10);
            let interval = budget.poll_interval(base, calls, at(0));
            prop_assert!(interval >= base);
            let polls = Duration::from_secs(window).as_nanos() / interval.as_nanos();
            let spare = u128::from(remaining.saturating_sub(1250));
            // One poll more than fits may have begun, and there is one at least each quarter hour.
            prop_assert!(polls * u128::from(calls) <= spare + u128::from(calls) * 4);
        }
    }
}

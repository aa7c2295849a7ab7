//! The rate budget: when GitHub may be called, given the rate limits that it reports. Pure.

use std::time::{Duration, SystemTime};

/// The longest that a call waits for its slot; a call that would wait longer is not sent.
const MAX_QUEUE_WAIT: Duration = Duration::from_secs(10);
/// Polling leaves one part in this many of the hourly limit to more important calls.
const RESERVED_SHARE: u64 = 4;
/// The longest time between two polls, whatever the budget.
const MAX_POLL_INTERVAL: Duration = Duration::from_secs(15 * 60);

/// The primary rate limit as GitHub last reported it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// The calls per hour.
    pub limit: u64,
    /// The calls left until `reset`.
    pub remaining: u64,
    /// When `remaining` returns to `limit`.
    pub reset: SystemTime,
}

/// The rate budget of one client.
#[derive(Debug, Clone)]
pub(super) struct RateBudget {
    gap: Duration,
    rate: Option<RateLimit>,
    next_mutation: Option<SystemTime>,
    blocked: Option<SystemTime>,
    refusals: u32,
}

impl RateBudget {
    /// Creates a budget without any known limit, with at least `gap` between two mutations.
    pub(super) fn new(gap: Duration) -> Self {
        Self { gap, rate: None, next_mutation: None, blocked: None, refusals: 0 }
    }

    /// Reserves a slot and returns how long to wait for it; `Err` is the time before which nothing
    /// may be sent.
    pub(super) fn reserve(
        &mut self,
        mutation: bool,
        now: SystemTime,
    ) -> Result<Duration, SystemTime> {
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
            // A clock that was set back must not delay a call for longer than the queue can be.
            .map_or(Duration::ZERO, |wait| wait.min(MAX_QUEUE_WAIT + self.gap));
        if wait > MAX_QUEUE_WAIT {
            return Err(now + wait);
        }
        self.next_mutation = Some(now + wait + self.gap);
        Ok(wait)
    }

    /// Updates the primary rate limit from a response. Responses may arrive out of order: within
    /// one window the smaller `remaining` is the later one.
    pub(super) fn update(&mut self, rate: RateLimit) {
        let stale = self.rate.is_some_and(|known| {
            known.reset > rate.reset
                || (known.reset == rate.reset && known.remaining < rate.remaining)
        });
        if !stale {
            self.rate = Some(rate);
        }
    }

    /// Blocks every call until a rate limit ends.
    pub(super) fn block(&mut self, until: SystemTime) {
        self.refusals = self.refusals.saturating_add(1);
        self.blocked = Some(self.blocked.map_or(until, |blocked| blocked.max(until)));
    }

    /// Resets the count of consecutive rate limits after a successful call.
    pub(super) fn succeed(&mut self) {
        self.refusals = 0;
    }

    /// Returns the number of consecutive rate limits.
    pub(super) fn refusals(&self) -> u32 {
        self.refusals
    }

    /// Returns the primary rate limit, if one was reported and its window is not over.
    pub(super) fn rate(&self, now: SystemTime) -> Option<RateLimit> {
        self.rate.filter(|rate| rate.reset > now)
    }

    /// Returns how long to wait between two polls of `calls` calls each: `base`, or long enough
    /// that the remaining calls last until the reset, with a share reserved for creating and
    /// deleting runners.
    pub(super) fn poll_interval(&self, base: Duration, calls: u64, now: SystemTime) -> Duration {
        let blocked =
            self.blocked.and_then(|until| until.duration_since(now).ok()).unwrap_or(Duration::ZERO);
        let Some(rate) = self.rate(now) else { return base.max(blocked) };
        let window = rate.reset.duration_since(now).unwrap_or(Duration::ZERO);
        let spare = rate.remaining.saturating_sub(rate.limit / RESERVED_SHARE);
        let polls = u32::try_from(spare / calls.max(1)).unwrap_or(u32::MAX);
        let even = window.checked_div(polls).unwrap_or(window);
        base.max(even.min(MAX_POLL_INTERVAL)).max(blocked)
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

    fn rate(remaining: u64, reset: u64) -> RateLimit {
        RateLimit { limit: 5000, remaining, reset: at(reset) }
    }

    #[test]
    fn nothing_is_sent_while_blocked() {
        let mut budget = RateBudget::new(GAP);
        budget.block(at(5000));
        budget.block(at(3000));
        assert_eq!(budget.reserve(false, at(1000)), Err(at(5000)));
        assert_eq!(budget.reserve(true, at(4999)), Err(at(5000)));
        assert_eq!(budget.reserve(true, at(5000)), Ok(Duration::ZERO));
        assert_eq!(budget.refusals(), 2);
        budget.succeed();
        assert_eq!(budget.refusals(), 0);
    }

    #[test]
    fn a_late_response_does_not_restore_calls() {
        let mut budget = RateBudget::new(GAP);
        budget.update(rate(10, 9000));
        budget.update(rate(11, 9000));
        assert_eq!(budget.rate(at(0)), Some(rate(10, 9000)));
        budget.update(rate(5000, 19_000));
        budget.update(rate(9, 9000));
        assert_eq!(budget.rate(at(0)), Some(rate(5000, 19_000)));
        assert_eq!(budget.rate(at(19_000)), None);
    }

    #[test]
    fn polling_slows_as_the_budget_shrinks() {
        let base = Duration::from_secs(10);
        let hour = 3_600_000;
        let interval = |remaining| {
            let mut budget = RateBudget::new(GAP);
            budget.update(rate(remaining, hour));
            budget.poll_interval(base, 10, at(0))
        };
        assert_eq!(interval(5000), base);
        assert_eq!(interval(1250 + 100), Duration::from_secs(360));
        assert_eq!(interval(1250), MAX_POLL_INTERVAL);
        assert_eq!(interval(0), MAX_POLL_INTERVAL);
    }

    proptest! {
        #[test]
        fn mutations_keep_their_distance(steps in proptest::collection::vec(0_u64..3000, 1..60)) {
            let mut budget = RateBudget::new(GAP);
            let (mut now, mut last) = (1_000_000, None::<SystemTime>);
            for step in steps {
                now += step;
                if let Ok(wait) = budget.reserve(true, at(now)) {
                    let sent = at(now) + wait;
                    prop_assert!(wait <= MAX_QUEUE_WAIT);
                    prop_assert!(last.is_none_or(|last| sent >= last + GAP));
                    last = Some(sent);
                }
            }
        }

        #[test]
        fn polls_never_use_the_reserved_share(
            remaining in 0_u64..5000, calls in 1_u64..200, window in 1_u64..3600,
        ) {
            let mut budget = RateBudget::new(GAP);
            budget.update(rate(remaining, window * 1000));
            let base = Duration::from_secs(10);
            let interval = budget.poll_interval(base, calls, at(0));
            prop_assert!(interval >= base);
            let polls = Duration::from_secs(window).as_nanos() / interval.as_nanos();
            let spare = u128::from(remaining.saturating_sub(1250));
            // One more poll than fits may have started, and at least one runs every 15 minutes.
            prop_assert!(polls * u128::from(calls) <= spare + u128::from(calls) * 4);
        }
    }
}

//! A token bucket, as a pure function of time.

use std::time::Duration;

/// Credit is counted in billionths of a token: `per_second` of them are added per nanosecond.
const TOKEN: i128 = 1_000_000_000;

/// Tokens that are added at a rate, up to a burst. A bucket starts full.
#[derive(Debug)]
pub struct TokenBucket {
    per_second: u64,
    burst: u64,
    /// Below zero while tokens are owed.
    credit: i128,
    updated: Duration,
}

impl TokenBucket {
    /// Creates a full bucket: `burst` tokens, and `per_second` more each second. Time counts from
    /// its creation.
    pub fn new(per_second: u64, burst: u64) -> Self {
        Self { per_second, burst, credit: i128::from(burst) * TOKEN, updated: Duration::ZERO }
    }

    /// Takes tokens if there are enough. Returns whether it did.
    pub fn try_take(&mut self, now: Duration, tokens: u64) -> bool {
        self.refill(now);
        let cost = i128::from(tokens) * TOKEN;
        let is_enough = self.credit >= cost;
        if is_enough {
            self.credit -= cost;
        }
        is_enough
    }

    /// Takes tokens, on credit if there are too few. Returns how long it takes until nothing is
    /// owed.
    pub fn take(&mut self, now: Duration, tokens: u64) -> Duration {
        self.refill(now);
        self.credit = self.credit.saturating_sub(i128::from(tokens) * TOKEN);
        let owed = self.credit.min(0).unsigned_abs();
        if owed == 0 {
            return Duration::ZERO;
        }
        let nanoseconds = match self.per_second {
            0 => u128::MAX,
            rate => owed.div_ceil(u128::from(rate)),
        };
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    fn refill(&mut self, now: Duration) {
        let elapsed = now.saturating_sub(self.updated).as_nanos();
        self.updated = self.updated.max(now);
        let added = elapsed.saturating_mul(u128::from(self.per_second));
        let added = i128::try_from(added).unwrap_or(i128::MAX);
        self.credit = self.credit.saturating_add(added).min(i128::from(self.burst) * TOKEN);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_more_is_taken_than_burst_and_rate_allow(
            per_second in 0_u64..1000,
            burst in 1_u64..100,
            waits in prop::collection::vec(0_u64..20_000_000, 1..300),
        ) {
            let mut bucket = TokenBucket::new(per_second, burst);
            let (mut taken, mut elapsed) = (0, 0);
            for wait in waits {
                elapsed += wait;
                taken += u64::from(bucket.try_take(Duration::from_nanos(elapsed), 1));
                let allowed = burst + elapsed * per_second / 1_000_000_000;
                prop_assert!(taken <= allowed, "{taken} of {allowed}");
            }
        }

        #[test]
        fn a_trickle_at_the_rate_is_never_refused(count in 1_u32..100) {
            let mut bucket = TokenBucket::new(10, 1);
            for number in 0..count {
                prop_assert!(bucket.try_take(Duration::from_millis(100) * number, 1));
            }
        }

        /// Each take is somebody else's: they do not wait for each other.
        #[test]
        fn with_waits_no_window_exceeds_burst_and_rate(
            per_second in 1_000_u64..1_000_000_000,
            takes in prop::collection::vec((0_u64..400_000_000, 1_u64..1_000_000), 1..100),
        ) {
            let burst = per_second / 4;
            let mut bucket = TokenBucket::new(per_second, burst);
            let mut now = Duration::ZERO;
            let mut passes = Vec::new();
            for (wait, tokens) in takes {
                now += Duration::from_nanos(wait);
                passes.push((now + bucket.take(now, tokens), tokens));
            }
            // A later take never passes before an earlier one, so a window is a run of takes.
            prop_assert!(passes.windows(2).all(|pair| pair[0].0 <= pair[1].0));
            for first in 0..passes.len() {
                let mut sum = 0;
                for (at, tokens) in &passes[first..] {
                    sum += u128::from(*tokens);
                    let window = at.saturating_sub(passes[first].0).as_nanos();
                    // The first take of a window may have waited since before it.
                    let allowed = window * u128::from(per_second) / 1_000_000_000
                        + u128::from(burst) + u128::from(passes[first].1) + 1;
                    prop_assert!(sum <= allowed, "{sum} of {allowed} in {window} ns");
                }
            }
        }

        #[test]
        fn takes_below_the_rate_never_wait(
            per_second in 1_000_u64..1_000_000,
            amounts in prop::collection::vec(1_u64..1_000, 1..50),
        ) {
            let mut bucket = TokenBucket::new(per_second, per_second / 4);
            let mut now = Duration::ZERO;
            for tokens in amounts {
                let tokens = tokens.min(per_second / 8);
                prop_assert_eq!(bucket.take(now, tokens), Duration::ZERO);
                now += Duration::from_nanos(tokens * 1_000_000_000 / per_second + 2);
            }
        }
    }

    #[test]
    fn an_empty_bucket_without_a_rate_stays_empty() {
        let mut bucket = TokenBucket::new(0, 2);
        assert_eq!(bucket.take(Duration::ZERO, 2), Duration::ZERO);
        assert!(!bucket.try_take(Duration::MAX, 1));
        assert!(bucket.take(Duration::MAX, u64::MAX) > Duration::from_secs(1 << 30));
        // A clock that went back adds nothing.
        assert!(!bucket.try_take(Duration::ZERO, 1));
    }
}

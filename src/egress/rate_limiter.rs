//! Rate limits: a token bucket shared by the connections of a rule.
//!
//! All connections of a microVM under a rule share its rate, so opening more of them brings no more
//! bandwidth. Bytes are charged before they are forwarded: however many connections there are, no
//! more than the rate and one burst gets out.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::policy::ByteRate;

/// How long an unused rate accumulates.
const BURST: Duration = Duration::from_millis(250);

/// A token bucket, as a pure function of time: instead of tokens it stores the moment up to which
/// all forwarded bytes are paid for.
#[derive(Debug)]
struct TokenBucket {
    rate: ByteRate,
    /// Time since the bucket was created.
    paid_until: Duration,
}

impl TokenBucket {
    /// Creates a full bucket.
    fn new(rate: ByteRate) -> Self {
        Self { rate, paid_until: Duration::ZERO }
    }

    /// Charges bytes at a moment. Returns how long they must wait before they may be forwarded.
    fn take(&mut self, now: Duration, bytes: u64) -> Duration {
        // Time counts from one burst before the bucket's creation, so that it starts full.
        let now = now.saturating_add(BURST);
        let nanoseconds =
            u128::from(bytes) * 1_000_000_000 / u128::from(self.rate.per_second()) + 1;
        let cost = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        let begin = self.paid_until.max(now.saturating_sub(BURST));
        self.paid_until = begin.saturating_add(cost);
        self.paid_until.saturating_sub(now)
    }
}

/// The rate limiter of one rule in one microVM.
#[derive(Debug)]
pub struct RateLimiter {
    bucket: Mutex<TokenBucket>,
    begin: Instant,
}

impl RateLimiter {
    /// Creates an unused rate limiter.
    pub fn new(rate: ByteRate) -> Self {
        Self { bucket: Mutex::new(TokenBucket::new(rate)), begin: Instant::now() }
    }

    /// Charges bytes. Returns how long they must wait before they may be forwarded.
    pub fn take(&self, bytes: usize) -> Duration {
        // A bucket is consistent between any two statements that could panic.
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.take(self.begin.elapsed(), bytes as u64)
    }

    /// Charges bytes and waits until they may be forwarded.
    pub async fn wait(&self, bytes: usize) {
        let wait = self.take(bytes);
        if !wait.is_zero() {
            sleep(wait).await;
        }
    }

    /// Returns how many bytes one connection should read at once, so that others get their turn: a
    /// quarter of a burst, at most `most`.
    pub fn chunk_size(&self, most: usize) -> usize {
        let bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let share = usize::try_from(bucket.rate.per_second() / 16).unwrap_or(usize::MAX);
        share.clamp(1, most)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(per_second: u64) -> ByteRate {
        format!("{per_second}B/s").parse().unwrap()
    }

    fn nanoseconds(duration: Duration) -> u128 {
        duration.as_nanos()
    }

    proptest! {
        /// Each take is from another connection: they do not wait for each other.
        #[test]
        fn no_window_exceeds_rate_and_burst(
            per_second in 1_000_u64..1_000_000_000,
            takes in prop::collection::vec((0_u64..400_000_000, 1_u64..1_000_000), 1..100),
        ) {
            let mut bucket = TokenBucket::new(rate(per_second));
            let mut now = Duration::ZERO;
            let mut passes = Vec::new();
            for (wait, bytes) in takes {
                now += Duration::from_nanos(wait);
                passes.push((now + bucket.take(now, bytes), bytes));
            }
            // A later take never passes before an earlier one, so a window is a run of takes.
            prop_assert!(passes.windows(2).all(|pair| pair[0].0 <= pair[1].0));
            for first in 0..passes.len() {
                let mut sum = 0;
                for (at, bytes) in &passes[first..] {
                    sum += u128::from(*bytes);
                    let window = at.saturating_sub(passes[first].0) + BURST;
                    // The first take of a window may have waited since before it.
                    let allowed = nanoseconds(window) * u128::from(per_second) / 1_000_000_000
                        + u128::from(passes[first].1);
                    prop_assert!(sum <= allowed, "{sum} of {allowed} in {window:?}");
                }
            }
        }

        #[test]
        fn traffic_below_the_rate_never_waits(
            per_second in 1_000_u64..1_000_000,
            sizes in prop::collection::vec(1_u64..1_000, 1..50),
        ) {
            let mut bucket = TokenBucket::new(rate(per_second));
            let mut now = Duration::ZERO;
            for bytes in sizes {
                let bytes = bytes.min(per_second / 8);
                prop_assert_eq!(bucket.take(now, bytes), Duration::ZERO);
                now += Duration::from_nanos(bytes * 1_000_000_000 / per_second + 2);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_enforces_the_rate() {
        let limiter = RateLimiter::new(rate(1_000));
        let begin = Instant::now();
        for _ in 0..40 {
            limiter.wait(100).await;
        }
        let elapsed = begin.elapsed();
        assert!(elapsed + BURST >= Duration::from_secs(4), "{elapsed:?}");
        assert!(elapsed <= Duration::from_secs(4), "{elapsed:?}");
        assert_eq!([limiter.chunk_size(1 << 14), limiter.chunk_size(10)], [62, 10]);
    }
}

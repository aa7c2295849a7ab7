//! How fast bytes may pass: a token bucket, and who waits for it.
//!
//! What a rule allows per second is shared by all connections of a microVM that it allows, so that
//! opening more of them brings nothing. Bytes are paid for before they are passed on: whatever the
//! number of connections, no more gets out than the rate and one burst.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::policy::ByteRate;

/// How long an unused rate is saved up.
const BURST: Duration = Duration::from_millis(250);

/// A token bucket, as a pure function of the time given: instead of tokens it keeps the moment up
/// to which all that has passed is paid for.
#[derive(Debug)]
struct Bucket {
    rate: ByteRate,
    /// Since the bucket was made.
    paid_until: Duration,
}

impl Bucket {
    /// A full one.
    fn new(rate: ByteRate) -> Self {
        Self { rate, paid_until: Duration::ZERO }
    }

    /// Takes bytes at a moment. Returns how long they have to wait before they may pass.
    fn take(&mut self, now: Duration, bytes: u64) -> Duration {
        // Time counts from a burst before the bucket was made, so that it begins full.
        let now = now.saturating_add(BURST);
        let nanoseconds =
            u128::from(bytes) * 1_000_000_000 / u128::from(self.rate.per_second()) + 1;
        let cost = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        let begin = self.paid_until.max(now.saturating_sub(BURST));
        self.paid_until = begin.saturating_add(cost);
        self.paid_until.saturating_sub(now)
    }
}

/// The rate of one rule in one microVM.
#[derive(Debug)]
pub struct Pace {
    bucket: Mutex<Bucket>,
    begin: Instant,
}

impl Pace {
    /// A rate that nothing has been taken of.
    pub fn new(rate: ByteRate) -> Self {
        Self { bucket: Mutex::new(Bucket::new(rate)), begin: Instant::now() }
    }

    /// Takes bytes of it. Returns how long they have to wait before they may pass.
    pub fn take(&self, bytes: usize) -> Duration {
        // A bucket is whole between any two statements that could panic.
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.take(self.begin.elapsed(), bytes as u64)
    }

    /// Waits until bytes may pass.
    pub async fn pass(&self, bytes: usize) {
        let wait = self.take(bytes);
        if !wait.is_zero() {
            sleep(wait).await;
        }
    }

    /// How many bytes one connection should take at once, so that others have their turn: what
    /// passes in a quarter of a burst, `most` where that is more.
    pub fn share(&self, most: usize) -> usize {
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
        /// Each take is another connection's: they don't wait for each other.
        #[test]
        fn no_more_passes_in_any_time_than_rate_and_burst_allow(
            per_second in 1_000_u64..1_000_000_000,
            takes in prop::collection::vec((0_u64..400_000_000, 1_u64..1_000_000), 1..100),
        ) {
            let mut bucket = Bucket::new(rate(per_second));
            let mut now = Duration::ZERO;
            let mut passes = Vec::new();
            for (wait, bytes) in takes {
                now += Duration::from_nanos(wait);
                passes.push((now + bucket.take(now, bytes), bytes));
            }
            // A later take may not pass before an earlier one, so a window is a run of takes.
            prop_assert!(passes.windows(2).all(|pair| pair[0].0 <= pair[1].0));
            for first in 0..passes.len() {
                let mut sum = 0;
                for (at, bytes) in &passes[first..] {
                    sum += u128::from(*bytes);
                    let window = at.saturating_sub(passes[first].0) + BURST;
                    // The first of a window may have been waited for since before it.
                    let allowed = nanoseconds(window) * u128::from(per_second) / 1_000_000_000
                        + u128::from(passes[first].1);
                    prop_assert!(sum <= allowed, "{sum} of {allowed} in {window:?}");
                }
            }
        }

        #[test]
        fn what_comes_no_faster_than_the_rate_never_waits(
            per_second in 1_000_u64..1_000_000,
            sizes in prop::collection::vec(1_u64..1_000, 1..50),
        ) {
            let mut bucket = Bucket::new(rate(per_second));
            let mut now = Duration::ZERO;
            for bytes in sizes {
                let bytes = bytes.min(per_second / 8);
                prop_assert_eq!(bucket.take(now, bytes), Duration::ZERO);
                now += Duration::from_nanos(bytes * 1_000_000_000 / per_second + 2);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_takes_as_long_as_the_rate_says() {
        let pace = Pace::new(rate(1_000));
        let begin = Instant::now();
        for _ in 0..40 {
            pace.pass(100).await;
        }
        let elapsed = begin.elapsed();
        assert!(elapsed + BURST >= Duration::from_secs(4), "{elapsed:?}");
        assert!(elapsed <= Duration::from_secs(4), "{elapsed:?}");
        assert_eq!([pace.share(1 << 14), pace.share(10)], [62, 10]);
    }
}

//! Rate limits: a token bucket shared by the connections of a rule.
//!
//! All connections of a microVM under a rule share its rate, so opening more of them brings no more
//! bandwidth. Bytes are charged before they are forwarded: however many connections there are, no
//! more than the rate and one burst gets out.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::policy::ByteRate;
use mayfly_common::token_bucket::TokenBucket;

/// The rate limiter of one rule in one microVM.
#[derive(Debug)]
pub(super) struct RateLimiter {
    /// Each token pays for one byte.
    bucket: Mutex<TokenBucket>,
    per_second: u64,
    begin: Instant,
}

impl RateLimiter {
    /// Creates an unused rate limiter.
    pub(super) fn new(rate: ByteRate) -> Self {
        let per_second = rate.per_second();
        // An unused rate accumulates for a quarter of a second.
        let bucket = TokenBucket::new(per_second, per_second / 4);
        Self { bucket: Mutex::new(bucket), per_second, begin: Instant::now() }
    }

    /// Charges bytes. Returns how long they must wait before they may be forwarded.
    pub(super) fn take(&self, bytes: usize) -> Duration {
        // A bucket is consistent between any two statements that could panic.
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.take(self.begin.elapsed(), bytes as u64)
    }

    /// Charges bytes and waits until they may be forwarded.
    pub(super) async fn wait(&self, bytes: usize) {
        let wait = self.take(bytes);
        if !wait.is_zero() {
            sleep(wait).await;
        }
    }

    /// Returns how many bytes one connection should read at once, so that others get their turn: a
    /// quarter of a burst, at most `most`.
    pub(super) fn chunk_size(&self, most: usize) -> usize {
        let share = usize::try_from(self.per_second / 16).unwrap_or(usize::MAX);
        share.clamp(1, most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waiting_enforces_the_rate() {
        let limiter = RateLimiter::new("1000B/s".parse().unwrap());
        let begin = Instant::now();
        for _ in 0..40 {
            limiter.wait(100).await;
        }
        let elapsed = begin.elapsed();
        assert!(elapsed + Duration::from_millis(250) >= Duration::from_secs(4), "{elapsed:?}");
        assert!(elapsed <= Duration::from_secs(4), "{elapsed:?}");
        assert_eq!([limiter.chunk_size(1 << 14), limiter.chunk_size(10)], [62, 10]);
    }
}

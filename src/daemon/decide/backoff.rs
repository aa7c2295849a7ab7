//! Back-off after consecutive failures.

use std::time::Duration;

use super::Millis;
use mayfly_common::backoff::delay;

/// The wait after the first failure.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait. A repaired image is in use again after at most this time.
const LONGEST_WAIT: Duration = Duration::from_secs(5 * 60);

/// The number of consecutive failures, and when to try again. The wait doubles with each failure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
    until: Option<Millis>,
}

impl Backoff {
    /// Records a failure. Failures during the current wait count once, because their attempts began
    /// before it.
    pub fn record_failure(&mut self, now: Millis) {
        if self.until.is_some_and(|until| now < until) {
            return;
        }
        let wait = delay(self.failures, FIRST_WAIT, LONGEST_WAIT);
        self.failures = self.failures.saturating_add(1);
        self.until = Some(now + wait);
    }

    /// Resets the back-off after a success.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Returns when to try again; `None` if nothing failed.
    pub fn until(&self) -> Option<Millis> {
        self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_its_bound_and_a_success_forgets() {
        let mut backoff = Backoff::default();
        let mut now = Millis(0);
        let mut waits = Vec::new();
        for _ in 0..40 {
            backoff.record_failure(now);
            let until = backoff.until().unwrap();
            waits.push(until.since(now).as_secs());
            now = until;
        }
        assert_eq!(waits[..4], [1, 2, 4, 8]);
        assert_eq!(waits[39], 300);
        backoff.reset();
        assert_eq!(backoff.until(), None);
    }

    #[test]
    fn failures_of_one_batch_count_once() {
        let mut backoff = Backoff::default();
        for _ in 0..100 {
            backoff.record_failure(Millis(10));
        }
        assert_eq!(backoff.until(), Some(Millis(1010)));
    }
}

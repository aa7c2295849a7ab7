//! How long to wait after failures in a row.

use std::time::Duration;

use super::Millis;

/// The wait after the first failure.
const FIRST: Duration = Duration::from_secs(1);
/// The longest wait: an image that was mended serves again this soon.
const LONGEST: Duration = Duration::from_secs(5 * 60);

/// Failures in a row, and when to try again: the wait doubles with each failure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
    until: Option<Millis>,
}

impl Backoff {
    /// It failed. Failures of attempts that began before the last wait count once.
    pub fn failed(&mut self, now: Millis) {
        if self.until.is_some_and(|until| now < until) {
            return;
        }
        let wait = FIRST.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        self.failures = self.failures.saturating_add(1);
        self.until = Some(now + wait.min(LONGEST));
    }

    /// It worked.
    pub fn worked(&mut self) {
        *self = Self::default();
    }

    /// Not before this moment; `None` where nothing failed.
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
            backoff.failed(now);
            let until = backoff.until().unwrap();
            waits.push(until.since(now).as_secs());
            now = until;
        }
        assert_eq!(waits[..4], [1, 2, 4, 8]);
        assert_eq!(waits[39], 300);
        backoff.worked();
        assert_eq!(backoff.until(), None);
    }

    #[test]
    fn failures_of_one_batch_count_once() {
        let mut backoff = Backoff::default();
        for _ in 0..100 {
            backoff.failed(Millis(10));
        }
        assert_eq!(backoff.until(), Some(Millis(1010)));
    }
}

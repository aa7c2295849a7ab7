//! How much is recorded: a token bucket and a cap on bytes, pure functions of the time given.

use std::time::{Duration, Instant};

/// What may be recorded of one microVM: of what passes, and as much again of what is refused, so that
/// neither takes the other's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Lines per second in the long run.
    pub per_second: u32,
    /// Lines at once.
    pub burst: u32,
    /// Bytes in each file.
    pub bytes: u64,
}

impl Default for Rate {
    /// A build of thousands of downloads fits; a flood fills 32 MiB a file at most, beside what
    /// passes.
    fn default() -> Self {
        Self { per_second: 500, burst: 5_000, bytes: 32 << 20 }
    }
}

/// A token bucket.
#[derive(Debug)]
pub(super) struct Bucket {
    rate: Rate,
    /// What is left, in lines times a billion: `per_second` of these come back per nanosecond.
    left: u64,
    last: Instant,
}

const LINE: u64 = 1_000_000_000;

impl Bucket {
    pub(super) fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, left: u64::from(rate.burst) * LINE, last: now }
    }

    /// Whether a line may be written now.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let elapsed: Duration = now.saturating_duration_since(self.last);
        self.last = now;
        let nanoseconds = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        let back = nanoseconds.saturating_mul(u64::from(self.rate.per_second));
        self.left = self.left.saturating_add(back).min(u64::from(self.rate.burst) * LINE);
        let may = self.left >= LINE;
        if may {
            self.left -= LINE;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_more_lines_than_burst_and_rate_allow(
            per_second in 1_u32..1000,
            burst in 1_u32..100,
            waits in prop::collection::vec(0_u64..20_000_000, 1..300),
        ) {
            let start = Instant::now();
            let mut bucket = Bucket::new(Rate { per_second, burst, bytes: 0 }, start);
            let mut passed = 0_u64;
            let mut elapsed = 0_u64;
            for wait in waits {
                elapsed += wait;
                passed += u64::from(bucket.take(start + Duration::from_nanos(elapsed)));
                let allowed = u64::from(burst) + elapsed * u64::from(per_second) / LINE;
                prop_assert!(passed <= allowed, "{passed} of {allowed}");
            }
        }

        #[test]
        fn a_slow_trickle_is_recorded_in_full(count in 1_u32..100) {
            let start = Instant::now();
            let mut bucket = Bucket::new(Rate { per_second: 10, burst: 1, bytes: 0 }, start);
            for number in 0..count {
                prop_assert!(bucket.take(start + Duration::from_millis(100) * number));
            }
        }
    }
}

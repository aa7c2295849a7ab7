//! Limits on the record: a token bucket and a size limit, pure functions of time.

use std::time::{Duration, Instant};

/// The limits on a microVM's record, for allowed traffic and for verdicts without traffic
/// separately, so that neither displaces the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordLimits {
    /// Lines per second on average.
    pub per_second: u32,
    /// Lines in a burst.
    pub burst: u32,
    /// Bytes in each file.
    pub bytes: u64,
}

impl Default for RecordLimits {
    /// Enough for a build with thousands of downloads; a flood of refusals fills at most 32 MiB per
    /// file, beside allowed traffic.
    fn default() -> Self {
        Self { per_second: 500, burst: 5_000, bytes: 32 << 20 }
    }
}

/// A token bucket.
#[derive(Debug)]
pub(super) struct LineBucket {
    limits: RecordLimits,
    /// Remaining lines times a billion: `per_second` of these are added per nanosecond.
    remaining: u64,
    last: Instant,
}

const LINE: u64 = 1_000_000_000;

impl LineBucket {
    pub(super) fn new(limits: RecordLimits, now: Instant) -> Self {
        Self { limits, remaining: u64::from(limits.burst) * LINE, last: now }
    }

    /// Takes a token. Returns whether a line may be written now.
    pub(super) fn try_take(&mut self, now: Instant) -> bool {
        let elapsed: Duration = now.saturating_duration_since(self.last);
        self.last = now;
        let nanoseconds = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        let back = nanoseconds.saturating_mul(u64::from(self.limits.per_second));
        self.remaining =
            self.remaining.saturating_add(back).min(u64::from(self.limits.burst) * LINE);
        let is_allowed = self.remaining >= LINE;
        if is_allowed {
            self.remaining -= LINE;
        }
        is_allowed
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
            let mut bucket = LineBucket::new(RecordLimits { per_second, burst, bytes: 0 }, start);
            let mut passed = 0_u64;
            let mut elapsed = 0_u64;
            for wait in waits {
                elapsed += wait;
                passed += u64::from(bucket.try_take(start + Duration::from_nanos(elapsed)));
                let allowed = u64::from(burst) + elapsed * u64::from(per_second) / LINE;
                prop_assert!(passed <= allowed, "{passed} of {allowed}");
            }
        }

        #[test]
        fn a_slow_trickle_is_recorded_in_full(count in 1_u32..100) {
            let start = Instant::now();
            let limits = RecordLimits { per_second: 10, burst: 1, bytes: 0 };
            let mut bucket = LineBucket::new(limits, start);
            for number in 0..count {
                prop_assert!(bucket.try_take(start + Duration::from_millis(100) * number));
            }
        }
    }
}

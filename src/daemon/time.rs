//! The daemon's time: milliseconds of a monotonic clock.

use std::ops::Add;
use std::time::Duration;

use serde::Serialize;

/// A point in time: milliseconds since an origin that all times of one daemon share.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Millis(pub u64);

impl Millis {
    /// Returns the time from `earlier` to this time; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Millis {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        let time = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn additions_saturate() {
        assert_eq!(Millis(5) + Duration::MAX, Millis(u64::MAX));
        assert_eq!(Millis(5).since(Millis(7)), Duration::ZERO);
        assert_eq!((Millis(5) + Duration::from_secs(1)).since(Millis(5)), Duration::from_secs(1));
    }
}

//! Delays between attempts.

use std::time::Duration;

/// Returns the delay after a number of consecutive failures. It starts with `first` and doubles with
/// each failure up to `longest`.
pub fn delay(failures: u32, first: Duration, longest: Duration) -> Duration {
    first.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX)).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_doubles_up_to_its_limit() {
        let (first, longest) = (Duration::from_millis(200), Duration::from_secs(10));
        let delays = [0, 1, 2, 5, 6, 40, u32::MAX].map(|n| delay(n, first, longest).as_millis());
        assert_eq!(delays, [200, 400, 800, 6400, 10_000, 10_000, 10_000]);
    }
}

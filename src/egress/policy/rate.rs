//! Byte rates as written in settings: `10MB/s`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The units of a rate with their bytes: powers of 1000, and of 1024 with an `i`.
const UNITS: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1_000),
    ("B", 1),
];

/// The lowest rate that a rule may set, in bytes per second: below it, delayed bytes look like a
/// dead connection.
const MIN_RATE: u64 = 1_000;

/// Bytes per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub struct ByteRate(u64);

/// Why a rate is invalid.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RateError {
    /// The text is not a number with a unit.
    #[error("a rate must be a whole number with a unit from B/s to GiB/s, e.g. `10MB/s`")]
    Shape,
    /// The rate is below the minimum.
    #[error("a rate must be at least {MIN_RATE} B/s")]
    TooLow,
}

impl ByteRate {
    /// Returns the bytes per second; never 0.
    pub fn per_second(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteRate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let amount = text.strip_suffix("/s").ok_or(RateError::Shape)?;
        let digits = amount.trim_start_matches(|c: char| c.is_ascii_digit());
        let (number, unit) = amount.split_at(amount.len() - digits.len());
        let unit = UNITS.iter().find(|(name, _)| *name == unit.trim_start());
        let (_, size) = unit.ok_or(RateError::Shape)?;
        let number: u64 = number.parse().map_err(|_| RateError::Shape)?;
        match number.checked_mul(*size).ok_or(RateError::Shape)? {
            0..MIN_RATE => Err(RateError::TooLow),
            bytes => Ok(Self(bytes)),
        }
    }
}

impl fmt::Display for ByteRate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The last unit divides every rate.
        let (unit, size) =
            UNITS.iter().find(|(_, size)| self.0.is_multiple_of(*size)).unwrap_or(&("B", 1));
        write!(formatter, "{}{unit}/s", self.0 / size)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_rate_is_a_number_and_a_unit() {
        for (text, bytes) in [
            ("10MB/s", 10_000_000),
            ("10 MB/s", 10_000_000),
            ("1KB/s", 1_000),
            ("64KiB/s", 65_536),
            ("2GiB/s", 2 << 30),
            ("1500B/s", 1500),
        ] {
            assert_eq!(text.parse(), Ok(ByteRate(bytes)), "{text}");
        }
        for text in ["", "10", "10MB", "MB/s", "10Mb/s", "-1MB/s", "1.5MB/s", "10MB/min", "/s"] {
            assert_eq!(text.parse::<ByteRate>(), Err(RateError::Shape), "{text}");
        }
        assert_eq!("99999999999999999999GB/s".parse::<ByteRate>(), Err(RateError::Shape));
        assert_eq!("20000000000GB/s".parse::<ByteRate>(), Err(RateError::Shape));
        for text in ["0MB/s", "999B/s"] {
            assert_eq!(text.parse::<ByteRate>(), Err(RateError::TooLow), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_rate_round_trips_through_its_text(bytes in MIN_RATE..) {
            prop_assert_eq!(ByteRate(bytes).to_string().parse(), Ok(ByteRate(bytes)));
        }
    }
}

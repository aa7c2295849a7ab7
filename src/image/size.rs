//! Sizes in bytes as people write them: `512M`, `2G`.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use super::name::InvalidName;

/// A number of bytes. `K`, `M`, `G` and `T` are powers of 1024, as for QEMU and `truncate(1)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Size(pub u64);

const UNITS: [(&str, u64); 4] = [("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)];

impl FromStr for Size {
    type Err = InvalidName;

    fn from_str(value: &str) -> Result<Self, InvalidName> {
        let digits = value.trim_end_matches(|c: char| !c.is_ascii_digit());
        let factor = match &value[digits.len()..] {
            "" => Some(1),
            unit => UNITS
                .iter()
                .find(|(letter, _)| {
                    unit.strip_prefix(letter).is_some_and(|rest| matches!(rest, "" | "iB"))
                })
                .map(|(_, factor)| *factor),
        };
        let all_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        all_digits
            .then(|| digits.parse::<u64>().ok()?.checked_mul(factor?))
            .flatten()
            .map(Self)
            .ok_or_else(|| InvalidName {
                value: value.to_owned(),
                expected: "a size (`512M`, `2G`: powers of 1024)",
            })
    }
}

impl TryFrom<String> for Size {
    type Error = InvalidName;

    fn try_from(value: String) -> Result<Self, InvalidName> {
        value.parse()
    }
}

impl fmt::Display for Size {
    /// In the largest unit of which there is at least one, with one decimal: `54.9 MiB`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, factor)| self.0 >= *factor) {
            Some((letter, factor)) => {
                let tenths = u128::from(self.0) * 10 / u128::from(*factor);
                write!(formatter, "{}.{} {letter}iB", tenths / 10, tenths % 10)
            }
            None => write!(formatter, "{} B", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn units_are_powers_of_1024() {
        assert_eq!("2G".parse(), Ok(Size(2 << 30)));
        assert_eq!("512MiB".parse(), Ok(Size(512 << 20)));
        assert_eq!("7".parse(), Ok(Size(7)));
        for text in ["", "G", "-1", "+1", "1.5G", "2X", "2Gi", "1 G", "99999999999T"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_in_the_unit_that_fits() {
        assert_eq!(Size(1023).to_string(), "1023 B");
        assert_eq!(Size(57_575_096).to_string(), "54.9 MiB");
        assert_eq!(Size(1 << 30).to_string(), "1.0 GiB");
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "\\PC{0,20}") {
            let _ = text.parse::<Size>();
        }
    }
}

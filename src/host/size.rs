//! Sizes as people write them: `512M`, `2G`, `1.5G`. Units are binary, as usual for memory and
//! disks.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

/// A size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Size(pub u64);

/// The text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a size: write a number and a unit, e.g. 512M or 2G")]
pub struct InvalidSize(String);

const UNITS: [(char, u64); 4] = [('K', 1 << 10), ('M', 1 << 20), ('G', 1 << 30), ('T', 1 << 40)];

impl Size {
    /// Returns a size in mebibytes.
    pub const fn mebibytes(count: u64) -> Self {
        Self(count << 20)
    }

    /// Returns a size in gibibytes.
    pub const fn gibibytes(count: u64) -> Self {
        Self(count << 30)
    }
}

impl FromStr for Size {
    type Err = InvalidSize;

    fn from_str(text: &str) -> Result<Self, InvalidSize> {
        let invalid = || InvalidSize(text.to_owned());
        let upper = text.trim().to_ascii_uppercase();
        let plain = upper.strip_suffix("IB").or(upper.strip_suffix('B')).unwrap_or(&upper);
        let unit = UNITS.iter().find(|(letter, _)| plain.ends_with(*letter));
        let (number, factor) = match unit {
            Some((letter, factor)) => (plain.trim_end_matches(*letter).trim_end(), *factor),
            None => (plain, 1),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.len() > 3 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(invalid());
        }
        let whole: u64 = whole.parse().map_err(|_| invalid())?;
        let thousandths: u64 = format!("{fraction:0<3}").parse().map_err(|_| invalid())?;
        let bytes = whole
            .checked_mul(factor)
            .and_then(|bytes| bytes.checked_add(thousandths * factor / 1000))
            .ok_or_else(invalid)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Size {
    /// Formats the size in the largest fitting unit, with one decimal if needed.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS.iter().rev().find(|(_, factor)| self.0 >= *factor);
        let Some((letter, factor)) = unit else { return write!(formatter, "{} B", self.0) };
        let (whole, rest) = (self.0 / factor, self.0 % factor);
        match rest * 10 / factor {
            0 => write!(formatter, "{whole} {letter}iB"),
            tenth => write!(formatter, "{whole}.{tenth} {letter}iB"),
        }
    }
}

impl<'de> Deserialize<'de> for Size {
    /// Accepts a text with a unit or a number of bytes; binary formats have the number only.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum SizeValue {
            Bytes(u64),
            Text(String),
        }
        if !deserializer.is_human_readable() {
            return u64::deserialize(deserializer).map(Self);
        }
        match SizeValue::deserialize(deserializer)? {
            SizeValue::Bytes(bytes) => Ok(Self(bytes)),
            SizeValue::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_parsed_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512M", 512 << 20),
            ("512 MiB", 512 << 20),
            ("2g", 2 << 30),
            ("1.5G", 3 << 29),
            ("1T", 1 << 40),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn an_invalid_size_is_reported_with_its_text() {
        for text in ["", "G", "-1G", "1.2.3G", "1e9", "lots", "99999999999999T", "1.2345G"] {
            let error = text.parse::<Size>().unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn a_size_is_shown_in_the_fitting_unit() {
        assert_eq!(Size(512).to_string(), "512 B");
        assert_eq!(Size::mebibytes(1536).to_string(), "1.5 GiB");
        assert_eq!(Size::gibibytes(2).to_string(), "2 GiB");
    }
}

//! Host patterns: a name, `*.` and a suffix, or `*` alone; `[0-9]*` in a name matches digits.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::host::{HostError, HostName};

/// A pattern for host names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub enum Pattern {
    /// Exactly one name.
    Exact(HostName),
    /// `*.suffix`: one or more labels, then the suffix. Does not match the suffix itself.
    Below(HostName),
    /// `before[0-9]*after`: one or more decimal digits between the two parts.
    Digits {
        /// The part before the digits; does not end with a digit.
        before: String,
        /// The part after the digits; does not begin with a digit.
        after: String,
    },
    /// `*`: any name.
    Any,
}

/// The syntax for "one or more digits".
const DIGITS: &str = "[0-9]*";

/// Why text is not a valid pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// A `*` anywhere but as the whole leftmost part.
    #[error("`*` is allowed only as the leftmost part, as in `*.example.com`")]
    Star,
    /// `[0-9]*` next to a digit, or more than once.
    #[error("`[0-9]*` is allowed once in a name, not next to a digit")]
    Digits,
    /// An address: rules match names only.
    #[error(
        "rules match names, not addresses; name the address under `resolve` and allow the name"
    )]
    Address,
    /// The part without the star is not a valid name.
    #[error(transparent)]
    Host(#[from] HostError),
}

impl Pattern {
    /// Parses a pattern as a person writes it, in Unicode and any case.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        if text == "*" {
            return Ok(Self::Any);
        }
        if let Some((before, after)) = text.split_once(DIGITS) {
            return Self::parse_digits(before, after);
        }
        let (suffix, below) =
            text.strip_prefix("*.").map_or((text, false), |suffix| (suffix, true));
        if suffix.contains('*') {
            return Err(PatternError::Star);
        }
        if suffix.contains(':') || suffix.parse::<std::net::IpAddr>().is_ok() {
            return Err(PatternError::Address);
        }
        let name = HostName::parse_unicode(suffix)?;
        Ok(if below { Self::Below(name) } else { Self::Exact(name) })
    }

    fn parse_digits(before: &str, after: &str) -> Result<Self, PatternError> {
        let beside = [before.bytes().next_back(), after.bytes().next()];
        if beside.into_iter().flatten().any(|byte| byte.is_ascii_digit()) || after.contains(DIGITS)
        {
            return Err(PatternError::Digits);
        }
        if before.contains('*') || after.contains('*') {
            return Err(PatternError::Star);
        }
        // Parsing the name with one digit in place of the pattern validates the rest and normalizes
        // it. Unicode would shift the part before the digits, so it is refused.
        if !before.is_ascii() || !after.is_ascii() {
            return Err(PatternError::Digits);
        }
        let name = HostName::parse_unicode(&format!("{before}0{after}"))?;
        let (before, after) = name.as_str().split_at(before.len());
        Ok(Self::Digits { before: before.to_owned(), after: after[1..].to_owned() })
    }

    /// Returns whether the name matches.
    pub fn matches(&self, name: &HostName) -> bool {
        match self {
            Self::Exact(exact) => exact == name,
            // A canonical name has no empty label, so at least one label precedes the dot.
            Self::Below(suffix) => name
                .as_str()
                .strip_suffix(suffix.as_str())
                .is_some_and(|labels| labels.ends_with('.')),
            Self::Digits { before, after } => name
                .as_str()
                .strip_prefix(before.as_str())
                .and_then(|rest| rest.strip_suffix(after.as_str()))
                .is_some_and(|digits| {
                    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
                }),
            Self::Any => true,
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => name.fmt(formatter),
            Self::Below(suffix) => write!(formatter, "*.{suffix}"),
            Self::Digits { before, after } => write!(formatter, "{before}{DIGITS}{after}"),
            Self::Any => formatter.write_str("*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        Pattern::parse(pattern).unwrap().matches(&HostName::parse(name).unwrap())
    }

    #[test]
    fn a_star_matches_one_or_more_leftmost_labels() {
        assert!(matches("*.example.com", "a.example.com"));
        assert!(matches("*.example.com", "a.b.example.com."));
        assert!(matches("*.Example.com.", "A.EXAMPLE.COM"));
        assert!(!matches("*.example.com", "example.com"));
        assert!(!matches("*.example.com", "badexample.com"));
        assert!(!matches("*.example.com", "example.com.evil.test"));
        assert!(!matches("example.com", "a.example.com"));
        assert!(matches("*", "anything.test"));
    }

    #[test]
    fn a_homograph_is_another_name() {
        assert!(!matches("github.com", "xn--gthub-cza.com"));
        assert!(matches("bücher.example", "xn--bcher-kva.example"));
        assert!(matches("*.bücher.example", "a.xn--bcher-kva.example"));
    }

    #[test]
    fn the_digit_pattern_matches_only_digits() {
        let pattern = "productionresultssa[0-9]*.blob.core.windows.net";
        for name in ["0", "7", "19", "20", "007"] {
            let name = format!("ProductionResultsSA{name}.blob.core.windows.net.");
            assert!(matches(pattern, &name), "{name}");
        }
        for name in [
            "productionresultssa.blob.core.windows.net",
            "productionresultssa1x.blob.core.windows.net",
            "productionresultssax1.blob.core.windows.net",
            "productionresultssa1-2.blob.core.windows.net",
            "productionresultssa1.2.blob.core.windows.net",
            "productionresultssa1.x.blob.core.windows.net",
            "xproductionresultssa1.blob.core.windows.net",
            "x.productionresultssa1.blob.core.windows.net",
            "productionresultssa1.blob.core.windows.net.example.org",
            "productionresultssa1.blob.core.windows.netx",
            "productionresultssa1xblob.core.windows.net",
            "productionresultssa1",
            "attacker.blob.core.windows.net",
            "1.blob.core.windows.net",
        ] {
            assert!(!matches(pattern, name), "{name}");
        }
        assert!(matches("[0-9]*.example.com", "12.example.com"));
        assert!(!matches("[0-9]*.example.com", "a.12.example.com"));
        assert!(matches("a[0-9]*b.example.com", "a1b.example.com"));
        // The parts before and after the digits may not overlap.
        assert!(!matches("aa[0-9]*aa.test", "aaa.test"));
    }

    #[test]
    fn invalid_patterns_are_rejected_with_the_reason() {
        for (text, error) in [
            ("a.*.com", PatternError::Star),
            ("*a.com", PatternError::Star),
            ("**.com", PatternError::Star),
            ("*.a[0-9]*.com", PatternError::Star),
            ("a[0-9]*.*.com", PatternError::Star),
            ("a[0-9]*[0-9]*.com", PatternError::Digits),
            ("a[0-9]*b[0-9]*.com", PatternError::Digits),
            ("a1[0-9]*.com", PatternError::Digits),
            ("a[0-9]*1.com", PatternError::Digits),
            ("ü[0-9]*.com", PatternError::Digits),
            ("a[0-9].com", PatternError::Host(HostError::Character('['))),
            ("a[a-z]*.com", PatternError::Star),
            ("10.0.0.[0-9]*", PatternError::Host(HostError::AddressSpelling)),
            ("a.[0-9]*", PatternError::Host(HostError::AddressSpelling)),
            ("*.*.com", PatternError::Star),
            ("10.0.0.1", PatternError::Address),
            ("*.10.0.0.1", PatternError::Address),
            ("::1", PatternError::Address),
            ("example.com:443", PatternError::Address),
            ("", PatternError::Host(HostError::Empty)),
            ("*.", PatternError::Host(HostError::Empty)),
            ("https//x", PatternError::Host(HostError::Character('/'))),
            ("0x7f000001", PatternError::Host(HostError::AddressSpelling)),
        ] {
            assert_eq!(Pattern::parse(text), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_suffix_matches_exactly_the_names_below_it(
            labels in prop::collection::vec("[a-z][a-z0-9-]{0,5}", 1..5), cut in 0_usize..5
        ) {
            let name = HostName::parse(&labels.join(".")).unwrap();
            let cut = cut.min(labels.len() - 1);
            let pattern = Pattern::Below(HostName::parse(&labels[cut..].join(".")).unwrap());
            prop_assert_eq!(pattern.matches(&name), cut > 0);
        }

        #[test]
        fn a_pattern_round_trips(text in "(\\*\\.)?[a-z]{1,8}(\\.[a-z]{1,8}){0,3}") {
            let pattern = Pattern::parse(&text).unwrap();
            prop_assert_eq!(Pattern::parse(&pattern.to_string()), Ok(pattern));
        }
    }
}

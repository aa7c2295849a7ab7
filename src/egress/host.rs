//! Destinations as named by guests and policies: a DNS name or an IP address, in canonical form.
//!
//! Every spelling that some resolver accepts as an address (`2130706433`, `0x7f.1`, `127.1`,
//! `0177.0.0.1`, `127.0.0.1.`) is rejected rather than treated as a name, so that the decision and
//! the dialed address can't differ.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Maximum length of a DNS name in text form, without the trailing dot (RFC 1035, section 2.3.4).
pub const MAX_NAME: usize = 253;

/// Maximum length of a label of a DNS name (RFC 1035, section 2.3.4).
const MAX_LABEL: usize = 63;

/// Why text is not a valid host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// The text is empty.
    #[error("the host is empty")]
    Empty,
    /// More than [`MAX_NAME`] bytes.
    #[error("the host has more than {MAX_NAME} characters")]
    TooLong,
    /// A label is empty or longer than 63 bytes.
    #[error("each part between the dots must have 1 to {MAX_LABEL} characters")]
    Label,
    /// A character that is invalid in host names, e.g. of user info, a path or a zone.
    #[error("a host name must not contain {0:?}")]
    Character(char),
    /// A number in place of a name: an address in a noncanonical spelling.
    #[error("an address must be written as four decimal numbers, or in IPv6 notation in brackets")]
    AddressSpelling,
    /// The Unicode name has no ASCII form.
    #[error("the name is not a valid internationalized domain name")]
    Idna,
    /// The port is missing or not a number from 1 to 65535.
    #[error("the port must be a number from 1 to 65535")]
    Port,
}

/// A DNS name in canonical form: ASCII, lower case, no trailing dot.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostName(Arc<str>);

impl HostName {
    /// Parses a name as received over the network: ASCII in any case, optionally with a trailing
    /// dot.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.is_empty() {
            return Err(HostError::Empty);
        }
        if let Some(odd) = name.chars().find(|c| !is_name_character(*c)) {
            return Err(HostError::Character(odd));
        }
        if name.len() > MAX_NAME {
            return Err(HostError::TooLong);
        }
        if name.split('.').any(|label| label.is_empty() || label.len() > MAX_LABEL) {
            return Err(HostError::Label);
        }
        if ends_in_number(name) {
            return Err(HostError::AddressSpelling);
        }
        Ok(Self(name.to_ascii_lowercase().into()))
    }

    /// Parses a name as written in a policy: Unicode is converted to its ASCII form.
    pub fn parse_unicode(text: &str) -> Result<Self, HostError> {
        if text.is_ascii() {
            let name = Self::parse(text)?;
            // A-labels that decode to invalid text can never match.
            idna::domain_to_ascii(name.as_str()).map_err(|_| HostError::Idna)?;
            return Ok(name);
        }
        let ascii = idna::domain_to_ascii(text).map_err(|_| HostError::Idna)?;
        Self::parse(&ascii)
    }

    /// Returns the name, in lower case and without a trailing dot.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for HostName {
    type Error = HostError;

    fn try_from(text: String) -> Result<Self, HostError> {
        Self::parse(&text)
    }
}

impl From<HostName> for String {
    fn from(name: HostName) -> Self {
        name.as_str().to_owned()
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, formatter)
    }
}

/// A destination without its port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
pub enum Host {
    /// A name; the rules decide on it.
    Name(HostName),
    /// An address that the guest named itself.
    Address(IpAddr),
}

impl Host {
    /// Parses a host as received over the network; IPv6 only in brackets, as in an authority.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        if let Some(inner) = text.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or(HostError::AddressSpelling)?;
            let address: Ipv6Addr = inner.parse().map_err(|_| HostError::AddressSpelling)?;
            return Ok(Self::Address(address.into()));
        }
        // The standard library's parser accepts only four decimal numbers without leading zeros.
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Ok(Self::Address(address.into()));
        }
        HostName::parse(text).map(Self::Name)
    }

    /// Parses `HOST:PORT`; without a port, uses `default_port` if given.
    pub fn parse_with_port(
        text: &str,
        default_port: Option<u16>,
    ) -> Result<(Self, u16), HostError> {
        // Within brackets the colons belong to the address.
        let after_brackets = text.rfind(']').unwrap_or(0);
        match text[after_brackets..].rfind(':') {
            None => Ok((Self::parse(text)?, default_port.ok_or(HostError::Port)?)),
            Some(offset) => {
                let (host, port) = text.split_at(after_brackets + offset);
                Ok((Self::parse(host)?, parse_port(&port[1..])?))
            }
        }
    }

    /// Returns the name, if it is one.
    pub fn name(&self) -> Option<&HostName> {
        match self {
            Self::Name(name) => Some(name),
            Self::Address(_) => None,
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(formatter),
            Self::Address(IpAddr::V4(address)) => address.fmt(formatter),
            Self::Address(IpAddr::V6(address)) => write!(formatter, "[{address}]"),
        }
    }
}

/// Parses a port from digits only: `parse` alone would also accept `+443`.
fn parse_port(text: &str) -> Result<u16, HostError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(HostError::Port);
    }
    text.parse().ok().filter(|port| *port != 0).ok_or(HostError::Port)
}

/// Letters, digits, hyphen, dot; and the underscore, which is in use (S3, SRV).
fn is_name_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_')
}

/// Returns whether the last label is a number in any base that `inet_aton(3)` accepts, as the URL
/// standard detects IPv4 addresses. No top-level domain is one.
fn ends_in_number(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    let decimal = last.bytes().all(|byte| byte.is_ascii_digit());
    let hexadecimal = last
        .strip_prefix("0x")
        .or_else(|| last.strip_prefix("0X"))
        .is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    decimal || hexadecimal
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn case_and_the_trailing_dot_do_not_matter() {
        assert_eq!(HostName::parse("GitHub.COM."), HostName::parse("github.com"));
        assert_eq!(HostName::parse("GitHub.COM.").unwrap().as_str(), "github.com");
    }

    #[test]
    fn noncanonical_address_spellings_are_rejected() {
        for spelling in [
            "2852039166",
            "0xA9FEA9FE",
            "0xa9.0xfe.0xa9.0xfe",
            "0251.0376.0251.0376",
            "169.254.43518",
            "127.1",
            "127.0.0.1.",
            "127.0.0.01",
            "0",
            "0x",
            "1.2.3.4.5",
            "256.1.1.1",
            "example.0x7f",
        ] {
            assert_eq!(Host::parse(spelling), Err(HostError::AddressSpelling), "{spelling}");
        }
        for spelling in ["[::1", "[fe80::1%eth0]", "[127.0.0.1]", "[]", "[::1]]"] {
            assert_eq!(Host::parse(spelling), Err(HostError::AddressSpelling), "{spelling}");
        }
        assert!(matches!(Host::parse("::1"), Err(HostError::Character(':'))));
    }

    #[test]
    fn invalid_hosts_are_rejected_with_the_reason() {
        let long = format!("{}.com", "a.".repeat(126));
        for (text, error) in [
            ("", HostError::Empty),
            (".", HostError::Empty),
            ("a..b", HostError::Label),
            (".a", HostError::Label),
            ("a..", HostError::Label),
            ("user@example.com", HostError::Character('@')),
            ("example.com/path", HostError::Character('/')),
            ("exa mple.com", HostError::Character(' ')),
            ("example.com\0", HostError::Character('\0')),
            ("g\u{456}thub.com", HostError::Character('\u{456}')),
            ("%65xample.com", HostError::Character('%')),
            (&long, HostError::TooLong),
            (&format!("{}.com", "a".repeat(64)), HostError::Label),
        ] {
            assert_eq!(Host::parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn written_names_become_ascii() {
        assert_eq!(
            HostName::parse_unicode("Bücher.example").unwrap().as_str(),
            "xn--bcher-kva.example"
        );
        assert_eq!(HostName::parse_unicode("faß.example").unwrap().as_str(), "xn--fa-hia.example");
        assert_eq!(HostName::parse_unicode("xn--a.example"), Err(HostError::Idna));
        assert_eq!(HostName::parse_unicode("a b.example"), Err(HostError::Character(' ')));
    }

    #[test]
    fn a_port_is_a_number_of_digits() {
        assert_eq!(
            Host::parse_with_port("a.example:22", None).unwrap(),
            (Host::parse("a.example").unwrap(), 22)
        );
        assert_eq!(Host::parse_with_port("a.example", Some(80)).unwrap().1, 80);
        assert_eq!(
            Host::parse_with_port("[2001:db8::1]:443", None).unwrap().0.to_string(),
            "[2001:db8::1]"
        );
        for text in ["a:", "a:0", "a:+1", "a:65536", "a: 1", "a", "[::1]"] {
            assert_eq!(Host::parse_with_port(text, None), Err(HostError::Port), "{text}");
        }
        assert!(Host::parse_with_port("user:pass@a:1", None).is_err());
        assert!(Host::parse_with_port("[::1]x:1", None).is_err());
    }

    proptest! {
        #[test]
        fn a_host_round_trips_through_its_text(text in "\\PC{0,40}") {
            if let Ok(host) = Host::parse(&text) {
                prop_assert_eq!(Host::parse(&host.to_string()), Ok(host));
            }
        }

        #[test]
        fn no_text_breaks_the_parser(text in any::<String>()) {
            let _ = Host::parse_with_port(&text, Some(443));
            let _ = HostName::parse_unicode(&text);
        }

        #[test]
        fn an_address_as_a_number_is_never_a_name(number in any::<u32>()) {
            for text in [format!("{number}"), format!("{number:#x}"), format!("0{number:o}")] {
                prop_assert!(Host::parse(&text).is_err());
            }
        }
    }
}

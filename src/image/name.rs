//! Names, digests and references of images.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Malformed text, with a description of the expected form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{value}` is not {expected}")]
pub struct InvalidName {
    /// The text.
    pub value: String,
    /// The expected form.
    pub expected: &'static str,
}

/// The name of an image: a lower-case letter or digit, then letters, digits, `.`, `_` and `-`, 64
/// at most. Never `latest`, which is the link to the current build.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageName(String);

impl ImageName {
    /// Returns the name as text. It is safe to use as a file name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ImageName {
    type Err = InvalidName;

    fn from_str(value: &str) -> Result<Self, InvalidName> {
        let first = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let rest = |byte: u8| first(byte) || matches!(byte, b'.' | b'_' | b'-');
        let valid = value.len() <= 64
            && value.bytes().next().is_some_and(first)
            && value.bytes().all(rest)
            && value != LATEST;
        if valid {
            Ok(Self(value.to_owned()))
        } else {
            Err(InvalidName {
                value: value.to_owned(),
                expected: "an image name (lower-case letters, digits, `.`, `_`, `-`)",
            })
        }
    }
}

impl TryFrom<String> for ImageName {
    type Error = InvalidName;

    fn try_from(value: String) -> Result<Self, InvalidName> {
        value.parse()
    }
}

impl From<ImageName> for String {
    fn from(name: ImageName) -> Self {
        name.0
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The symbolic link to the current build of a name.
pub(super) const LATEST: &str = "latest";

/// The symbolic link to the build that was current before.
pub(super) const PREVIOUS: &str = "previous";

/// A SHA-256, as 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// Converts the 32 bytes of a SHA-256.
    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        use fmt::Write;
        let mut text = String::with_capacity(bytes.len() * 2);
        for byte in bytes {
            // Writing to a string can't fail.
            let _ = write!(text, "{byte:02x}");
        }
        Self(text)
    }

    /// Returns all 64 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the first 12 digits, enough for a person to tell builds apart.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

fn is_hexadecimal(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl TryFrom<String> for Digest {
    type Error = InvalidName;

    fn try_from(value: String) -> Result<Self, InvalidName> {
        if value.len() == 64 && is_hexadecimal(&value) {
            Ok(Self(value))
        } else {
            Err(InvalidName { value, expected: "a SHA-256 (64 lower-case hexadecimal digits)" })
        }
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A reference to an image: `NAME` for the current build, or `NAME@DIGEST-PREFIX` for a specific
/// one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The image's name.
    pub name: ImageName,
    /// The first digits of the build's digest; `None` for the current build.
    pub digest_prefix: Option<String>,
}

impl Reference {
    /// Returns a reference to exactly one build.
    pub fn exactly(name: &ImageName, digest: &Digest) -> Self {
        Self { name: name.clone(), digest_prefix: Some(digest.as_str().to_owned()) }
    }
}

impl FromStr for Reference {
    type Err = InvalidName;

    fn from_str(value: &str) -> Result<Self, InvalidName> {
        let Some((name, prefix)) = value.split_once('@') else {
            return Ok(Self { name: value.parse()?, digest_prefix: None });
        };
        if prefix.is_empty() || prefix.len() > 64 || !is_hexadecimal(prefix) {
            return Err(InvalidName {
                value: value.to_owned(),
                expected: "a reference to an image (NAME or NAME@DIGEST-PREFIX)",
            });
        }
        Ok(Self { name: name.parse()?, digest_prefix: Some(prefix.to_owned()) })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.digest_prefix {
            Some(prefix) => write!(formatter, "{}@{prefix}", self.name),
            None => write!(formatter, "{}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_that_are_not_plain_file_names_are_rejected() {
        for name in ["", ".", "..", ".hidden", "a/b", "latest", "Upper", "ä", "a b", "-x", "a\0"] {
            assert!(name.parse::<ImageName>().is_err(), "{name:?}");
        }
        assert!("x".repeat(65).parse::<ImageName>().is_err());
    }

    #[test]
    fn a_reference_may_name_a_build() {
        let reference: Reference = "base@0a1b".parse().unwrap();
        assert_eq!(reference.name.as_str(), "base");
        assert_eq!(reference.digest_prefix.as_deref(), Some("0a1b"));
        for text in ["base@", "base@XY", "@12", "base@../..", "base@1@2"] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn references_display_as_written(text in "[a-z0-9][a-z0-9._-]{0,20}(@[0-9a-f]{1,64})?") {
            prop_assume!(!text.starts_with("latest"));
            prop_assert_eq!(text.parse::<Reference>().unwrap().to_string(), text);
        }

        #[test]
        fn a_name_is_one_path_component(text in "\\PC{0,70}") {
            if let Ok(name) = text.parse::<ImageName>() {
                let path = std::path::Path::new(name.as_str());
                prop_assert_eq!(path.file_name(), Some(path.as_os_str()));
            }
        }
    }
}

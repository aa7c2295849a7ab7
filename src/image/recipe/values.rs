//! Validated strings of a recipe, each checked when it is read.

use std::fmt;

use serde::Deserialize;

use crate::name::InvalidName;

/// Defines a string type whose values pass a check.
macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident, $expected:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(String);

        impl $name {
            /// Returns the text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(value: String) -> Result<Self, InvalidName> {
                let check: fn(&str) -> bool = $check;
                if check(&value) {
                    Ok(Self(value))
                } else {
                    Err(InvalidName { value, expected: $expected })
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    };
}

checked_text! {
    /// A package name per Debian policy 5.6.1, optionally with an architecture (`:i386`) or a
    /// version (`=1.2-3`).
    PackageName,
    "a package's name (lower-case letters, digits, `+`, `-`, `.`)",
    |text| {
        let (text, version) = text.split_once('=').unwrap_or((text, "0"));
        let (name, architecture) = text.split_once(':').unwrap_or((text, "any"));
        name.len() >= 2
            && starts_with(name, |byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
            && name
                .bytes()
                .all(|byte| is_lower_or_digit(byte) || matches!(byte, b'+' | b'-' | b'.'))
            && !architecture.is_empty()
            && architecture.bytes().all(|byte| is_lower_or_digit(byte) || byte == b'-')
            && !version.is_empty()
            && version.bytes().all(|byte| {
                byte.is_ascii_alphanumeric() || b".+-~:".contains(&byte)
            })
    }
}

checked_text! {
    /// A release of the distribution.
    Suite,
    "a release's name (lower-case letters, digits, `-`, `.`)",
    |text| {
        starts_with(text, |byte| byte.is_ascii_lowercase())
            && text.bytes().all(|byte| is_lower_or_digit(byte) || matches!(byte, b'-' | b'.'))
    }
}

checked_text! {
    /// A user or group, as `useradd(8)` recommends.
    UserName,
    "a user's or group's name (a lower-case letter or `_`, then also digits and `-`; 32 at most)",
    |text| {
        text.len() <= 32
            && starts_with(text, |byte| byte.is_ascii_lowercase() || byte == b'_')
            && text.bytes().all(|byte| is_lower_or_digit(byte) || matches!(byte, b'_' | b'-'))
    }
}

checked_text! {
    /// A kernel module.
    ModuleName,
    "a kernel module's name (letters, digits, `_`, `-`)",
    |text| {
        !text.is_empty()
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
    }
}

checked_text! {
    /// One argument of the kernel's command line.
    KernelArgument,
    "one kernel argument (printable, without spaces and quotes)",
    |text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"')
}

checked_text! {
    /// An absolute path in the guest: no `.` or `..`, no `:`, no control characters.
    AbsolutePath,
    "an absolute path without `.`, `..`, `//`, `:` and control characters",
    |text| {
        text.len() > 1
            && text.strip_prefix('/').is_some_and(|rest| {
                rest.split('/').all(|part| !matches!(part, "" | "." | ".."))
            })
            && !text.chars().any(|c| c.is_control() || c == ':')
    }
}

checked_text! {
    /// The URI of a package mirror. It becomes part of the image, so it can't contain a password.
    Uri,
    "a URI without spaces, user name and password (put those into apt's auth.conf)",
    |text| {
        text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'@')
            && text.split_once(":/").is_some_and(|(scheme, rest)| {
                starts_with(scheme, |byte| byte.is_ascii_lowercase())
                    && scheme.bytes().all(|byte| is_lower_or_digit(byte) || byte == b'+')
                    && rest.len() > 1
            })
    }
}

checked_text! {
    /// The URL of a download. It becomes part of the manifest, so it can't contain a password.
    Url,
    "an http or https address without spaces, user name and password",
    |text| {
        let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        rest.is_some_and(|rest| {
            starts_with(rest, |byte| byte.is_ascii_alphanumeric() || byte == b'[')
                && rest.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'@')
        })
    }
}

checked_text! {
    /// A name or version of something other than a package.
    NameOrVersion,
    "a name or version (letters, digits, `.`, `_`, `+`, `-`; 64 at most)",
    |text| {
        text.len() <= 64
            && starts_with(text, |byte| byte.is_ascii_alphanumeric())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._+-".contains(&byte))
    }
}

impl UserName {
    /// The default user of GitHub's runner.
    pub(super) fn default_of_runner() -> Self {
        Self("runner".to_owned())
    }
}

impl AbsolutePath {
    /// The default directory of GitHub's runner.
    pub(super) fn default_of_runner() -> Self {
        Self("/home/runner/actions-runner".to_owned())
    }

    /// Returns whether it is inside a directory, at any depth.
    pub fn is_below(&self, directory: &Self) -> bool {
        self.0.strip_prefix(&directory.0).is_some_and(|rest| rest.starts_with('/'))
    }
}

fn is_lower_or_digit(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn starts_with(text: &str, with: fn(u8) -> bool) -> bool {
    text.bytes().next().is_some_and(with)
}

/// Permissions of a file, in octal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct FileMode(pub u32);

impl Default for FileMode {
    /// Readable by all, writable by its owner.
    fn default() -> Self {
        Self(0o644)
    }
}

impl TryFrom<String> for FileMode {
    type Error = InvalidName;

    fn try_from(value: String) -> Result<Self, InvalidName> {
        let octal = value.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
        match u32::from_str_radix(&value, 8) {
            Ok(mode) if octal && mode <= 0o7777 => Ok(Self(mode)),
            _ => Err(InvalidName { value, expected: "permissions in octal (`\"0644\"`)" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn accepts<T: TryFrom<String>>(text: &str) -> bool {
        T::try_from(text.to_owned()).is_ok()
    }

    #[test]
    fn values_that_look_like_options_are_rejected() {
        for text in ["-x", "--x=y", ""] {
            assert!(!accepts::<PackageName>(text), "{text}");
            assert!(!accepts::<Suite>(text), "{text}");
            assert!(!accepts::<UserName>(text), "{text}");
            assert!(!accepts::<AbsolutePath>(text), "{text}");
            assert!(!accepts::<Uri>(text), "{text}");
        }
    }

    #[test]
    fn packages_may_have_an_architecture_or_a_version() {
        for text in ["git", "g++", "libc6:amd64", "curl=8.14.1-2+deb13u2", "lib2.0-dev"] {
            assert!(accepts::<PackageName>(text), "{text}");
        }
        for text in ["a", "Git", "git curl", "git,curl", "?essential", "~n", "git/sid", "git="] {
            assert!(!accepts::<PackageName>(text), "{text}");
        }
    }

    #[test]
    fn a_path_stays_below_the_root() {
        assert!(accepts::<AbsolutePath>("/etc/apt/apt.conf.d/10 x"));
        for text in ["/", "etc", "/../x", "/a/./b", "/a//b", "/a/", "/a\nb", "/a:b"] {
            assert!(!accepts::<AbsolutePath>(text), "{text}");
        }
    }

    #[test]
    fn a_uri_holds_no_password() {
        assert!(accepts::<Uri>("https://packages.example.com/debian"));
        assert!(accepts::<Uri>("file:/srv/debian"));
        assert!(!accepts::<Uri>("https://user:secret@packages.example.com/debian"));
        assert!(!accepts::<Uri>("deb https://packages.example.com/debian trixie main"));
    }

    #[test]
    fn a_download_url_is_http_or_https_without_a_password() {
        assert!(accepts::<Url>("https://downloads.example.com/tool?x=1"));
        assert!(accepts::<Url>("http://[::1]:8080/tool"));
        for text in ["ftp://a/b", "file:///etc/passwd", "https://", "https://u:p@a/b", "/x"] {
            assert!(!accepts::<Url>(text), "{text}");
        }
    }

    #[test]
    fn permissions_are_octal() {
        assert_eq!(FileMode::try_from("0755".to_owned()), Ok(FileMode(0o755)));
        for text in ["", "0x1", "+644", "8", "17777"] {
            assert!(!accepts::<FileMode>(text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_value_can_break_out_of_a_line_of_fields(text in "\\PC*|[a-z:\\n\\t /.]{0,20}") {
            let ends_field = |c: char| c == '\n' || c == ':';
            if text.contains(ends_field) {
                prop_assert!(!accepts::<UserName>(&text) && !accepts::<AbsolutePath>(&text));
            }
        }
    }
}

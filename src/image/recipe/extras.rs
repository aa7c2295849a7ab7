//! What a recipe takes from elsewhere than the distribution: GitHub's runner, pinned downloads, and
//! scripts of its own.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;

use super::values::{AbsolutePath, Mode, Url, UserName, Word};
use crate::image::name::{Digest, InvalidName};

/// GitHub's runner: from a local `archive`, or downloaded.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runner {
    /// Which version. With an archive, what the runner in it must say it is.
    pub version: Option<RunnerVersion>,
    /// The digest of its archive.
    pub sha256: Option<Digest>,
    /// Its archive, relative to the recipe.
    pub archive: Option<PathBuf>,
    /// Where it is unpacked: below the home of its user.
    #[serde(default = "AbsolutePath::of_the_runner")]
    pub directory: AbsolutePath,
    /// The user whose it is and who runs it.
    #[serde(default = "UserName::of_the_runner")]
    pub user: UserName,
}

/// Which runner is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum RunnerVersion {
    /// What GitHub gives the account at the time of the build.
    Latest,
    /// This one.
    Release(Release),
}

/// A release of the runner, e.g. `2.335.1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release([u32; 3]);

impl Release {
    /// The oldest that GitHub registers.
    pub const OLDEST: Self = Self([2, 329, 0]);
}

impl TryFrom<String> for RunnerVersion {
    type Error = InvalidName;

    fn try_from(value: String) -> Result<Self, InvalidName> {
        if value == "latest" { Ok(Self::Latest) } else { value.parse().map(Self::Release) }
    }
}

impl FromStr for Release {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let numbers: Vec<u32> = text
            .split('.')
            .filter(|part| part.bytes().all(|byte| byte.is_ascii_digit()))
            .map_while(|part| part.parse().ok())
            .collect();
        let release = <[u32; 3]>::try_from(numbers).map(Self);
        release.ok().filter(|release| release.to_string() == text).ok_or_else(|| InvalidName {
            value: text.to_owned(),
            expected: "a version of the runner (`2.335.1`) or `latest`",
        })
    }
}

impl fmt::Display for Release {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.0;
        write!(formatter, "{major}.{minor}.{patch}")
    }
}

/// A program, or any one file, that is downloaded by its digest.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Download {
    /// What it is called.
    pub name: Word,
    /// Its version.
    pub version: Word,
    /// Where it is.
    pub url: Url,
    /// The digest of what is downloaded.
    pub sha256: Digest,
    /// The file to take, if what is downloaded is a gzipped tar archive.
    pub member: Option<String>,
    /// Where it is put.
    pub path: AbsolutePath,
    /// Its permissions, in octal.
    #[serde(default = "executable")]
    pub mode: Mode,
}

fn executable() -> Mode {
    Mode(0o755)
}

/// A script that is run in the new system when everything else is there, without a network.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    /// As whom: root, or one of the recipe's users.
    pub user: Option<UserName>,
    /// What is in it.
    pub content: Option<String>,
    /// Or the file that it is in, relative to the recipe.
    pub source: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_have_an_order() {
        let release = |text: &str| text.parse::<Release>().unwrap();
        assert!(release("2.329.0") < release("2.329.1") && release("2.99.9") < release("2.329.0"));
        assert_eq!(Release::OLDEST.to_string(), "2.329.0");
        for text in ["", "2", "2.335", "2.335.1.1", "2.335.x", "+2.335.1", "2.335.01", "Latest"] {
            assert!(text.parse::<Release>().is_err(), "{text}");
        }
    }
}

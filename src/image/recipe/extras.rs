//! Recipe content from outside the distribution: GitHub's runner, pinned downloads and hooks.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;

use super::values::{AbsolutePath, FileMode, NameOrVersion, Url, UserName};
use crate::name::{Digest, InvalidName};

/// GitHub's runner, from a local `archive` or downloaded.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunnerSpec {
    /// The version. With an archive, the version that its runner must report.
    pub version: Option<RunnerVersion>,
    /// The digest of its archive.
    pub sha256: Option<Digest>,
    /// Its archive, relative to the recipe.
    pub archive: Option<PathBuf>,
    /// The directory to unpack it in, below the home of its user.
    #[serde(default = "AbsolutePath::default_of_runner")]
    pub directory: AbsolutePath,
    /// The user who owns and runs it.
    #[serde(default = "UserName::default_of_runner")]
    pub user: UserName,
}

/// The requested version of the runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum RunnerVersion {
    /// The version that GitHub offers the account at build time.
    Latest,
    /// This release.
    Release(Release),
}

/// A release of the runner, e.g. `2.335.1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release([u32; 3]);

impl Release {
    /// The oldest release that GitHub registers.
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

/// A program or other file to download, pinned by digest.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DownloadSpec {
    /// Its name.
    pub name: NameOrVersion,
    /// Its version.
    pub version: NameOrVersion,
    /// Its URL.
    pub url: Url,
    /// The digest of the download.
    pub sha256: Digest,
    /// The file to extract, if the download is a gzipped tar archive.
    pub member: Option<String>,
    /// Its path in the image.
    pub path: AbsolutePath,
    /// Its permissions, in octal.
    #[serde(default = "executable")]
    pub mode: FileMode,
}

fn executable() -> FileMode {
    FileMode(0o755)
}

/// A script to run in the new system after everything else is installed, without a network.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookSpec {
    /// The user to run it as: root, or one of the recipe's users.
    pub user: Option<UserName>,
    /// The content.
    pub content: Option<String>,
    /// Or the file that contains it, relative to the recipe.
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

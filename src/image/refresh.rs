//! The reasons to rebuild an image.

use std::fmt;

use crate::build::updates::PackageUpdate;
use crate::{Digest, Manifest};

/// The currently available inputs, to compare with those of an image.
#[derive(Debug)]
pub struct AvailableInputs {
    /// Packages with another version.
    pub packages: Vec<PackageUpdate>,
    /// Version and digest of the newest runner, if requested.
    pub runner: Option<(String, Digest)>,
    /// The digest of the current agent.
    pub agent: Digest,
    /// The digest of the current recipe.
    pub recipe: Digest,
}

/// A reason to rebuild an image.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RefreshReason {
    /// Packages have other versions.
    Packages(Vec<PackageUpdate>),
    /// Another runner is available.
    Runner {
        /// The one in the image.
        #[serde(rename = "has")]
        installed: Option<String>,
        /// The available one.
        candidate: String,
    },
    /// This Mayfly has another agent.
    Agent,
    /// The recipe has changed.
    Recipe,
}

/// Returns the reasons to rebuild an image; empty if the result would be the same.
pub fn reasons(manifest: &Manifest, available: AvailableInputs) -> Vec<RefreshReason> {
    let mut reasons = Vec::new();
    if !available.packages.is_empty() {
        reasons.push(RefreshReason::Packages(available.packages));
    }
    if let Some((version, digest)) = available.runner {
        let installed = manifest.runner.as_ref();
        if installed.is_none_or(|runner| runner.sha256 != digest) {
            let installed = installed.map(|runner| runner.version.clone());
            reasons.push(RefreshReason::Runner { installed, candidate: version });
        }
    }
    if available.agent != manifest.inputs.agent.sha256 {
        reasons.push(RefreshReason::Agent);
    }
    if available.recipe != manifest.inputs.recipe {
        reasons.push(RefreshReason::Recipe);
    }
    reasons
}

/// The most packages that are listed by name.
const MAX_LISTED: usize = 5;

impl fmt::Display for RefreshReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Packages(packages) => {
                let named = packages.iter().take(MAX_LISTED).map(|newer| {
                    let candidate = newer.candidate.as_deref().unwrap_or("removed");
                    format!("{} {} → {candidate}", newer.package, newer.installed)
                });
                let named: Vec<_> = named.collect();
                write!(formatter, "{} changed packages: {}", packages.len(), named.join(", "))?;
                if packages.len() > MAX_LISTED { formatter.write_str(", …") } else { Ok(()) }
            }
            Self::Runner { installed, candidate } => {
                let installed = installed.as_deref().unwrap_or("none");
                write!(formatter, "new runner: {installed} → {candidate}")
            }
            Self::Agent => formatter.write_str("new agent in this Mayfly"),
            Self::Recipe => formatter.write_str("changed recipe"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::InstalledRunner;

    fn digest(digit: char) -> Digest {
        Digest::try_from(digit.to_string().repeat(64)).unwrap()
    }

    fn unchanged(manifest: &Manifest) -> AvailableInputs {
        AvailableInputs {
            packages: Vec::new(),
            runner: None,
            agent: manifest.inputs.agent.sha256.clone(),
            recipe: manifest.inputs.recipe.clone(),
        }
    }

    #[test]
    fn unchanged_inputs_are_no_reason() {
        let manifest = Manifest::sample("x");
        assert_eq!(reasons(&manifest, unchanged(&manifest)), []);
    }

    #[test]
    fn each_change_is_a_reason() {
        let mut manifest = Manifest::sample("x");
        manifest.runner = Some(InstalledRunner {
            version: "1".to_owned(),
            sha256: digest('a'),
            released: 0,
            directory: "/r".to_owned(),
        });
        let newer =
            PackageUpdate { package: "git".to_owned(), installed: "1".to_owned(), candidate: None };
        let available = AvailableInputs {
            packages: vec![newer],
            runner: Some(("2".to_owned(), digest('b'))),
            agent: digest('c'),
            recipe: digest('d'),
        };
        let texts: Vec<_> = reasons(&manifest, available).iter().map(ToString::to_string).collect();
        assert_eq!(texts[0], "1 changed packages: git 1 → removed");
        assert_eq!(texts[1], "new runner: 1 → 2");
        assert_eq!(texts.len(), 4);
        let same =
            AvailableInputs { runner: Some(("1".to_owned(), digest('a'))), ..unchanged(&manifest) };
        assert_eq!(reasons(&manifest, same), []);
    }
}

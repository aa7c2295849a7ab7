//! Why an image is to be built anew.

use std::fmt;

use crate::image::build::newer::Newer;
use crate::image::{Digest, Manifest};

/// What there is now, to be compared with what an image was made of.
#[derive(Debug)]
pub struct Available {
    /// Packages of which there is another version.
    pub packages: Vec<Newer>,
    /// Version and digest of the newest runner, where one was asked for.
    pub runner: Option<(String, Digest)>,
    /// The digest of the agent that would be built in.
    pub agent: Digest,
    /// The digest of the recipe as it is now.
    pub recipe: Digest,
}

/// A reason to build.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Packages have other versions.
    Packages(Vec<Newer>),
    /// There is another runner.
    Runner {
        /// The one in the image.
        has: Option<String>,
        /// The one that is to be had.
        candidate: String,
    },
    /// Mayfly has another agent.
    Agent,
    /// The recipe was changed.
    Recipe,
}

/// The reasons to build an image anew; none if it would be the same.
pub fn reasons(manifest: &Manifest, available: Available) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if !available.packages.is_empty() {
        reasons.push(Reason::Packages(available.packages));
    }
    if let Some((version, digest)) = available.runner {
        let has = manifest.runner.as_ref();
        if has.is_none_or(|runner| runner.sha256 != digest) {
            let has = has.map(|runner| runner.version.clone());
            reasons.push(Reason::Runner { has, candidate: version });
        }
    }
    if available.agent != manifest.inputs.agent.sha256 {
        reasons.push(Reason::Agent);
    }
    if available.recipe != manifest.inputs.recipe {
        reasons.push(Reason::Recipe);
    }
    reasons
}

/// How many packages are named where all would be too many.
const NAMED: usize = 5;

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Packages(packages) => {
                let named = packages.iter().take(NAMED).map(|newer| {
                    let candidate = newer.candidate.as_deref().unwrap_or("gone");
                    format!("{} {} → {candidate}", newer.package, newer.has)
                });
                let named: Vec<_> = named.collect();
                write!(formatter, "{} other packages: {}", packages.len(), named.join(", "))?;
                if packages.len() > NAMED { formatter.write_str(", …") } else { Ok(()) }
            }
            Self::Runner { has, candidate } => {
                let has = has.as_deref().unwrap_or("none");
                write!(formatter, "another runner: {has} → {candidate}")
            }
            Self::Agent => formatter.write_str("another agent in this Mayfly"),
            Self::Recipe => formatter.write_str("a changed recipe"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Runner;

    fn digest(digit: char) -> Digest {
        Digest::try_from(digit.to_string().repeat(64)).unwrap()
    }

    fn unchanged(manifest: &Manifest) -> Available {
        Available {
            packages: Vec::new(),
            runner: None,
            agent: manifest.inputs.agent.sha256.clone(),
            recipe: manifest.inputs.recipe.clone(),
        }
    }

    #[test]
    fn nothing_new_is_no_reason() {
        let manifest = Manifest::sample("x");
        assert_eq!(reasons(&manifest, unchanged(&manifest)), []);
    }

    #[test]
    fn each_change_is_one() {
        let mut manifest = Manifest::sample("x");
        manifest.runner = Some(Runner {
            version: "1".to_owned(),
            sha256: digest('a'),
            released: 0,
            directory: "/r".to_owned(),
        });
        let newer = Newer { package: "git".to_owned(), has: "1".to_owned(), candidate: None };
        let available = Available {
            packages: vec![newer],
            runner: Some(("2".to_owned(), digest('b'))),
            agent: digest('c'),
            recipe: digest('d'),
        };
        let told: Vec<_> = reasons(&manifest, available).iter().map(ToString::to_string).collect();
        assert_eq!(told[0], "1 other packages: git 1 → gone");
        assert_eq!(told[1], "another runner: 1 → 2");
        assert_eq!(told.len(), 4);
        let same =
            Available { runner: Some(("1".to_owned(), digest('a'))), ..unchanged(&manifest) };
        assert_eq!(reasons(&manifest, same), []);
    }
}

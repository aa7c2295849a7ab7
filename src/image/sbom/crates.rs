//! The crates that the agent was built from, according to the workspace's lock file.
//!
//! The lock file is that of the Mayfly that builds the image, like the agent's version in the
//! manifest. It includes build dependencies, e.g. procedural macros, and excludes non-Rust code:
//! the C library that is linked into the agent.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::name::Digest;

const LOCK: &str = include_str!("../../../Cargo.lock");

/// The members of the workspace in the agent, with their manifests: a lock file does not
/// distinguish a member's development dependencies.
const MEMBERS: [(&str, &str); 3] = [
    (AGENT, include_str!("../../../guest/agent/Cargo.toml")),
    ("mayfly-protocol", include_str!("../../../guest/protocol/Cargo.toml")),
    ("mayfly-tree", include_str!("../../../guest/tree/Cargo.toml")),
];

const AGENT: &str = "mayfly-guest";

/// A crate in the agent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Crate {
    pub(super) name: String,
    pub(super) version: String,
    /// The digest of its archive; `None` for a member of the workspace.
    pub(super) sha256: Option<Digest>,
}

#[derive(Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    version: String,
    checksum: Option<String>,
    /// `NAME`, or `NAME VERSION` where there is more than one.
    #[serde(default)]
    dependencies: Vec<String>,
}

#[derive(Deserialize)]
struct Member {
    dependencies: toml::Table,
}

/// Returns the crates in the agent except itself, sorted.
pub(super) fn of_agent() -> Vec<Crate> {
    // Both are part of this program: a test checks that they can be parsed.
    let Ok(lock) = toml::from_str::<Lock>(LOCK) else { return Vec::new() };
    let mut found = BTreeSet::new();
    let mut pending = vec![AGENT.to_owned()];
    while let Some(name) = pending.pop() {
        let Some(locked) = lock.package.iter().find(|locked| locked.is(&name)) else { continue };
        let sha256 = locked.checksum.clone().and_then(|text| Digest::try_from(text).ok());
        let (name, version) = (locked.name.clone(), locked.version.clone());
        if found.insert(Crate { name, version, sha256 }) {
            pending.extend(locked.dependencies_in_use());
        }
    }
    found.into_iter().filter(|found| found.name != AGENT).collect()
}

impl Locked {
    fn is(&self, dependency: &str) -> bool {
        match dependency.split_once(' ') {
            Some((name, version)) => self.name == name && self.version == version,
            None => self.name == dependency,
        }
    }

    /// Returns its dependencies without development dependencies.
    fn dependencies_in_use(&self) -> Vec<String> {
        let member = MEMBERS.iter().find(|(name, _)| *name == self.name);
        let member = member.and_then(|(_, text)| toml::from_str::<Member>(text).ok());
        let is_in_use = |dependency: &&String| {
            let name = dependency.split(' ').next().unwrap_or_default();
            member.as_ref().is_none_or(|member| member.dependencies.contains_key(name))
        };
        self.dependencies.iter().filter(is_in_use).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_has_its_crates_but_not_those_of_its_tests() {
        let crates = of_agent();
        let names: Vec<_> = crates.iter().map(|found| found.name.as_str()).collect();
        for name in ["mayfly-protocol", "nix", "postcard", "serde_core", "tar"] {
            assert!(names.contains(&name), "{name} is not in {names:?}");
        }
        for name in [AGENT, "mayfly", "proptest", "tempfile", "tokio"] {
            assert!(!names.contains(&name), "{name} is in {names:?}");
        }
        let foreign = crates.iter().filter(|found| !found.name.starts_with("mayfly-"));
        assert!(foreign.clone().count() > 10);
        assert!(foreign.into_iter().all(|found| found.sha256.is_some()));
    }

    #[test]
    fn the_members_of_the_workspace_are_read() {
        for (name, text) in MEMBERS {
            let member: Member = toml::from_str(text).unwrap();
            assert!(!member.dependencies.is_empty(), "{name}");
        }
    }
}

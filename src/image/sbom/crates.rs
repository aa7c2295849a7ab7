//! What the agent was built from: the crates that the workspace's lock file names for it.
//!
//! The lock file is that of the Mayfly that builds the image, as is the agent's version in the
//! manifest. It holds what is only used to build, e.g. procedural macros, and not what is not
//! Rust: the C library that is linked into the agent.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::image::name::Digest;

const LOCK: &str = include_str!("../../../Cargo.lock");

/// The members of the workspace that are in the agent, with what they say of themselves: a lock
/// file doesn't tell what a member needs for its tests only.
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
    /// The digest of its archive; none for a member of the workspace.
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

/// The crates in the agent beside itself, sorted.
pub(super) fn of_agent() -> Vec<Crate> {
    // Both are part of this program: a test knows that they can be read.
    let Ok(lock) = toml::from_str::<Lock>(LOCK) else { return Vec::new() };
    let mut found = BTreeSet::new();
    let mut wanted = vec![AGENT.to_owned()];
    while let Some(name) = wanted.pop() {
        let Some(locked) = lock.package.iter().find(|locked| locked.is(&name)) else { continue };
        let sha256 = locked.checksum.clone().and_then(|text| Digest::try_from(text).ok());
        let (name, version) = (locked.name.clone(), locked.version.clone());
        if found.insert(Crate { name, version, sha256 }) {
            wanted.extend(locked.needed());
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

    /// What it depends on, tests aside.
    fn needed(&self) -> Vec<String> {
        let member = MEMBERS.iter().find(|(name, _)| *name == self.name);
        let member = member.and_then(|(_, text)| toml::from_str::<Member>(text).ok());
        let needed = |dependency: &&String| {
            let name = dependency.split(' ').next().unwrap_or_default();
            member.as_ref().is_none_or(|member| member.dependencies.contains_key(name))
        };
        self.dependencies.iter().filter(needed).cloned().collect()
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

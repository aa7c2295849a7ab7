//! Policies: what a microVM may reach, by name.
//!
//! A [`PolicyDraft`] is what a settings file says; [`Policy`] is one that has been checked.
//! [`Policy::decide`] is a pure function of host and port. This module opens no file but the one it
//! is given and knows no socket.

mod decide;
mod draft;
mod error;
mod file;
mod listed;
mod needs;
mod pattern;
mod rate;
mod sets;
mod show;
mod special;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use decide::{Decision, Expected, Inspection};
pub use draft::{PolicyDraft, RuleDraft, SetDraft, SetDrafts};
pub use error::{PolicyError, Problem};
pub use file::{FileError, Policies};
pub use listed::listed;
pub use needs::{Need, Refused, missed, missed_of, needs_of};
pub use pattern::{Pattern, PatternError};
pub use rate::{ByteRate, RateError};
pub use sets::{SETS, Set};
pub use show::{explain, show};
pub use special::{Special, special};

use super::host::HostName;

/// What a policy does with what no rule allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Refuse it.
    #[default]
    Enforce,
    /// Let it pass and record that `enforce` would have refused it.
    Audit,
    /// Any public address, by name or by number.
    Open,
    /// Refuse everything, allowed or not.
    None,
}

impl fmt::Display for Mode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Enforce => "enforce",
            Self::Audit => "audit",
            Self::Open => "open",
            Self::None => "none",
        })
    }
}

/// What a rule wants of the first bytes on its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tls {
    /// TLS whose server name indication is the very name that was allowed.
    SniMustMatch,
    /// Anything.
    Any,
}

/// Where a rule stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub enum Origin {
    /// The policy's own `allow`, counted from 0.
    Allow(usize),
    /// The policy's own `deny`, counted from 0.
    Deny(usize),
    /// A set, built-in or of the settings file.
    Set(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow(index) => write!(formatter, "allow[{index}]"),
            Self::Deny(index) => write!(formatter, "deny[{index}]"),
            Self::Set(name) => write!(formatter, "include {name}"),
        }
    }
}

/// One rule, checked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Rule {
    /// Where it stands.
    pub origin: Origin,
    /// Which names it is for.
    pub host: Pattern,
    /// Which ports it is for; `None` is every port (in `deny` only).
    pub ports: Option<BTreeSet<u16>>,
    /// Whether the name may resolve to a private address.
    pub allow_private: bool,
    /// What is checked of the first bytes; `None` is the default of the port.
    pub tls: Option<Tls>,
    /// The most bytes, both directions together, that one connection may carry.
    pub max_bytes: Option<u64>,
    /// The most bytes per second, both directions together, that all connections of a microVM
    /// under this rule may carry.
    pub max_rate: Option<ByteRate>,
}

impl Rule {
    fn has_port(&self, port: u16) -> bool {
        self.ports.as_ref().is_none_or(|ports| ports.contains(&port))
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.origin, self.host)?;
        if let Some(ports) = &self.ports {
            let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
            write!(formatter, " ports {}", ports.join(","))?;
        }
        Ok(())
    }
}

/// Where a name goes by the operator's word, whatever resolvers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub struct Override {
    /// The address, not subject to the address check: the operator wrote it.
    pub address: IpAddr,
    /// The port there; `None` is the port that the guest asked for.
    pub port: Option<u16>,
}

/// A proxy that all connections to resolved names go through.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Parent {
    /// Its host: a name resolved on the host, or an address. Not subject to the address check.
    pub host: super::host::Host,
    /// Its port.
    pub port: u16,
    /// A file with `user:password` in its first line.
    pub credentials: Option<PathBuf>,
}

/// A policy that has been checked. It travels between processes of Mayfly as it is; what people
/// write is a [`PolicyDraft`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Policy {
    /// The name in the settings.
    pub name: String,
    /// What happens to what no rule allows.
    pub mode: Mode,
    allow: Vec<Rule>,
    deny: Vec<Rule>,
    allow_private: bool,
    /// Keyed by name and port; without a port it is for every port.
    #[serde(with = "pairs")]
    resolve: BTreeMap<(HostName, Option<u16>), Override>,
    /// The parent proxy, where there is one.
    pub parent: Option<Parent>,
}

/// A map whose keys are no texts, as pairs: JSON has no such maps.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub(super) fn deserialize<'de, K, V, D>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Vec::<(K, V)>::deserialize(deserializer).map(BTreeMap::from_iter)
    }
}

impl Policy {
    /// The ports that some `allow` rule names.
    pub fn ports(&self) -> BTreeSet<u16> {
        self.allow.iter().filter_map(|rule| rule.ports.as_ref()).flatten().copied().collect()
    }

    /// The rules that bound a rate, and it.
    pub fn rates(&self) -> impl Iterator<Item = (&Origin, ByteRate)> {
        self.allow.iter().filter_map(|rule| Some((&rule.origin, rule.max_rate?)))
    }

    /// Whether connections to ports that no rule names must be seen, too.
    pub fn wants_every_port(&self) -> bool {
        matches!(self.mode, Mode::Audit | Mode::Open)
    }

    /// Whether some `deny` rule refuses names on this port, whatever a connection was made to.
    pub fn denies_on(&self, port: u16) -> bool {
        self.mode == Mode::Open && self.deny.iter().any(|rule| rule.has_port(port))
    }

    /// Whether the operator says where the name is, on some port.
    pub fn has_override(&self, name: &HostName) -> bool {
        self.resolve.keys().any(|(known, _)| known == name)
    }

    /// Whether the policy or a rule lets the name be at a private address, on some port.
    pub fn may_be_private(&self, name: &HostName) -> bool {
        self.allow_private
            || self.allow.iter().any(|rule| rule.allow_private && rule.host.matches(name))
    }

    /// Where the operator says that the name is; the entry with the port goes first.
    pub fn resolve_override(&self, name: &HostName, port: u16) -> Option<SocketAddr> {
        let found = self
            .resolve
            .get(&(name.clone(), Some(port)))
            .or_else(|| self.resolve.get(&(name.clone(), None)))?;
        Some(SocketAddr::new(found.address, found.port.unwrap_or(port)))
    }
}

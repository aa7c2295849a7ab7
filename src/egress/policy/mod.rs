//! Policies: which names and ports a microVM may reach.
//!
//! A [`PolicyDraft`] is a policy as written in a settings file; a [`Policy`] is a validated one.
//! [`Policy::decide`] is a pure function of host and port. This module reads only the settings file
//! that it is given and uses no sockets.

mod decide;
mod draft;
mod error;
mod file;
mod github_names;
mod pattern;
mod rate;
mod requirements;
mod sets;
mod show;
mod special_use;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use decide::{ExpectedProtocol, Inspection, PolicyDecision};
pub use draft::{PolicyDraft, RuleDraft, SetDraft, SetDrafts};
pub use error::{PolicyError, PolicyValueError};
pub use file::{Policies, PolicyFileError};
pub use github_names::new_github_names;
pub use pattern::{Pattern, PatternError};
pub use rate::{ByteRate, RateError};
pub use requirements::{
    RefusedDestination, RequiredHost, explain_missing, explain_missing_for, required_hosts,
};
pub use sets::{BUILT_IN_SETS, HostSet};
pub use show::{explain, show};
pub use special_use::{SpecialUse, special_use};

use super::host::HostName;

/// How a policy treats connections that no rule allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyMode {
    /// Refuse them.
    #[default]
    Enforce,
    /// Allow them and record that `enforce` would refuse them.
    Audit,
    /// Allow any public destination, by name or by address.
    Open,
    /// Refuse everything, whatever the rules allow.
    None,
}

impl fmt::Display for PolicyMode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Enforce => "enforce",
            Self::Audit => "audit",
            Self::Open => "open",
            Self::None => "none",
        })
    }
}

/// What a rule requires of a connection's first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tls {
    /// TLS whose server name indication equals the allowed name.
    SniMustMatch,
    /// Any protocol.
    Any,
}

/// Where a rule is defined.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub enum RuleOrigin {
    /// The policy's own `allow`, by index from 0.
    Allow(usize),
    /// The policy's own `deny`, by index from 0.
    Deny(usize),
    /// A set, built in or from the settings file.
    Set(String),
}

impl fmt::Display for RuleOrigin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow(index) => write!(formatter, "allow[{index}]"),
            Self::Deny(index) => write!(formatter, "deny[{index}]"),
            Self::Set(name) => write!(formatter, "include {name}"),
        }
    }
}

/// One validated rule.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Rule {
    /// Where the rule is defined.
    pub origin: RuleOrigin,
    /// The names that the rule matches.
    pub host: Pattern,
    /// The ports that the rule matches; `None` is every port (`deny` only).
    pub ports: Option<BTreeSet<u16>>,
    /// Whether the name may resolve to a private address.
    pub allow_private: bool,
    /// The check of the first bytes; `None` is the port's default.
    pub tls: Option<Tls>,
    /// Maximum bytes of one connection, both directions together.
    pub max_bytes: Option<u64>,
    /// Maximum bytes per second, both directions together, of all connections of a microVM under
    /// this rule.
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

/// An address that the operator sets for a name, in place of the resolver's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub struct AddressOverride {
    /// The address. Exempt from the address check: the operator set it.
    pub address: IpAddr,
    /// The port there; `None` is the port that the guest requested.
    pub port: Option<u16>,
}

/// A proxy for all connections to resolved names.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct ParentProxy {
    /// The proxy's host: a name resolved on the host, or an address. Exempt from the address check.
    pub host: super::host::Host,
    /// The proxy's port.
    pub port: u16,
    /// A file with `user:password` in its first line.
    pub credentials: Option<PathBuf>,
}

/// A validated policy. It is serialized as is between Mayfly's processes; people write a
/// [`PolicyDraft`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Policy {
    /// The policy's name in the settings.
    pub name: String,
    /// How the policy treats connections that no rule allows.
    pub mode: PolicyMode,
    allow: Vec<Rule>,
    deny: Vec<Rule>,
    allow_private: bool,
    /// Keyed by name and port; an entry without a port applies to every port.
    #[serde(with = "pairs")]
    resolve: BTreeMap<(HostName, Option<u16>), AddressOverride>,
    /// The parent proxy, if any.
    pub parent: Option<ParentProxy>,
}

/// Serializes a map with non-string keys as pairs: JSON has no such maps.
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
    /// Returns the ports that any `allow` rule names.
    pub fn ports(&self) -> BTreeSet<u16> {
        self.allow.iter().filter_map(|rule| rule.ports.as_ref()).flatten().copied().collect()
    }

    /// Returns the rules with a maximum rate, and the rates.
    pub fn rates(&self) -> impl Iterator<Item = (&RuleOrigin, ByteRate)> {
        self.allow.iter().filter_map(|rule| Some((&rule.origin, rule.max_rate?)))
    }

    /// Returns whether connections to ports that no rule names are intercepted, too.
    pub fn intercepts_every_port(&self) -> bool {
        matches!(self.mode, PolicyMode::Audit | PolicyMode::Open)
    }

    /// Returns whether a `deny` rule matches names on this port, whatever address a connection is
    /// made to.
    pub fn has_deny_rule_on(&self, port: u16) -> bool {
        self.mode == PolicyMode::Open && self.deny.iter().any(|rule| rule.has_port(port))
    }

    /// Returns whether the operator overrides the name's address, on any port.
    pub fn has_override(&self, name: &HostName) -> bool {
        self.resolve.keys().any(|(known, _)| known == name)
    }

    /// Returns whether the policy or a rule allows the name to be at a private address, on any
    /// port.
    pub fn allows_private(&self, name: &HostName) -> bool {
        self.allow_private
            || self.allow.iter().any(|rule| rule.allow_private && rule.host.matches(name))
    }

    /// Returns the operator's address for the name; an entry with the port takes precedence.
    pub fn resolve_override(&self, name: &HostName, port: u16) -> Option<SocketAddr> {
        let found = self
            .resolve
            .get(&(name.clone(), Some(port)))
            .or_else(|| self.resolve.get(&(name.clone(), None)))?;
        Some(SocketAddr::new(found.address, found.port.unwrap_or(port)))
    }
}

//! Policies as written in the settings, and their validation.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::error::{PolicyError, PolicyValueError};
use super::pattern::{Pattern, PatternError};
use super::{
    AddressOverride, ByteRate, ParentProxy, Policy, PolicyMode, Rule, RuleOrigin, Tls, sets,
};
use crate::host::{Host, HostName};

/// Default ports of an `allow` rule.
const WEB_PORTS: [u16; 2] = [80, 443];

/// Maximum number of ports in the rules of one policy: each is a listening socket in every
/// microVM's namespace (4 KiB of kernel memory).
pub(super) const MAX_PORTS: usize = 256;

/// `[egress.policy.NAME]` as written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyDraft {
    /// How the policy treats connections that no rule allows.
    pub mode: PolicyMode,
    /// Sets of hosts to allow.
    pub include: Vec<String>,
    /// Rules that allow destinations.
    pub allow: Vec<RuleDraft>,
    /// Rules that refuse destinations even if another rule allows them.
    pub deny: Vec<RuleDraft>,
    /// Whether names (and addresses, where the mode allows them) may be private.
    pub allow_private: bool,
    /// The default check of the first bytes, for rules without their own.
    pub tls: Option<Tls>,
    /// `"HOST[:PORT]" = "ADDRESS[:PORT]"`: the address of a name, in place of the resolver's
    /// answer.
    pub resolve: BTreeMap<String, String>,
    /// The parent proxy, as `http://HOST:PORT`.
    pub parent: Option<String>,
    /// A file with `user:password` for the parent proxy.
    pub parent_credentials: Option<PathBuf>,
}

/// One rule as written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleDraft {
    /// A name, `*.suffix` or `*`.
    pub host: String,
    /// Ports; by default 80 and 443 in `allow`, every port in `deny`.
    pub ports: Option<Vec<u16>>,
    /// Whether the name may resolve to a private address.
    #[serde(default)]
    pub allow_private: bool,
    /// The check of the first bytes.
    pub tls: Option<Tls>,
    /// Maximum bytes of one connection, both directions together.
    pub max_bytes: Option<u64>,
    /// Maximum rate of all connections under the rule together, e.g. `10MB/s`.
    pub max_rate: Option<String>,
}

/// `[egress.set.NAME]` as written: rules that policies `include` by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetDraft {
    /// The rules of the set.
    pub allow: Vec<RuleDraft>,
}

/// The sets of a settings file, by name.
pub type SetDrafts = BTreeMap<String, SetDraft>;

/// The location of a table in a settings file, for errors.
struct KeyLocation<'a> {
    file: &'a Path,
    /// `policy.NAME` or `set.NAME`.
    table: String,
}

impl KeyLocation<'_> {
    fn error(
        &self,
        key: &str,
        value: impl std::fmt::Display,
        source: PolicyValueError,
    ) -> PolicyError {
        let Self { file, table } = self;
        let key = format!("egress.{table}{key}");
        PolicyError { file: file.to_path_buf(), key, value: value.to_string(), source }
    }
}

impl Policy {
    /// Validates a policy that includes only built-in sets.
    pub fn check(file: &Path, name: &str, draft: &PolicyDraft) -> Result<Self, PolicyError> {
        Self::check_with(file, name, draft, &SetDrafts::new())
    }

    /// Validates a policy; `own` are the sets of the settings file.
    pub fn check_with(
        file: &Path,
        name: &str,
        draft: &PolicyDraft,
        own: &SetDrafts,
    ) -> Result<Self, PolicyError> {
        let location = KeyLocation { file, table: format!("policy.{name}") };
        if !is_plain(name) {
            return Err(location.error("", name, PolicyValueError::Name));
        }
        if draft.mode == PolicyMode::None && !(draft.allow.is_empty() && draft.include.is_empty()) {
            return Err(location.error(".mode", draft.mode, PolicyValueError::NoEffect));
        }
        let mut allow = Vec::new();
        for (index, rule) in draft.allow.iter().enumerate() {
            let key = format!(".allow[{index}]");
            allow.push(check_allow(&location, &key, RuleOrigin::Allow(index), rule, draft)?);
        }
        for (index, set) in draft.include.iter().enumerate() {
            allow.extend(check_include(&location, index, set, draft, own)?);
        }
        let mut deny = Vec::new();
        for (index, rule) in draft.deny.iter().enumerate() {
            deny.push(check_deny(&location, index, rule)?);
        }
        let policy = Self {
            name: name.to_owned(),
            mode: draft.mode,
            allow,
            deny,
            allow_private: draft.allow_private,
            resolve: check_resolve(&location, &draft.resolve)?,
            parent: check_parent(&location, draft)?,
        };
        match policy.ports().len() {
            0..=MAX_PORTS => Ok(policy),
            count => Err(location.error(
                ".allow",
                format!("{count} ports"),
                PolicyValueError::TooManyPorts,
            )),
        }
    }
}

/// Returns whether the name is valid for a policy or a set: it goes into logs and headers.
fn is_plain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    !name.is_empty() && name.len() <= 64 && name.bytes().all(plain)
}

/// Validates the sets of a settings file, included or not.
pub(super) fn check_sets(file: &Path, own: &SetDrafts) -> Result<(), PolicyError> {
    for (name, set) in own {
        let location = KeyLocation { file, table: format!("set.{name}") };
        if !is_plain(name) || sets::find(name).is_some() {
            return Err(location.error("", name, PolicyValueError::SetName));
        }
        rules_of_own(&location, name, set, &PolicyDraft::default())?;
    }
    Ok(())
}

fn check_include(
    location: &KeyLocation<'_>,
    index: usize,
    name: &str,
    draft: &PolicyDraft,
    own: &SetDrafts,
) -> Result<Vec<Rule>, PolicyError> {
    let key = format!(".include[{index}]");
    if let Some(set) = sets::find(name) {
        return rules_of(set, draft.allow_private)
            .map_err(|source| location.error(&key, name, PolicyValueError::Pattern(source)));
    }
    let Some(set) = own.get(name) else {
        let built_in = sets::BUILT_IN_SETS.iter().map(|set| set.name.to_owned());
        let known = built_in.chain(own.keys().cloned()).collect();
        return Err(location.error(&key, name, PolicyValueError::UnknownSet(known)));
    };
    let location = KeyLocation { file: location.file, table: format!("set.{name}") };
    rules_of_own(&location, name, set, draft)
}

fn rules_of_own(
    location: &KeyLocation<'_>,
    name: &str,
    set: &SetDraft,
    draft: &PolicyDraft,
) -> Result<Vec<Rule>, PolicyError> {
    let check = |(index, rule)| {
        let origin = RuleOrigin::Set(name.to_owned());
        check_allow(location, &format!(".allow[{index}]"), origin, rule, draft)
    };
    set.allow.iter().enumerate().map(check).collect()
}

fn check_allow(
    location: &KeyLocation<'_>,
    key: &str,
    origin: RuleOrigin,
    rule: &RuleDraft,
    draft: &PolicyDraft,
) -> Result<Rule, PolicyError> {
    Ok(Rule {
        origin,
        host: check_pattern(location, key, &rule.host)?,
        ports: Some(match &rule.ports {
            None => WEB_PORTS.into(),
            Some(ports) => check_ports(location, key, ports)?,
        }),
        allow_private: rule.allow_private || draft.allow_private,
        tls: rule.tls.or(draft.tls),
        max_bytes: rule.max_bytes,
        max_rate: rule.max_rate.as_ref().map(|text| check_rate(location, key, text)).transpose()?,
    })
}

fn check_deny(
    location: &KeyLocation<'_>,
    index: usize,
    rule: &RuleDraft,
) -> Result<Rule, PolicyError> {
    let key = format!(".deny[{index}]");
    let not_in_deny = |name: &str, value: String| {
        Err(location.error(&format!("{key}.{name}"), value, PolicyValueError::NotInDeny))
    };
    if rule.allow_private {
        return not_in_deny("allow_private", rule.allow_private.to_string());
    }
    if let Some(tls) = rule.tls {
        let written = match tls {
            Tls::SniMustMatch => "sni-must-match",
            Tls::Any => "any",
        };
        return not_in_deny("tls", written.to_owned());
    }
    if let Some(bytes) = rule.max_bytes {
        return not_in_deny("max_bytes", bytes.to_string());
    }
    if let Some(rate) = &rule.max_rate {
        return not_in_deny("max_rate", rate.clone());
    }
    Ok(Rule {
        origin: RuleOrigin::Deny(index),
        host: check_pattern(location, &key, &rule.host)?,
        ports: rule.ports.as_ref().map(|ports| check_ports(location, &key, ports)).transpose()?,
        allow_private: false,
        tls: None,
        max_bytes: None,
        max_rate: None,
    })
}

fn check_pattern(
    location: &KeyLocation<'_>,
    key: &str,
    text: &str,
) -> Result<Pattern, PolicyError> {
    Pattern::parse(text).map_err(|error| {
        location.error(&format!("{key}.host"), text, PolicyValueError::Pattern(error))
    })
}

fn check_rate(location: &KeyLocation<'_>, key: &str, text: &str) -> Result<ByteRate, PolicyError> {
    let parsed = text.parse();
    parsed.map_err(|error| {
        location.error(&format!("{key}.max_rate"), text, PolicyValueError::Rate(error))
    })
}

fn check_ports(
    location: &KeyLocation<'_>,
    key: &str,
    ports: &[u16],
) -> Result<BTreeSet<u16>, PolicyError> {
    let key = format!("{key}.ports");
    if ports.is_empty() {
        return Err(location.error(&key, "[]", PolicyValueError::NoPort));
    }
    if ports.contains(&0) {
        return Err(location.error(&key, 0, PolicyValueError::Port));
    }
    Ok(ports.iter().copied().collect())
}

fn rules_of(set: &'static sets::HostSet, allow_private: bool) -> Result<Vec<Rule>, PatternError> {
    let rule = |host: &str| {
        Ok(Rule {
            origin: RuleOrigin::Set(set.name.to_owned()),
            host: Pattern::parse(host)?,
            ports: Some([443].into()),
            allow_private,
            tls: None,
            max_bytes: None,
            max_rate: None,
        })
    };
    set.hosts().map(rule).collect()
}

type Overrides = BTreeMap<(HostName, Option<u16>), AddressOverride>;

fn check_resolve(
    location: &KeyLocation<'_>,
    entries: &BTreeMap<String, String>,
) -> Result<Overrides, PolicyError> {
    let mut overrides = Overrides::new();
    for (name, target) in entries {
        let key = format!(".resolve.{name:?}");
        let (host, port) = match name.rsplit_once(':') {
            None => (name.as_str(), None),
            Some((host, port)) => {
                let number = port.parse().ok().filter(|number| *number != 0);
                (
                    host,
                    Some(number.ok_or_else(|| location.error(&key, name, PolicyValueError::Port))?),
                )
            }
        };
        let host = HostName::parse_unicode(host)
            .map_err(|error| location.error(&key, name, PolicyValueError::Host(error)))?;
        let target = parse_target(target)
            .ok_or_else(|| location.error(&key, target, PolicyValueError::Target))?;
        overrides.insert((host, port), target);
    }
    Ok(overrides)
}

fn parse_target(text: &str) -> Option<AddressOverride> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(AddressOverride { address, port: None });
    }
    let both: SocketAddr = text.parse().ok()?;
    (both.port() != 0).then(|| AddressOverride { address: both.ip(), port: Some(both.port()) })
}

fn check_parent(
    location: &KeyLocation<'_>,
    draft: &PolicyDraft,
) -> Result<Option<ParentProxy>, PolicyError> {
    let credentials = draft.parent_credentials.clone();
    let Some(written) = &draft.parent else {
        return match credentials {
            None => Ok(None),
            Some(file) => Err(location.error(
                ".parent_credentials",
                file.display(),
                PolicyValueError::NoParent,
            )),
        };
    };
    // The value may contain a password by mistake, so the error does not repeat it.
    if written.contains('@') {
        return Err(location.error(".parent", "http://…@…", PolicyValueError::ParentPassword));
    }
    let shown = written;
    let authority = written
        .strip_prefix("http://")
        .map(|rest| rest.strip_suffix('/').unwrap_or(rest))
        .ok_or_else(|| location.error(".parent", shown, PolicyValueError::Parent))?;
    let (host, port) = Host::parse_with_port(authority, None)
        .map_err(|_| location.error(".parent", shown, PolicyValueError::Parent))?;
    Ok(Some(ParentProxy { host, port, credentials }))
}

#[cfg(test)]
#[path = "draft_tests.rs"]
mod tests;

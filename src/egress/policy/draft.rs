//! Policies as they are written, and the check that makes a [`Policy`] of one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::pattern::{Pattern, PatternError};
use super::rate::RateError;
use super::{ByteRate, Mode, Origin, Override, Parent, Policy, Rule, Tls, sets};
use crate::egress::host::{Host, HostError, HostName};
use crate::failure::{Code, Failure};

/// The ports of an `allow` rule that names none.
const WEB_PORTS: [u16; 2] = [80, 443];

/// The most ports that the rules of one policy may name together: each is a listening socket in
/// every microVM's namespace (4 KiB of kernel memory).
const MAX_PORTS: usize = 256;

/// `[egress.policy.NAME]` as it is written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyDraft {
    /// What happens to what no rule allows.
    pub mode: Mode,
    /// Built-in sets of hosts to allow.
    pub include: Vec<String>,
    /// What is allowed.
    pub allow: Vec<RuleDraft>,
    /// What is refused although a rule allows it.
    pub deny: Vec<RuleDraft>,
    /// Whether names (and, where the mode allows numbers at all, addresses) may be private.
    pub allow_private: bool,
    /// What rules that don't say it themselves want of the first bytes.
    pub tls: Option<Tls>,
    /// `"HOST[:PORT]" = "ADDRESS[:PORT]"`: where a name is, whatever resolvers say.
    pub resolve: BTreeMap<String, String>,
    /// `http://HOST:PORT` of a proxy to go through.
    pub parent: Option<String>,
    /// A file with `user:password` for that proxy.
    pub parent_credentials: Option<PathBuf>,
}

/// One rule as it is written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleDraft {
    /// A name, `*.suffix` or `*`.
    pub host: String,
    /// Ports; in `allow` 80 and 443 where there are none, in `deny` every port.
    pub ports: Option<Vec<u16>>,
    /// Whether the name may resolve to a private address.
    #[serde(default)]
    pub allow_private: bool,
    /// What is checked of the first bytes.
    pub tls: Option<Tls>,
    /// The most bytes that one connection may carry, both directions together.
    pub max_bytes: Option<u64>,
    /// The most that all connections under the rule may carry together, e.g. `10MB/s`.
    pub max_rate: Option<String>,
}

/// A policy that can't be used: where in which file, what it says there, and why it can't be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {key} = {value:?} can't be used", file.display())]
pub struct PolicyError {
    /// The settings file.
    pub file: PathBuf,
    /// The key, e.g. `egress.policy.ci.allow[2].host`.
    pub key: String,
    /// The value there.
    pub value: String,
    /// What is wrong with it.
    #[source]
    pub problem: Problem,
}

impl Failure for PolicyError {
    fn code(&self) -> Code {
        Code::BadConfiguration
    }

    fn hint(&self) -> Option<String> {
        match &self.problem {
            Problem::UnknownSet => {
                let names: Vec<_> = sets::SETS.iter().map(|set| set.name).collect();
                Some(format!("There are {}.", names.join(" and ")))
            }
            Problem::Parent => Some("Write it as http://squid.example.com:3128.".into()),
            Problem::NoEffect => {
                Some("Remove it, or the mode: `mode = \"none\"` refuses everything.".into())
            }
            _ => None,
        }
    }
}

/// What can be wrong with a value.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A host pattern that is none.
    #[error(transparent)]
    Pattern(PatternError),
    /// A host that is none.
    #[error(transparent)]
    Host(HostError),
    /// A rate that is none.
    #[error(transparent)]
    Rate(RateError),
    /// Port 0.
    #[error("a port is a number from 1 to 65535")]
    Port,
    /// A rule for no port at all.
    #[error("a rule needs at least one port")]
    NoPort,
    /// Too many ports.
    #[error("the rules of a policy may name {MAX_PORTS} ports at most")]
    TooManyPorts,
    /// `include` names no set.
    #[error("there is no such built-in set")]
    UnknownSet,
    /// A target under `resolve` that is neither `ADDRESS` nor `ADDRESS:PORT`.
    #[error("it must be an address, or an address and a port")]
    Target,
    /// A parent proxy that is no `http://HOST:PORT`.
    #[error("a parent proxy is http://HOST:PORT, without user or path")]
    Parent,
    /// Credentials for a parent that isn't there.
    #[error("there is no `parent` that they could be for")]
    NoParent,
    /// A policy's name must be plain: it goes into logs and headers.
    #[error("a policy's name has letters, digits, `-` and `_` only, 64 at most")]
    Name,
    /// The name is one of the built-in policies.
    #[error("that is a built-in policy; choose another name")]
    BuiltIn,
    /// Rules in a policy that refuses everything.
    #[error("it has no effect in this mode")]
    NoEffect,
    /// A key that only an `allow` rule has.
    #[error("a `deny` rule has no such key")]
    NotInDeny,
}

/// Makes errors that know where they are.
struct Place<'a> {
    file: &'a Path,
    policy: &'a str,
}

impl Place<'_> {
    fn error(&self, key: &str, value: impl std::fmt::Display, problem: Problem) -> PolicyError {
        let Self { file, policy } = self;
        let key = format!("egress.policy.{policy}{key}");
        PolicyError { file: file.to_path_buf(), key, value: value.to_string(), problem }
    }
}

impl Policy {
    /// Checks what a settings file says about a policy.
    pub fn check(file: &Path, name: &str, draft: &PolicyDraft) -> Result<Self, PolicyError> {
        let place = Place { file, policy: name };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) {
            return Err(place.error("", name, Problem::Name));
        }
        if draft.mode == Mode::None && !(draft.allow.is_empty() && draft.include.is_empty()) {
            return Err(place.error(".mode", draft.mode, Problem::NoEffect));
        }
        let mut allow = Vec::new();
        for (index, rule) in draft.allow.iter().enumerate() {
            allow.push(check_allow(&place, index, rule, draft)?);
        }
        for (index, set) in draft.include.iter().enumerate() {
            let found = sets::find(set).ok_or_else(|| {
                place.error(&format!(".include[{index}]"), set, Problem::UnknownSet)
            })?;
            allow.extend(rules_of(found, draft.allow_private).map_err(|problem| {
                place.error(&format!(".include[{index}]"), set, Problem::Pattern(problem))
            })?);
        }
        let mut deny = Vec::new();
        for (index, rule) in draft.deny.iter().enumerate() {
            deny.push(check_deny(&place, index, rule)?);
        }
        let policy = Self {
            name: name.to_owned(),
            mode: draft.mode,
            allow,
            deny,
            allow_private: draft.allow_private,
            resolve: check_resolve(&place, &draft.resolve)?,
            parent: check_parent(&place, draft)?,
        };
        match policy.ports().len() {
            0..=MAX_PORTS => Ok(policy),
            count => Err(place.error(".allow", format!("{count} ports"), Problem::TooManyPorts)),
        }
    }
}

fn check_allow(
    place: &Place<'_>,
    index: usize,
    rule: &RuleDraft,
    draft: &PolicyDraft,
) -> Result<Rule, PolicyError> {
    let key = format!(".allow[{index}]");
    Ok(Rule {
        origin: Origin::Allow(index),
        host: check_pattern(place, &key, &rule.host)?,
        ports: Some(match &rule.ports {
            None => WEB_PORTS.into(),
            Some(ports) => check_ports(place, &key, ports)?,
        }),
        allow_private: rule.allow_private || draft.allow_private,
        tls: rule.tls.or(draft.tls),
        max_bytes: rule.max_bytes,
        max_rate: rule.max_rate.as_ref().map(|text| check_rate(place, &key, text)).transpose()?,
    })
}

fn check_deny(place: &Place<'_>, index: usize, rule: &RuleDraft) -> Result<Rule, PolicyError> {
    let key = format!(".deny[{index}]");
    let not_in_deny = |name: &str, value: String| {
        Err(place.error(&format!("{key}.{name}"), value, Problem::NotInDeny))
    };
    if rule.allow_private {
        return not_in_deny("allow_private", rule.allow_private.to_string());
    }
    if let Some(tls) = rule.tls {
        return not_in_deny("tls", format!("{tls:?}"));
    }
    if let Some(bytes) = rule.max_bytes {
        return not_in_deny("max_bytes", bytes.to_string());
    }
    if let Some(rate) = &rule.max_rate {
        return not_in_deny("max_rate", rate.clone());
    }
    Ok(Rule {
        origin: Origin::Deny(index),
        host: check_pattern(place, &key, &rule.host)?,
        ports: rule.ports.as_ref().map(|ports| check_ports(place, &key, ports)).transpose()?,
        allow_private: false,
        tls: None,
        max_bytes: None,
        max_rate: None,
    })
}

fn check_pattern(place: &Place<'_>, key: &str, text: &str) -> Result<Pattern, PolicyError> {
    Pattern::parse(text)
        .map_err(|error| place.error(&format!("{key}.host"), text, Problem::Pattern(error)))
}

fn check_rate(place: &Place<'_>, key: &str, text: &str) -> Result<ByteRate, PolicyError> {
    let parsed = text.parse();
    parsed.map_err(|error| place.error(&format!("{key}.max_rate"), text, Problem::Rate(error)))
}

fn check_ports(place: &Place<'_>, key: &str, ports: &[u16]) -> Result<BTreeSet<u16>, PolicyError> {
    let key = format!("{key}.ports");
    if ports.is_empty() {
        return Err(place.error(&key, "[]", Problem::NoPort));
    }
    if ports.contains(&0) {
        return Err(place.error(&key, 0, Problem::Port));
    }
    Ok(ports.iter().copied().collect())
}

fn rules_of(set: &'static sets::Set, allow_private: bool) -> Result<Vec<Rule>, PatternError> {
    let rule = |host: &&str| {
        Ok(Rule {
            origin: Origin::Set(set.name.to_owned()),
            host: Pattern::parse(host)?,
            ports: Some([443].into()),
            allow_private,
            tls: None,
            max_bytes: None,
            max_rate: None,
        })
    };
    set.hosts.iter().map(rule).collect()
}

type Overrides = BTreeMap<(HostName, Option<u16>), Override>;

fn check_resolve(
    place: &Place<'_>,
    entries: &BTreeMap<String, String>,
) -> Result<Overrides, PolicyError> {
    let mut overrides = Overrides::new();
    for (name, target) in entries {
        let key = format!(".resolve.{name:?}");
        let (host, port) = match name.rsplit_once(':') {
            None => (name.as_str(), None),
            Some((host, port)) => {
                let number = port.parse().ok().filter(|number| *number != 0);
                (host, Some(number.ok_or_else(|| place.error(&key, name, Problem::Port))?))
            }
        };
        let host = HostName::parse_written(host)
            .map_err(|error| place.error(&key, name, Problem::Host(error)))?;
        let target =
            parse_target(target).ok_or_else(|| place.error(&key, target, Problem::Target))?;
        overrides.insert((host, port), target);
    }
    Ok(overrides)
}

fn parse_target(text: &str) -> Option<Override> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(Override { address, port: None });
    }
    let both: SocketAddr = text.parse().ok()?;
    (both.port() != 0).then(|| Override { address: both.ip(), port: Some(both.port()) })
}

fn check_parent(place: &Place<'_>, draft: &PolicyDraft) -> Result<Option<Parent>, PolicyError> {
    let credentials = draft.parent_credentials.clone();
    let Some(written) = &draft.parent else {
        return match credentials {
            None => Ok(None),
            Some(file) => {
                Err(place.error(".parent_credentials", file.display(), Problem::NoParent))
            }
        };
    };
    // The value may hold a password by mistake: it isn't repeated.
    let shown = if written.contains('@') { "http://…@…" } else { written };
    let authority = written
        .strip_prefix("http://")
        .map(|rest| rest.strip_suffix('/').unwrap_or(rest))
        .ok_or_else(|| place.error(".parent", shown, Problem::Parent))?;
    let (host, port) = Host::parse_with_port(authority, None)
        .map_err(|_| place.error(".parent", shown, Problem::Parent))?;
    Ok(Some(Parent { host, port, credentials }))
}

#[cfg(test)]
#[path = "draft_tests.rs"]
mod tests;

//! Policies as they are written, and the check that makes a [`Policy`] of one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::error::{PolicyError, Problem};
use super::pattern::{Pattern, PatternError};
use super::{ByteRate, Mode, Origin, Override, Parent, Policy, Rule, Tls, sets};
use crate::egress::host::{Host, HostName};

/// The ports of an `allow` rule that names none.
const WEB_PORTS: [u16; 2] = [80, 443];

/// The most ports that the rules of one policy may name together: each is a listening socket in
/// every microVM's namespace (4 KiB of kernel memory).
pub(super) const MAX_PORTS: usize = 256;

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

/// `[egress.set.NAME]` as it is written: rules that policies `include` by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetDraft {
    /// What it allows.
    pub allow: Vec<RuleDraft>,
}

/// The sets of a settings file, by name.
pub type SetDrafts = BTreeMap<String, SetDraft>;

/// Makes errors that know where they are.
struct Place<'a> {
    file: &'a Path,
    /// `policy.NAME` or `set.NAME`.
    table: String,
}

impl Place<'_> {
    fn error(&self, key: &str, value: impl std::fmt::Display, problem: Problem) -> PolicyError {
        let Self { file, table } = self;
        let key = format!("egress.{table}{key}");
        PolicyError { file: file.to_path_buf(), key, value: value.to_string(), problem }
    }
}

impl Policy {
    /// Checks what a settings file says about a policy that includes built-in sets only.
    pub fn check(file: &Path, name: &str, draft: &PolicyDraft) -> Result<Self, PolicyError> {
        Self::check_with(file, name, draft, &SetDrafts::new())
    }

    /// Checks what a settings file says about a policy; `own` are the file's sets.
    pub fn check_with(
        file: &Path,
        name: &str,
        draft: &PolicyDraft,
        own: &SetDrafts,
    ) -> Result<Self, PolicyError> {
        let place = Place { file, table: format!("policy.{name}") };
        if !is_plain(name) {
            return Err(place.error("", name, Problem::Name));
        }
        if draft.mode == Mode::None && !(draft.allow.is_empty() && draft.include.is_empty()) {
            return Err(place.error(".mode", draft.mode, Problem::NoEffect));
        }
        let mut allow = Vec::new();
        for (index, rule) in draft.allow.iter().enumerate() {
            let key = format!(".allow[{index}]");
            allow.push(check_allow(&place, &key, Origin::Allow(index), rule, draft)?);
        }
        for (index, set) in draft.include.iter().enumerate() {
            allow.extend(check_include(&place, index, set, draft, own)?);
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

/// Whether a policy or a set may be called that: the name goes into logs and headers.
fn is_plain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    !name.is_empty() && name.len() <= 64 && name.bytes().all(plain)
}

/// Checks the sets of a settings file, included or not.
pub(super) fn check_sets(file: &Path, own: &SetDrafts) -> Result<(), PolicyError> {
    for (name, set) in own {
        let place = Place { file, table: format!("set.{name}") };
        if !is_plain(name) || sets::find(name).is_some() {
            return Err(place.error("", name, Problem::SetName));
        }
        rules_of_own(&place, name, set, &PolicyDraft::default())?;
    }
    Ok(())
}

fn check_include(
    place: &Place<'_>,
    index: usize,
    name: &str,
    draft: &PolicyDraft,
    own: &SetDrafts,
) -> Result<Vec<Rule>, PolicyError> {
    let key = format!(".include[{index}]");
    if let Some(set) = sets::find(name) {
        return rules_of(set, draft.allow_private)
            .map_err(|problem| place.error(&key, name, Problem::Pattern(problem)));
    }
    let Some(set) = own.get(name) else {
        let built_in = sets::SETS.iter().map(|set| set.name.to_owned());
        let known = built_in.chain(own.keys().cloned()).collect();
        return Err(place.error(&key, name, Problem::UnknownSet(known)));
    };
    let place = Place { file: place.file, table: format!("set.{name}") };
    rules_of_own(&place, name, set, draft)
}

fn rules_of_own(
    place: &Place<'_>,
    name: &str,
    set: &SetDraft,
    draft: &PolicyDraft,
) -> Result<Vec<Rule>, PolicyError> {
    let check = |(index, rule)| {
        let origin = Origin::Set(name.to_owned());
        check_allow(place, &format!(".allow[{index}]"), origin, rule, draft)
    };
    set.allow.iter().enumerate().map(check).collect()
}

fn check_allow(
    place: &Place<'_>,
    key: &str,
    origin: Origin,
    rule: &RuleDraft,
    draft: &PolicyDraft,
) -> Result<Rule, PolicyError> {
    Ok(Rule {
        origin,
        host: check_pattern(place, key, &rule.host)?,
        ports: Some(match &rule.ports {
            None => WEB_PORTS.into(),
            Some(ports) => check_ports(place, key, ports)?,
        }),
        allow_private: rule.allow_private || draft.allow_private,
        tls: rule.tls.or(draft.tls),
        max_bytes: rule.max_bytes,
        max_rate: rule.max_rate.as_ref().map(|text| check_rate(place, key, text)).transpose()?,
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
    let rule = |host: &str| {
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
    set.hosts().map(rule).collect()
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
    if written.contains('@') {
        return Err(place.error(".parent", "http://…@…", Problem::ParentPassword));
    }
    let shown = written;
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

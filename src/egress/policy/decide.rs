//! The decision: a pure function of policy, host and port.

use super::{Mode, Pattern, Policy, Rule, Special, Tls, special};
use crate::egress::address::{self, Class};
use crate::egress::host::{Host, HostName};
use crate::egress::verdict::{Cause, Verdict};

/// What is expected of the first bytes that a client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// TLS for the name.
    Tls,
    /// Anything, but where it is TLS it is for the name.
    TlsForNameOrOther,
    /// HTTP/1 requests for the name.
    Http,
}

/// What is done with the first bytes that a client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inspection {
    /// They aren't looked at.
    Skip,
    /// They are looked at as they pass: for the record, for `deny` rules, and to say what
    /// `enforce` would have refused.
    Observe(Option<Expected>),
    /// The connection ends where they are not what is expected.
    Enforce(Expected),
}

/// What was decided about a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision<'a> {
    /// Whether it may pass.
    pub verdict: Verdict,
    /// The rule that decided, where one did.
    pub rule: Option<&'a Rule>,
    /// Whether it may end at a private address.
    pub allow_private: bool,
    /// What is done with the first bytes.
    pub inspection: Inspection,
    /// The most bytes that it may carry.
    pub max_bytes: Option<u64>,
}

impl Policy {
    /// Decides about a connection to `host` and `port`. What the name resolves to is checked when
    /// it is dialled, what the client says when it says it.
    pub fn decide(&self, host: &Host, port: u16) -> Decision<'_> {
        match host {
            Host::Name(name) => self.decide_name(name, port),
            Host::Address(address) => {
                self.watched(self.judge_address(address::classify(*address)), port)
            }
        }
    }

    /// Decides whether a name may be looked up: whether a connection to it on some port may pass.
    pub fn decide_lookup(&self, name: &HostName) -> Verdict {
        if self.mode == Mode::None {
            return Verdict::Refused(Cause::NoEgress);
        }
        let denied = self.deny.iter().find(|rule| rule.ports.is_none() && rule.host.matches(name));
        if let Some(rule) = denied {
            return self.soften(Cause::Denied(rule.to_string()));
        }
        let is_resolved = self.has_override(name);
        let named =
            self.allow.iter().any(|rule| rule.host != Pattern::Any && rule.host.matches(name));
        if let Some(cause) = self.judge_special(name, named, is_resolved) {
            return Verdict::Refused(cause);
        }
        if self.mode == Mode::Open || self.allow.iter().any(|rule| rule.host.matches(name)) {
            return Verdict::Allowed;
        }
        self.soften(Cause::NoRule)
    }

    /// The `deny` rule for a name and port, where there is one.
    pub fn denied(&self, name: &HostName, port: u16) -> Option<&Rule> {
        self.deny.iter().find(|rule| rule.host.matches(name) && rule.has_port(port))
    }

    fn decide_name(&self, name: &HostName, port: u16) -> Decision<'_> {
        if self.mode == Mode::None {
            return self.watched(Verdict::Refused(Cause::NoEgress), port);
        }
        if let Some(rule) = self.denied(name, port) {
            let verdict = self.soften(Cause::Denied(rule.to_string()));
            return Decision { rule: Some(rule), ..self.watched(verdict, port) };
        }
        let mut for_name = self.allow.iter().filter(|rule| rule.host.matches(name)).peekable();
        let named = for_name.peek().is_some();
        let is_resolved = self.resolve_override(name, port).is_some();
        let by_name =
            self.allow.iter().any(|rule| rule.host != Pattern::Any && rule.host.matches(name));
        if let Some(cause) = self.judge_special(name, by_name, is_resolved) {
            return self.watched(Verdict::Refused(cause), port);
        }
        if let Some(rule) = for_name.find(|rule| rule.has_port(port)) {
            return Decision {
                verdict: Verdict::Allowed,
                rule: Some(rule),
                allow_private: rule.allow_private,
                inspection: self.inspection(rule, port),
                max_bytes: rule.max_bytes,
            };
        }
        let verdict = match (self.mode, named) {
            (Mode::Open, _) => Verdict::Allowed,
            (_, true) => self.soften(Cause::Port),
            (_, false) => self.soften(Cause::NoRule),
        };
        self.watched(verdict, port)
    }

    /// Why a name that the public DNS doesn't have is refused, where it is. In `enforce`, what no
    /// rule allows is refused for that.
    fn judge_special(&self, name: &HostName, named: bool, is_resolved: bool) -> Option<Cause> {
        let any = self.allow.iter().any(|rule| rule.host == Pattern::Any);
        if is_resolved || (self.mode == Mode::Enforce && !named && !any) {
            return None;
        }
        match special(name)? {
            Special::Private if named || self.allow_private => None,
            Special::Never | Special::Private => Some(Cause::SpecialName),
        }
    }

    /// Addresses that the guest names itself: only where the mode doesn't decide by name.
    fn judge_address(&self, class: Class) -> Verdict {
        match (self.mode, class) {
            (Mode::None, _) => Verdict::Refused(Cause::NoEgress),
            (_, Class::Private) if !self.allow_private => Verdict::Refused(Cause::Address(class)),
            (Mode::Open, Class::Global | Class::Private) => Verdict::Allowed,
            (Mode::Enforce | Mode::Audit, Class::Global | Class::Private) => {
                self.soften(Cause::Literal)
            }
            _ => Verdict::Refused(Cause::Address(class)),
        }
    }

    /// A refusal, unless the mode only watches or (in `open`) only `deny` rules refuse.
    fn soften(&self, cause: Cause) -> Verdict {
        if self.mode == Mode::Audit { Verdict::WouldRefuse(cause) } else { Verdict::Refused(cause) }
    }

    /// A decision that no `allow` rule made.
    fn watched(&self, verdict: Verdict, port: u16) -> Decision<'_> {
        let expected = (self.mode == Mode::Audit).then(|| default_of(port));
        Decision {
            verdict,
            rule: None,
            allow_private: self.allow_private,
            inspection: Inspection::Observe(expected),
            max_bytes: None,
        }
    }

    fn inspection(&self, rule: &Rule, port: u16) -> Inspection {
        let expected = match rule.tls {
            Some(Tls::Any) => return Inspection::Skip,
            Some(Tls::SniMustMatch) => Expected::Tls,
            None => default_of(port),
        };
        match (self.mode, rule.tls) {
            (Mode::Enforce, _) | (Mode::Open, Some(_)) => Inspection::Enforce(expected),
            (Mode::Audit, _) => Inspection::Observe(Some(expected)),
            (Mode::Open | Mode::None, _) => Inspection::Observe(None),
        }
    }
}

/// What a rule that doesn't say it expects on a port.
fn default_of(port: u16) -> Expected {
    match port {
        443 => Expected::Tls,
        80 => Expected::Http,
        _ => Expected::TlsForNameOrOther,
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;

//! Policy decisions: pure functions of policy, host and port.

use super::{Pattern, Policy, PolicyMode, Rule, SpecialUse, Tls, special_use};
use crate::address::{self, AddressClass};
use crate::host::{Host, HostName};
use crate::verdict::{RefusalCause, Verdict};

/// The protocol expected in a client's first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpectedProtocol {
    /// TLS for the name.
    Tls,
    /// Any protocol; TLS only for the name.
    TlsForNameOrOther,
    /// HTTP/1 requests for the name.
    Http,
}

/// How a client's first bytes are inspected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inspection {
    /// Not inspected.
    Skip,
    /// Inspected while they are forwarded: for the record, for `deny` rules, and to report what
    /// `enforce` would refuse.
    Observe(Option<ExpectedProtocol>),
    /// The connection is closed unless they match.
    Enforce(ExpectedProtocol),
}

/// The decision on a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyDecision<'a> {
    /// Whether the connection is allowed.
    pub verdict: Verdict,
    /// The rule that decided, if any.
    pub rule: Option<&'a Rule>,
    /// Whether the destination may have a private address.
    pub allow_private: bool,
    /// How the first bytes are inspected.
    pub inspection: Inspection,
    /// Maximum bytes of the connection.
    pub max_bytes: Option<u64>,
}

impl Policy {
    /// Decides on a connection to `host` and `port`. The resolved addresses are checked when the
    /// name is dialed, the client's first bytes when they arrive.
    pub fn decide(&self, host: &Host, port: u16) -> PolicyDecision<'_> {
        match host {
            Host::Name(name) => self.decide_name(name, port),
            Host::Address(address) => {
                self.without_rule(self.check_literal_address(address::classify(*address)), port)
            }
        }
    }

    /// Decides whether a name may be looked up: whether a connection to it is allowed on any port.
    pub fn decide_lookup(&self, name: &HostName) -> Verdict {
        if self.mode == PolicyMode::None {
            return Verdict::Refused(RefusalCause::NoEgress);
        }
        let is_resolved = self.has_override(name);
        let named =
            self.allow.iter().any(|rule| rule.host != Pattern::Any && rule.host.matches(name));
        let special = self.check_special_use(name, named, is_resolved);
        let denied = self.deny.iter().find(|rule| rule.ports.is_none() && rule.host.matches(name));
        if let Some(rule) = denied {
            return self.refuse_denied(rule, special);
        }
        if let Some(cause) = special {
            return Verdict::Refused(cause);
        }
        if self.mode == PolicyMode::Open || self.allow.iter().any(|rule| rule.host.matches(name)) {
            return Verdict::Allowed;
        }
        self.refusal_for_mode(RefusalCause::NoRule)
    }

    /// Returns the `deny` rule for a name and port, if any.
    pub fn denied(&self, name: &HostName, port: u16) -> Option<&Rule> {
        self.deny.iter().find(|rule| rule.host.matches(name) && rule.has_port(port))
    }

    fn decide_name(&self, name: &HostName, port: u16) -> PolicyDecision<'_> {
        if self.mode == PolicyMode::None {
            return self.without_rule(Verdict::Refused(RefusalCause::NoEgress), port);
        }
        let mut for_name = self.allow.iter().filter(|rule| rule.host.matches(name)).peekable();
        let named = for_name.peek().is_some();
        let is_resolved = self.resolve_override(name, port).is_some();
        let by_name =
            self.allow.iter().any(|rule| rule.host != Pattern::Any && rule.host.matches(name));
        let special = self.check_special_use(name, by_name, is_resolved);
        if let Some(rule) = self.denied(name, port) {
            let verdict = self.refuse_denied(rule, special);
            return PolicyDecision { rule: Some(rule), ..self.without_rule(verdict, port) };
        }
        if let Some(cause) = special {
            return self.without_rule(Verdict::Refused(cause), port);
        }
        if let Some(rule) = for_name.find(|rule| rule.has_port(port)) {
            return PolicyDecision {
                verdict: Verdict::Allowed,
                rule: Some(rule),
                allow_private: rule.allow_private,
                inspection: self.inspection(rule, port),
                max_bytes: rule.max_bytes,
            };
        }
        let verdict = match (self.mode, named) {
            (PolicyMode::Open, _) => Verdict::Allowed,
            (_, true) => self.refusal_for_mode(RefusalCause::Port),
            (_, false) => self.refusal_for_mode(RefusalCause::NoRule),
        };
        self.without_rule(verdict, port)
    }

    /// Returns why a special-use name is refused, if it is. In `enforce`, a name that no rule
    /// allows is refused with [`RefusalCause::NoRule`] instead.
    fn check_special_use(
        &self,
        name: &HostName,
        named: bool,
        is_resolved: bool,
    ) -> Option<RefusalCause> {
        let any = self.allow.iter().any(|rule| rule.host == Pattern::Any);
        if is_resolved || (self.mode == PolicyMode::Enforce && !named && !any) {
            return None;
        }
        match special_use(name)? {
            SpecialUse::Private if named || self.allow_private => None,
            SpecialUse::Never | SpecialUse::Private => Some(RefusalCause::SpecialName),
        }
    }

    /// Decides on an address that the guest named itself: allowed only where the mode does not
    /// decide by name.
    fn check_literal_address(&self, class: AddressClass) -> Verdict {
        match (self.mode, class) {
            (PolicyMode::None, _) => Verdict::Refused(RefusalCause::NoEgress),
            (_, AddressClass::Private) if !self.allow_private => {
                Verdict::Refused(RefusalCause::Address(class))
            }
            (PolicyMode::Open, AddressClass::Global | AddressClass::Private) => Verdict::Allowed,
            (
                PolicyMode::Enforce | PolicyMode::Audit,
                AddressClass::Global | AddressClass::Private,
            ) => self.refusal_for_mode(RefusalCause::Literal),
            _ => Verdict::Refused(RefusalCause::Address(class)),
        }
    }

    /// Returns the verdict of a `deny` rule. A rule opens nothing: where it would only be audited, a
    /// special-use name stays refused for what it is.
    fn refuse_denied(&self, rule: &Rule, special: Option<RefusalCause>) -> Verdict {
        match (self.mode, special) {
            (PolicyMode::Audit, Some(cause)) => Verdict::Refused(cause),
            _ => self.refusal_for_mode(RefusalCause::Denied(rule.to_string())),
        }
    }

    /// Returns a refusal, or `WouldRefuse` in `audit`.
    fn refusal_for_mode(&self, cause: RefusalCause) -> Verdict {
        if self.mode == PolicyMode::Audit {
            Verdict::WouldRefuse(cause)
        } else {
            Verdict::Refused(cause)
        }
    }

    /// Returns a decision that no `allow` rule made.
    fn without_rule(&self, verdict: Verdict, port: u16) -> PolicyDecision<'_> {
        let expected = (self.mode == PolicyMode::Audit).then(|| default_protocol(port));
        PolicyDecision {
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
            Some(Tls::SniMustMatch) => ExpectedProtocol::Tls,
            None => default_protocol(port),
        };
        match (self.mode, rule.tls) {
            (PolicyMode::Enforce, _) | (PolicyMode::Open, Some(_)) => Inspection::Enforce(expected),
            (PolicyMode::Audit, _) => Inspection::Observe(Some(expected)),
            (PolicyMode::Open | PolicyMode::None, _) => Inspection::Observe(None),
        }
    }
}

/// Returns the protocol that a rule expects on a port by default.
fn default_protocol(port: u16) -> ExpectedProtocol {
    match port {
        443 => ExpectedProtocol::Tls,
        80 => ExpectedProtocol::Http,
        _ => ExpectedProtocol::TlsForNameOrOther,
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;

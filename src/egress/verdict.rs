//! Verdicts and their causes, as used in records, responses and explanations.

use std::fmt;

use super::address::AddressClass;
use super::host::{Host, HostError};

/// The result of a policy decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The connection or lookup is allowed.
    Allowed,
    /// Allowed because the mode only audits; `enforce` would refuse it.
    WouldRefuse(RefusalCause),
    /// The connection or lookup is refused.
    Refused(RefusalCause),
}

impl Verdict {
    /// Returns whether traffic may pass.
    pub fn passes(&self) -> bool {
        !matches!(self, Self::Refused(_))
    }

    /// Returns why it is refused, or why `enforce` would refuse it.
    pub fn cause(&self) -> Option<&RefusalCause> {
        match self {
            Self::Allowed => None,
            Self::WouldRefuse(cause) | Self::Refused(cause) => Some(cause),
        }
    }

    /// Returns the code in records, which is stable.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::WouldRefuse(_) => "would-refuse",
            Self::Refused(_) => "refused",
        }
    }
}

/// The reason for a refusal or a failure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefusalCause {
    /// The policy's mode is `none`.
    #[error("the policy allows no egress")]
    NoEgress,
    /// A `deny` rule matches; the text is the rule.
    #[error("the rule {0} denies it")]
    Denied(String),
    /// No rule matches the name.
    #[error("no rule allows the name")]
    NoRule,
    /// Rules match the name, but for other ports.
    #[error("no rule allows this port for the name")]
    Port,
    /// The name is not in the public DNS, and no rule names it.
    #[error("the name is not public, and no rule names it")]
    SpecialName,
    /// The guest named an address where the policy decides by name.
    #[error("the policy decides by name, but this is an address")]
    Literal,
    /// The address class is refused.
    #[error("the address is {0}")]
    Address(AddressClass),
    /// A synthetic address that maps to no name, or no longer does.
    #[error("the synthetic address maps to no name; look the name up again")]
    UnknownSynthetic,
    /// The host is malformed.
    #[error("the host is malformed")]
    Host(#[source] HostError),
    /// The client does not speak TLS where it must.
    #[error("this port requires TLS, but the client speaks another protocol")]
    NotTls,
    /// A malformed `ClientHello`; the text says why.
    #[error("the ClientHello is malformed: {0}")]
    ClientHello(String),
    /// A `ClientHello` without a server name.
    #[error("the ClientHello has no server name")]
    SniMissing,
    /// A `ClientHello` for another server.
    #[error("the ClientHello names another server, {0:?}")]
    SniMismatch(String),
    /// An HTTP request for another host.
    #[error("the request names another host, {0:?}")]
    HostMismatch(String),
    /// A malformed or ambiguous HTTP request; the text says why.
    #[error("the request is malformed: {0}")]
    Request(String),
    /// The client took too long to send its first bytes or request.
    #[error("the client did not send a complete request in time")]
    ClientDeadline,
    /// The client closed the connection before it sent a complete request.
    #[error("the client closed the connection before it sent a complete request")]
    ClientGone,
    /// The microVM has reached its connection limit.
    #[error("the microVM has too many connections open")]
    TooManyConnections,
    /// The connection exceeds the rule's byte limit.
    #[error("the connection exceeds the bytes that the rule allows")]
    TooManyBytes,
    /// A protocol that is not forwarded: UDP, ICMP, IPv6, anything but TCP and DNS.
    #[error("{0} is not forwarded")]
    Protocol(&'static str),
    /// A TCP port that no rule names, so no listener is bound to it.
    #[error("no rule allows this port")]
    Closed,
    /// A packet whose source is not the guest's address, so a reply could not reach the guest.
    #[error("the source is not the guest's address")]
    ForgedSource,
    /// A malformed DNS message, or a query type that the stub does not support.
    #[error("can't answer the DNS query: {0}")]
    Dns(&'static str),
    /// The resolver reports that the name does not exist.
    #[error("the name does not exist")]
    NoSuchName,
    /// The name can't be resolved; the text says why.
    #[error("can't resolve the name: {0}")]
    Resolve(String),
    /// No address of the destination accepts a connection; the text says why.
    #[error("can't connect to the destination: {0}")]
    Connect(String),
    /// The destination refused the connection: no process listens on the port.
    #[error("the destination refused the connection")]
    ConnectRefused,
    /// The destination did not answer in time.
    #[error("the destination did not answer in time")]
    ConnectDeadline,
    /// The parent proxy is unreachable or refused; the text says why.
    #[error("the parent proxy failed: {0}")]
    Parent(String),
}

impl RefusalCause {
    /// Returns the code in records, which is stable.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoEgress => "no-egress",
            Self::Denied(_) => "denied",
            Self::NoRule => "no-rule",
            Self::Port => "port",
            Self::SpecialName => "special-name",
            Self::Literal => "literal",
            Self::Address(_) => "address",
            Self::UnknownSynthetic => "unknown-synthetic",
            Self::Host(_) => "host",
            Self::NotTls => "not-tls",
            Self::ClientHello(_) => "client-hello",
            Self::SniMissing => "sni-missing",
            Self::SniMismatch(_) => "sni-mismatch",
            Self::HostMismatch(_) => "host-mismatch",
            Self::Request(_) => "request",
            Self::ClientDeadline => "client-deadline",
            Self::ClientGone => "client-gone",
            Self::TooManyConnections => "too-many-connections",
            Self::TooManyBytes => "too-many-bytes",
            Self::Protocol(_) => "protocol",
            Self::Closed => "closed-port",
            Self::ForgedSource => "forged-source",
            Self::Dns(_) => "dns",
            Self::NoSuchName | Self::Resolve(_) => "resolve",
            Self::Connect(_) | Self::ConnectRefused => "connect",
            Self::ConnectDeadline => "connect-deadline",
            Self::Parent(_) => "parent",
        }
    }

    /// Returns the cause to report to the guest. Where the policy allows any public name, a name
    /// that resolves to an internal address is reported as nonexistent; otherwise a guest could map
    /// this host's network.
    #[must_use]
    pub fn redact_for_guest(self, host: &Host, any_name: bool) -> Self {
        match self {
            Self::Address(_) if any_name && host.name().is_some() => Self::NoSuchName,
            other => other,
        }
    }

    /// Returns whether the network failed, as opposed to a refusal by the policy.
    pub fn is_failure(&self) -> bool {
        matches!(
            self,
            Self::NoSuchName
                | Self::Resolve(_)
                | Self::Connect(_)
                | Self::ConnectRefused
                | Self::ConnectDeadline
                | Self::Parent(_)
        )
    }
}

/// Displays a cause and its source in one line.
pub struct CauseChain<'a>(pub &'a RefusalCause);

impl fmt::Display for CauseChain<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&mayfly_failure::chain(self.0))
    }
}

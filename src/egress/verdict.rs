//! What was decided, and why: the words that records, answers and explanations share.

use std::fmt;

use super::address::Class;
use super::host::{Host, HostError};

/// The outcome of a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may pass.
    Allowed,
    /// It may pass because the mode only watches; `enforce` would have refused it.
    WouldRefuse(Cause),
    /// It may not pass.
    Refused(Cause),
}

impl Verdict {
    /// Whether it may pass.
    pub fn passes(&self) -> bool {
        !matches!(self, Self::Refused(_))
    }

    /// Why not, or why `enforce` would not.
    pub fn cause(&self) -> Option<&Cause> {
        match self {
            Self::Allowed => None,
            Self::WouldRefuse(cause) | Self::Refused(cause) => Some(cause),
        }
    }

    /// The word in records: a contract.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::WouldRefuse(_) => "would-refuse",
            Self::Refused(_) => "refused",
        }
    }
}

/// Why something was refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// The policy's mode is `none`.
    #[error("the policy allows nothing at all")]
    NoEgress,
    /// A `deny` rule is for it; the text is the rule.
    #[error("the rule {0} refuses it")]
    Denied(String),
    /// No rule is for the name.
    #[error("no rule allows the name")]
    NoRule,
    /// Rules are for the name, but for other ports.
    #[error("the rules for the name allow other ports only")]
    Port,
    /// The name is none of the public DNS, and no rule names it.
    #[error("the name is not public, and no rule names it")]
    SpecialName,
    /// The guest named an address where the policy decides by name.
    #[error("the policy decides by name, and this is an address")]
    Literal,
    /// The address is of a kind that is refused.
    #[error("the address is {0}")]
    Address(Class),
    /// A synthetic address that stands for no name (any more).
    #[error("the address stands for no name; it must be looked up again")]
    UnknownSynthetic,
    /// What should be a host is none.
    #[error("the host is malformed")]
    Host(#[source] HostError),
    /// The client doesn't speak TLS where it must.
    #[error("TLS is wanted on this port and the client speaks something else")]
    NotTls,
    /// A `ClientHello` that can't be understood; the text says why.
    #[error("the ClientHello can't be understood: {0}")]
    ClientHello(String),
    /// A `ClientHello` without a server name.
    #[error("the ClientHello names no server")]
    SniMissing,
    /// A `ClientHello` for another server.
    #[error("the ClientHello names {0:?}, another server")]
    SniMismatch(String),
    /// An HTTP request for another host.
    #[error("the request's Host is {0:?}, another host")]
    HostMismatch(String),
    /// An HTTP request that is malformed or could be read in two ways; the text says how.
    #[error("the request is malformed: {0}")]
    Request(String),
    /// The client took too long to say what it wants.
    #[error("the client said too little in time")]
    ClientDeadline,
    /// The client went away before it said what it wants.
    #[error("the client closed the connection before it said what it wants")]
    ClientGone,
    /// The microVM has as many connections as it may.
    #[error("the microVM has too many connections open")]
    TooManyConnections,
    /// A protocol that doesn't leave the microVM: UDP, ICMP, IPv6, anything but TCP and DNS.
    #[error("{0} does not leave the microVM")]
    Protocol(&'static str),
    /// A TCP port that no rule names, so that nobody listens on it.
    #[error("no rule names the port")]
    Closed,
    /// A packet whose source is not the guest's address, so that no answer could reach it.
    #[error("the source is not the guest's address")]
    ForgedSource,
    /// A DNS message that is none, or asks for what the stub doesn't do.
    #[error("the DNS message can't be answered: {0}")]
    Dns(&'static str),
    /// The resolver says that the name does not exist.
    #[error("the name does not exist")]
    NoSuchName,
    /// The name can't be resolved; the text says why.
    #[error("the name can't be resolved: {0}")]
    Resolve(String),
    /// No address of the destination could be connected to; the text says why.
    #[error("the destination can't be reached: {0}")]
    Connect(String),
    /// The destination answered that nobody listens on the port.
    #[error("the destination refused the connection")]
    ConnectRefused,
    /// The destination didn't answer in time.
    #[error("the destination did not answer in time")]
    ConnectDeadline,
    /// The parent proxy couldn't be used or refused; the text says how.
    #[error("the parent proxy failed: {0}")]
    Parent(String),
}

impl Cause {
    /// The word in records: a contract.
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

    /// What the guest is told where the policy lets any public name pass: a name that leads inside
    /// is told like one that doesn't exist, or a guest could draw a map of this host's network.
    #[must_use]
    pub fn told(self, host: &Host, any_name: bool) -> Self {
        match self {
            Self::Address(_) if any_name && host.name().is_some() => Self::NoSuchName,
            other => other,
        }
    }

    /// Whether the network failed rather than the policy refused.
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

/// A cause with the cause below it, in one line.
pub struct Whole<'a>(pub &'a Cause);

impl fmt::Display for Whole<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&crate::failure::chain(self.0))
    }
}

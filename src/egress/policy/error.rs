//! Errors in a written policy.

use std::path::PathBuf;

use super::draft::MAX_PORTS;
use super::pattern::PatternError;
use super::rate::RateError;
use crate::host::HostError;
use mayfly_failure::{Code, Failure};

/// An invalid policy: the file, the key, its value, and the reason.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {key} = {value:?} can't be used", file.display())]
pub struct PolicyError {
    /// The settings file.
    pub file: PathBuf,
    /// The key, e.g. `egress.policy.ci.allow[2].host`.
    pub key: String,
    /// The key's value.
    pub value: String,
    /// Why the value is invalid.
    #[source]
    pub source: PolicyValueError,
}

impl Failure for PolicyError {
    fn code(&self) -> Code {
        Code::BadConfiguration
    }

    fn hint(&self) -> Option<String> {
        match &self.source {
            PolicyValueError::UnknownSet(known) => {
                Some(format!("Use one of: {}.", known.join(", ")))
            }
            PolicyValueError::Parent => Some("Write it as http://squid.example.com:3128.".into()),
            PolicyValueError::ParentPassword => Some(
                "Write `user:password` into a file that only Mayfly can read, and name the file \
                 as `parent_credentials`."
                    .into(),
            ),
            PolicyValueError::NoEffect => {
                Some("Remove `allow` and `include`, or the mode: `none` refuses everything.".into())
            }
            _ => None,
        }
    }
}

/// Why a value in a policy is invalid.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyValueError {
    /// An invalid host pattern.
    #[error(transparent)]
    Pattern(PatternError),
    /// An invalid host.
    #[error(transparent)]
    Host(HostError),
    /// An invalid rate.
    #[error(transparent)]
    Rate(RateError),
    /// Port 0.
    #[error("a port must be a number from 1 to 65535")]
    Port,
    /// A rule with an empty list of ports.
    #[error("a rule needs at least one port")]
    NoPort,
    /// Too many ports.
    #[error("the rules of a policy may name at most {MAX_PORTS} ports")]
    TooManyPorts,
    /// `include` names an unknown set.
    #[error("unknown set")]
    UnknownSet(Vec<String>),
    /// A target under `resolve` that is neither `ADDRESS` nor `ADDRESS:PORT`.
    #[error("the target must be ADDRESS or ADDRESS:PORT")]
    Target,
    /// A parent proxy that is not of the form `http://HOST:PORT`.
    #[error("a parent proxy must be http://HOST:PORT, without user or path")]
    Parent,
    /// A parent proxy with a user name or password in its URL.
    #[error(
        "the URL must not contain a user or password; set `parent_credentials` to a file \
         with them"
    )]
    ParentPassword,
    /// Credentials without a parent proxy.
    #[error("`parent` is not set")]
    NoParent,
    /// A policy name with other characters: it goes into logs and headers.
    #[error("a policy name must be at most 64 letters, digits, `-` and `_`")]
    Name,
    /// The name of a built-in policy.
    #[error("this name belongs to a built-in policy; choose another")]
    BuiltIn,
    /// The name of a built-in set, or a name with other characters.
    #[error("a set name must be letters, digits, `-` and `_`, and not a built-in set")]
    SetName,
    /// Rules in a policy that refuses everything.
    #[error("`allow` and `include` have no effect in this mode")]
    NoEffect,
    /// A key that only `allow` rules have.
    #[error("`deny` rules do not support this key")]
    NotInDeny,
}

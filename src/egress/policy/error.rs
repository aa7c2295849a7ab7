//! What can be wrong with a policy as it is written.

use std::path::PathBuf;

use super::draft::MAX_PORTS;
use super::pattern::PatternError;
use super::rate::RateError;
use crate::egress::host::HostError;
use crate::failure::{Code, Failure};

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
            Problem::UnknownSet(known) => Some(format!("There are {}.", known.join(", "))),
            Problem::Parent => Some("Write it as http://squid.example.com:3128.".into()),
            Problem::ParentPassword => Some(
                "Write `user:password` into a file that only Mayfly can read, and name the file \
                 as `parent_credentials`."
                    .into(),
            ),
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
    #[error("there is no such set")]
    UnknownSet(Vec<String>),
    /// A target under `resolve` that is neither `ADDRESS` nor `ADDRESS:PORT`.
    #[error("it must be an address, or an address and a port")]
    Target,
    /// A parent proxy that is no `http://HOST:PORT`.
    #[error("a parent proxy is http://HOST:PORT, without user or path")]
    Parent,
    /// A parent proxy with a user's name or password in it.
    #[error(
        "a user and a password don't belong into the address; `parent_credentials` names a file \
         with them"
    )]
    ParentPassword,
    /// Credentials for a parent that isn't there.
    #[error("there is no `parent` that they could be for")]
    NoParent,
    /// A policy's name must be plain: it goes into logs and headers.
    #[error("a policy's name has letters, digits, `-` and `_` only, 64 at most")]
    Name,
    /// The name is one of the built-in policies.
    #[error("that is a built-in policy; choose another name")]
    BuiltIn,
    /// A set's name is one of the built-in sets, or not plain.
    #[error("a set's name has letters, digits, `-` and `_` only, and is no built-in set's")]
    SetName,
    /// Rules in a policy that refuses everything.
    #[error("it has no effect in this mode")]
    NoEffect,
    /// A key that only an `allow` rule has.
    #[error("a `deny` rule has no such key")]
    NotInDeny,
}

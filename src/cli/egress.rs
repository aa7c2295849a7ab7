//! `mayfly egress`: shows and explains policies, and writes one from what was recorded.

use std::io::Write;
use std::path::PathBuf;

use clap::Subcommand;

use super::examples;
use crate::egress::host::{Host, HostError};
use crate::egress::policy::{FileError, Policies, SETS, explain, show};
use crate::egress::record::{LearnError, Learned};
use crate::failure::{Code, Failure};

/// The port that a host without one is checked for.
const DEFAULT_PORT: u16 = 443;

/// The verbs of `mayfly egress`.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Say whether a policy allows destinations, and by which rule
    #[command(after_help = examples::EGRESS_CHECK)]
    Check {
        /// The policy: of the settings file, or one of open, github, none
        policy: String,
        /// The destinations; port 443 where none is given
        #[arg(required = true, value_name = "HOST[:PORT]")]
        destinations: Vec<String>,
        /// The settings file
        #[arg(long, env = "MAYFLY_CONFIG", value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Print a policy that allows exactly what was recorded
    #[command(after_help = examples::EGRESS_LEARN)]
    Learn {
        /// The records: egress.jsonl of one or more microVMs
        #[arg(required = true, value_name = "RECORD")]
        records: Vec<PathBuf>,
        /// The name of the policy
        #[arg(long, default_value = "learned")]
        name: String,
    },
    /// List the built-in sets of hosts that a policy can include
    #[command(after_help = examples::EGRESS_SETS)]
    Sets,
    /// Print the rules of a policy as they are in effect
    #[command(after_help = examples::EGRESS_SHOW)]
    Show {
        /// The policy: of the settings file, or one of open, github, none
        policy: String,
        /// The settings file
        #[arg(long, env = "MAYFLY_CONFIG", value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

/// Why `mayfly egress` failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The policies can't be read.
    #[error(transparent)]
    Policies(#[from] FileError),
    /// What should be a destination is none.
    #[error("{destination:?} is no HOST[:PORT]")]
    Destination {
        /// What was given.
        destination: String,
        /// What is wrong with it.
        #[source]
        source: HostError,
    },
    /// A record can't be read.
    #[error("can't read {}", record.display())]
    Read {
        /// The file.
        record: PathBuf,
        /// What failed.
        #[source]
        source: std::io::Error,
    },
    /// A file is no record.
    #[error("can't learn from {}", record.display())]
    Learn {
        /// The file.
        record: PathBuf,
        /// What is wrong with it.
        #[source]
        source: LearnError,
    },
    /// The answer can't be written.
    #[error("can't write the answer")]
    Write(#[from] std::io::Error),
}

impl Failure for Error {
    fn code(&self) -> Code {
        match self {
            Self::Policies(error) => error.code(),
            Self::Destination { .. } => Code::Usage,
            Self::Read { .. } => Code::NotFound,
            Self::Learn { .. } => Code::BadData,
            Self::Write(_) => Code::CannotWrite,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Policies(error) => error.hint(),
            Self::Destination { .. } | Self::Read { .. } | Self::Learn { .. } | Self::Write(_) => {
                None
            }
        }
    }
}

/// Runs a verb. True where every destination that was asked about would pass.
pub(super) fn run(verb: &Verb, mut out: impl Write) -> Result<bool, Error> {
    match verb {
        Verb::Learn { records, name } => {
            let mut learned = Learned::default();
            for record in records {
                let text = std::fs::read_to_string(record)
                    .map_err(|source| Error::Read { record: record.clone(), source })?;
                learned
                    .add(&text)
                    .map_err(|source| Error::Learn { record: record.clone(), source })?;
            }
            out.write_all(learned.policy(name).as_bytes())?;
            Ok(true)
        }
        Verb::Sets => {
            for set in SETS {
                writeln!(out, "{}: {}", set.name, set.purpose)?;
                for host in set.hosts() {
                    writeln!(out, "  {host}")?;
                }
            }
            Ok(true)
        }
        Verb::Show { policy, config } => {
            let policies = Policies::read(config.as_deref())?;
            out.write_all(show(policies.get(policy)?).as_bytes())?;
            Ok(true)
        }
        Verb::Check { policy, destinations, config } => {
            let policies = Policies::read(config.as_deref())?;
            let policy = policies.get(policy)?;
            let mut all_pass = true;
            for destination in destinations {
                let (host, port) =
                    Host::parse_with_port(destination, Some(DEFAULT_PORT)).map_err(|source| {
                        Error::Destination { destination: destination.clone(), source }
                    })?;
                all_pass &= policy.decide(&host, port).verdict.passes();
                writeln!(out, "{}", explain(policy, &host, port))?;
            }
            Ok(all_pass)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(destinations: &[&str]) -> (Result<bool, Error>, String) {
        let verb = Verb::Check {
            policy: "github".into(),
            destinations: destinations.iter().map(ToString::to_string).collect(),
            config: None,
        };
        let mut out = Vec::new();
        let result = run(&verb, &mut out);
        (result, String::from_utf8(out).unwrap())
    }

    #[test]
    fn each_destination_gets_its_line_and_one_refusal_is_told() {
        let (result, text) = check(&["github.com", "evil.example:22"]);
        assert!(!result.unwrap());
        assert_eq!(
            text,
            "github.com:443 allowed by include github github.com ports 443; \
             must be TLS with that server name\n\
             evil.example:22 refused: no rule allows the name\n"
        );
        assert!(check(&["github.com"]).0.unwrap());
    }

    #[test]
    fn each_set_is_listed_with_its_hosts() {
        let mut out = Vec::new();
        assert!(run(&Verb::Sets, &mut out).unwrap());
        let text = String::from_utf8(out).unwrap();
        for part in ["github: all that", "github-core: ", "\n  uploads.github.com\n"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn what_is_no_destination_is_a_usage_error() {
        let error = check(&["https://github.com"]).0.unwrap_err();
        assert_eq!(error.code(), Code::Usage);
    }
}

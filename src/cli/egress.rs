//! `mayfly egress`: shows and tests policies, and creates a policy from egress records.

use std::io::Write;
use std::path::PathBuf;

use clap::Subcommand;

use super::examples;
use mayfly_egress::host::{Host, HostError};
use mayfly_egress::policy::{BUILT_IN_SETS, Policies, PolicyFileError, explain, show};
use mayfly_egress::record::{LearnError, PolicyLearner};
use mayfly_failure::{Code, Failure};

/// The port of destinations without one.
const DEFAULT_PORT: u16 = 443;

/// The subcommands of `mayfly egress`.
#[derive(Debug, Subcommand)]
pub(super) enum EgressCommand {
    /// Show whether a policy allows destinations, and by which rule
    #[command(after_help = examples::EGRESS_CHECK)]
    Check {
        /// Policy: one of the settings file, or open, github or none
        policy: String,
        /// Destinations to check; the default port is 443
        #[arg(required = true, value_name = "HOST[:PORT]")]
        destinations: Vec<String>,
        /// Settings file
        #[arg(long, env = "MAYFLY_CONFIG", value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Print a policy that allows exactly what was recorded
    #[command(after_help = examples::EGRESS_LEARN)]
    Learn {
        /// Egress records: the file egress.jsonl of one or more microVMs
        #[arg(required = true, value_name = "RECORD")]
        records: Vec<PathBuf>,
        /// Name of the policy
        #[arg(long, default_value = "learned")]
        name: String,
    },
    /// List the built-in sets of hosts that a policy can include
    #[command(after_help = examples::EGRESS_SETS)]
    Sets,
    /// Print the effective rules of a policy
    #[command(after_help = examples::EGRESS_SHOW)]
    Show {
        /// Policy: one of the settings file, or open, github or none
        policy: String,
        /// Settings file
        #[arg(long, env = "MAYFLY_CONFIG", value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

/// An error of `mayfly egress`.
#[derive(Debug, thiserror::Error)]
pub(super) enum EgressCommandError {
    /// The policies can't be read.
    #[error(transparent)]
    Policies(#[from] PolicyFileError),
    /// A destination is not valid.
    #[error("{destination:?} is not of the form HOST[:PORT]")]
    Destination {
        /// The argument.
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
    /// A file is not an egress record.
    #[error("can't create a policy from {}", record.display())]
    Learn {
        /// The file.
        record: PathBuf,
        /// What is wrong with it.
        #[source]
        source: LearnError,
    },
    /// The output can't be written.
    #[error("can't write the output")]
    Write(#[from] std::io::Error),
}

impl Failure for EgressCommandError {
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

/// Runs a subcommand. Returns whether the policy allows every checked destination.
pub(super) fn run(
    command: &EgressCommand,
    mut out: impl Write,
) -> Result<bool, EgressCommandError> {
    match command {
        EgressCommand::Learn { records, name } => {
            let mut learner = PolicyLearner::default();
            for record in records {
                let text = std::fs::read_to_string(record).map_err(|source| {
                    EgressCommandError::Read { record: record.clone(), source }
                })?;
                learner.add(&text).map_err(|source| EgressCommandError::Learn {
                    record: record.clone(),
                    source,
                })?;
            }
            out.write_all(learner.policy(name).as_bytes())?;
            Ok(true)
        }
        EgressCommand::Sets => {
            for set in BUILT_IN_SETS {
                writeln!(out, "{}: {}", set.name, set.purpose)?;
                for host in set.hosts() {
                    writeln!(out, "  {host}")?;
                }
            }
            Ok(true)
        }
        EgressCommand::Show { policy, config } => {
            let policies = Policies::read(config.as_deref())?;
            out.write_all(show(policies.get(policy)?).as_bytes())?;
            Ok(true)
        }
        EgressCommand::Check { policy, destinations, config } => {
            let policies = Policies::read(config.as_deref())?;
            let policy = policies.get(policy)?;
            let mut all_pass = true;
            for destination in destinations {
                let (host, port) =
                    Host::parse_with_port(destination, Some(DEFAULT_PORT)).map_err(|source| {
                        EgressCommandError::Destination { destination: destination.clone(), source }
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

    fn check(destinations: &[&str]) -> (Result<bool, EgressCommandError>, String) {
        let command = EgressCommand::Check {
            policy: "github".into(),
            destinations: destinations.iter().map(ToString::to_string).collect(),
            config: None,
        };
        let mut out = Vec::new();
        let result = run(&command, &mut out);
        (result, String::from_utf8(out).unwrap())
    }

    #[test]
    fn each_destination_has_a_line_and_a_refusal_is_reported() {
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
        assert!(run(&EgressCommand::Sets, &mut out).unwrap());
        let text = String::from_utf8(out).unwrap();
        for part in ["github: all that", "github-core: ", "\n  uploads.github.com\n"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn an_invalid_destination_is_a_usage_error() {
        let error = check(&["https://github.com"]).0.unwrap_err();
        assert_eq!(error.code(), Code::Usage);
    }
}

//! The errors of settings.

use super::github::TargetError;
use std::fmt;
use std::path::PathBuf;

use super::types::PoolName;
use mayfly_egress::policy::PolicyError;
use mayfly_failure::{Code, Failure};
use mayfly_host::size::Size;
use mayfly_telemetry::otlp::CollectorError;

/// An error in the settings: where it is, which key, which value and what is wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The settings file can't be read.
    #[error("can't read {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What failed.
        #[source]
        source: std::io::Error,
    },
    /// The settings file is not valid TOML.
    #[error("{}{}: invalid TOML: {message}", file.display(), line.map_or(String::new(), |line| format!(":{line}")))]
    Syntax {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: Option<usize>,
        /// What is wrong there.
        message: String,
    },
    /// A key is unknown, or its value has the wrong type.
    #[error("{origin}: {key}: {message}")]
    Malformed {
        /// The file or the variable.
        origin: String,
        /// The key.
        key: String,
        /// What is wrong, including the value.
        message: String,
    },
    /// A value is not valid.
    #[error("{origin}: {key} = {value:?} can't be used")]
    Value {
        /// The file or the variable.
        origin: String,
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// What is wrong with it.
        #[source]
        reason: ValueError,
    },
    /// A required key is missing.
    #[error("{origin}: {key} is missing: {why}")]
    Missing {
        /// The file or the variable.
        origin: String,
        /// The key.
        key: String,
        /// Why it is required.
        why: &'static str,
    },
    /// An egress policy is not valid.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The size of the host can't be determined.
    #[error("can't read the number of processors and the memory of this host")]
    Host(#[source] std::io::Error),
}

impl Failure for ConfigError {
    fn code(&self) -> Code {
        match self {
            Self::Read { .. } => Code::NotFound,
            Self::Host(_) => Code::Unavailable,
            Self::Policy(error) => error.code(),
            Self::Syntax { .. }
            | Self::Malformed { .. }
            | Self::Value { .. }
            | Self::Missing { .. } => Code::BadConfiguration,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Value { reason, .. } => reason.hint(),
            Self::Policy(error) => error.hint(),
            Self::Missing { key, .. } if key == "github.token_file" => Some(
                "Set github.token_file, GITHUB_TOKEN or MAYFLY_GITHUB__TOKEN, configure a GitHub \
                 App, or give the service the systemd credential github-token."
                    .into(),
            ),
            Self::Missing { key, .. } if key == "github.url" => {
                Some("Set GITHUB_REPOSITORY to OWNER/NAME, or set github.url.".into())
            }
            _ => None,
        }
    }
}

/// The reason why a value is not valid.
#[derive(Debug, thiserror::Error)]
pub enum ValueError {
    /// A secret is in a file that other users can read or change.
    #[error("file mode {mode:04o} lets other users read or change this secret")]
    Exposed {
        /// The mode of the file.
        mode: u32,
    },
    /// The named file can't be read.
    #[error("can't read the file")]
    Unreadable(#[source] std::io::Error),
    /// The value is empty.
    #[error("must not be empty")]
    Empty,
    /// A secret is not text, or too long.
    #[error("not UTF-8 text, or larger than 64 KiB")]
    NotText,
    /// A token can't be sent in an HTTP header.
    #[error("must be printable ASCII characters without spaces")]
    NotPrintable,
    /// A file does not contain a private key.
    #[error("not a private key in PEM format")]
    NotPrivateKey,
    /// A key for images is not a minisign public key.
    #[error("not a minisign public key (56 characters that start with RW)")]
    NotImageKey,
    /// A token is easy to guess.
    #[error("must be at least 16 printable ASCII characters without spaces")]
    TooShort,
    /// A path is relative.
    #[error("must be an absolute path")]
    RelativePath,
    /// Another key sets the same thing.
    #[error("{0} is set too; set only one of them")]
    Conflict(String),
    /// The key has no effect.
    #[error("has no effect because {0}")]
    NoEffect(&'static str),
    /// Not the URL of a scope or of an API, or not a repository.
    #[error(transparent)]
    GitHub(#[from] TargetError),
    /// A repository is outside the scope.
    #[error("not in the scope of github.url ({0})")]
    OutsideScope(String),
    /// A GitHub App is configured for an enterprise.
    #[error("a GitHub App can't register runners with an enterprise")]
    AppForEnterprise,
    /// Not a name of a pool.
    #[error(
        "must be lowercase letters, digits, `-` and `_`, start with a letter or digit, and have at most {max} characters",
        max = PoolName::MAX_LENGTH
    )]
    Name,
    /// Two pools have the same name.
    #[error("another pool already has this name")]
    DuplicateName,
    /// Not a label.
    #[error("must be 1 to 256 characters without spaces and commas")]
    Label,
    /// A label of GitHub-hosted runners.
    #[error("GitHub-hosted runners have this label, so their jobs would run here")]
    HostedLabel,
    /// The list or table has too many entries.
    #[error("at most {0} entries are allowed")]
    TooMany(usize),
    /// A number is out of range.
    #[error("must be from {0} to {1}")]
    Range(u64, u64),
    /// A duration is out of range.
    #[error("must be from {0} to {1}")]
    Duration(humantime::Duration, humantime::Duration),
    /// Less memory than a guest needs.
    #[error("a microVM needs at least {0}")]
    TooLittleMemory(Size),
    /// More than the host's budget.
    #[error("all microVMs together may use at most {0}")]
    OverBudget(String),
    /// `min_idle` is larger than `max`.
    #[error("must not be larger than max = {0}")]
    MoreThanMax(u32),
    /// The named egress policy does not exist.
    #[error("unknown egress policy")]
    UnknownPolicy(Vec<String>),
    /// The value requires `[github]`, which is missing.
    #[error("requires a [github] table")]
    NeedsGitHub,
    /// Not a name of an environment variable.
    #[error("not a valid name of an environment variable")]
    Variable,
    /// Mayfly sets the variable itself.
    #[error("Mayfly sets this variable itself")]
    ReservedVariable,
    /// The text contains a NUL byte.
    #[error("must not contain a NUL byte")]
    NulByte,
    /// Not a mode for the socket.
    #[error("must be an octal mode such as \"0600\", with access for owner and group only")]
    Mode,
    /// The status page would be readable from other machines without a token.
    #[error("anyone who can connect to this address could read everything")]
    Unauthenticated,
    /// Not a usable collector of traces.
    #[error(transparent)]
    Collector(CollectorError),
    /// Software emulation is selected but not allowed.
    #[error("software emulation is not an isolation boundary")]
    Emulation,
}

impl ValueError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Exposed { .. } => "Run chmod o=,g-w on the file.".into(),
            Self::GitHub(TargetError::InvalidUrl | TargetError::UnknownScope) => {
                "Use https://github.com/OWNER or https://github.com/OWNER/REPOSITORY.".into()
            }
            Self::GitHub(TargetError::Insecure) => {
                "Use https; http is allowed for 127.0.0.1 only.".into()
            }
            Self::UnknownPolicy(known) => format!("Use one of {}.", known.join(", ")),
            Self::HostedLabel => "Use another label, for example the name of the pool.".into(),
            Self::Unauthenticated => "Listen on 127.0.0.1, set status.token_file, or set \
                                      status.allow_unauthenticated = true."
                .into(),
            Self::Emulation => "To try Mayfly without KVM, set host.allow_emulation = true.".into(),
            _ => return None,
        })
    }
}

/// A key as users write it, for example `pool[0].name`.
pub(super) struct Key(String);

impl Key {
    pub(super) fn of_path(path: &[String]) -> Self {
        let mut key = String::new();
        for part in path {
            if part.bytes().all(|byte| byte.is_ascii_digit()) {
                key = format!("{key}[{part}]");
            } else if key.is_empty() {
                key.clone_from(part);
            } else {
                key = format!("{key}.{part}");
            }
        }
        Self(key)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

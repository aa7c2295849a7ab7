//! Why settings can't be used.

use std::fmt;
use std::path::PathBuf;

use super::types::PoolName;
use crate::egress::policy::PolicyError;
use crate::failure::{Code, Failure};
use crate::host::size::Size;
use crate::telemetry::otlp::NoCollector;

/// Why settings can't be used: where, which key, which value, and what is wrong with it.
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
    /// It is no TOML.
    #[error("{}{} is no TOML: {message}", file.display(), line.map_or(String::new(), |line| format!(":{line}")))]
    Syntax {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: Option<usize>,
        /// What is wrong there.
        message: String,
    },
    /// There is no such key, or its value is of another kind.
    #[error("{origin}: {key}: {message}")]
    NotUnderstood {
        /// The file or the variable.
        origin: String,
        /// The key.
        key: String,
        /// What is wrong, with the value.
        message: String,
    },
    /// A value can't be used.
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
        problem: Problem,
    },
    /// Something is missing.
    #[error("{origin}: {key} is missing: {why}")]
    Missing {
        /// The file or the variable.
        origin: String,
        /// The key.
        key: String,
        /// What needs it.
        why: &'static str,
    },
    /// A policy can't be used.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The size of the host can't be found out.
    #[error("can't find out how large this host is")]
    Host(#[source] std::io::Error),
}

impl Failure for ConfigError {
    fn code(&self) -> Code {
        match self {
            Self::Read { .. } => Code::NotFound,
            Self::Host(_) => Code::Unavailable,
            Self::Policy(error) => error.code(),
            Self::Syntax { .. }
            | Self::NotUnderstood { .. }
            | Self::Value { .. }
            | Self::Missing { .. } => Code::BadConfiguration,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Value { problem, .. } => problem.hint(),
            Self::Policy(error) => error.hint(),
            Self::Missing { key, .. } if key == "github.token_file" => Some(
                "Name a file with token_file, set GITHUB_TOKEN or MAYFLY_GITHUB__TOKEN, configure \
                 an App, or give the service the credential github-token."
                    .into(),
            ),
            Self::Missing { key, .. } if key == "github.url" => {
                Some("Set GITHUB_REPOSITORY to OWNER/NAME, or write `url`.".into())
            }
            _ => None,
        }
    }
}

/// What can be wrong with a value.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// A secret that others can read.
    #[error("it is a secret, and mode {mode:04o} lets others read or change it")]
    Exposed {
        /// The mode of the file.
        mode: u32,
    },
    /// A file that was named can't be read.
    #[error("it can't be read")]
    Unreadable(#[source] std::io::Error),
    /// A secret that is empty.
    #[error("there is nothing in it")]
    Empty,
    /// A secret that is too long or no text.
    #[error("it is no text of at most 64 KiB")]
    NoText,
    /// A key that is none.
    #[error("it is no private key in PEM")]
    NoKey,
    /// A key for images that is none.
    #[error("it is no public key of minisign's, 56 characters that begin with RW")]
    NoImageKey,
    /// A token that can be guessed.
    #[error("it must have 16 characters at least")]
    TooShort,
    /// A relative path.
    #[error("a path must be absolute")]
    Relative,
    /// Two keys for one thing.
    #[error("there is {0}, too; only one of them can be meant")]
    Both(&'static str),
    /// Something that has no effect.
    #[error("it has no effect: {0}")]
    NoEffect(&'static str),
    /// Not a web address of a scope.
    #[error(
        "it is not the address of an organisation, a repository or an enterprise on a GitHub server"
    )]
    Url,
    /// Not a web address.
    #[error("it is no https address")]
    Address,
    /// Not a repository.
    #[error("it is no OWNER/NAME")]
    Repository,
    /// Not a repository of the scope.
    #[error("it is not below {0}")]
    NotBelow(String),
    /// Enterprises take no Apps.
    #[error("an enterprise's runners can't be registered by an App")]
    NoApp,
    /// A name that is none.
    #[error(
        "a pool's name begins with a lower-case letter or digit and goes on with those, `-` or `_`; {max} characters at most",
        max = PoolName::MAX_LENGTH
    )]
    Name,
    /// A name that is there.
    #[error("there is another pool of that name")]
    SameName,
    /// A label that is none.
    #[error("a label has 1 to 256 characters without blanks and commas")]
    Label,
    /// A label of GitHub's own machines.
    #[error("that is a label of GitHub's own runners: their jobs would come here")]
    Hosted,
    /// Too many.
    #[error("there can be {0} at most")]
    TooMany(usize),
    /// A number outside its range.
    #[error("it must be from {0} to {1}")]
    Range(u64, u64),
    /// A time outside its range.
    #[error("it must be from {0} to {1}")]
    Duration(humantime::Duration, humantime::Duration),
    /// Less memory than a guest needs.
    #[error("a microVM needs at least {0}")]
    LittleMemory(Size),
    /// More than the host has to give.
    #[error("all microVMs together may have {0}")]
    Budget(String),
    /// More kept than there may be.
    #[error("it is more than max = {0}")]
    MoreThanMax(u32),
    /// No such policy.
    #[error("there is no such egress policy")]
    NoPolicy(Vec<String>),
    /// GitHub is wanted, but not configured.
    #[error("it needs a [github] table")]
    NoGitHub,
    /// Not a name of a variable.
    #[error("it is no name of a variable")]
    Variable,
    /// A variable that is Mayfly's own to set.
    #[error("Mayfly sets that variable itself")]
    OwnVariable,
    /// A text with a zero byte.
    #[error("it has a zero byte in it")]
    Zero,
    /// Not a mode for the socket.
    #[error("it must be an octal mode such as \"0600\", for the owner and a group only")]
    Mode,
    /// A page for everyone.
    #[error("whoever reaches it from another machine could read everything")]
    Open,
    /// No collector of traces.
    #[error(transparent)]
    Collector(NoCollector),
    /// Mode for emulation.
    #[error("software emulation is no isolation boundary")]
    Emulation,
}

impl Problem {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Exposed { .. } => "chmod o=,g-w that file.".into(),
            Self::Url => {
                "Write e.g. https://github.com/OWNER or https://github.com/OWNER/REPOSITORY.".into()
            }
            Self::Address => "http is for 127.0.0.1 only.".into(),
            Self::NoPolicy(known) => format!("There are {}.", known.join(", ")),
            Self::Hosted => "Choose another, e.g. the name of the pool.".into(),
            Self::Open => "Use 127.0.0.1, name a token with status.token_file, or say \
                           allow_unauthenticated = true."
                .into(),
            Self::Emulation => "Say allow_emulation = true if it will do, for trying.".into(),
            _ => return None,
        })
    }
}

/// A key as people write it: `pool[0].name`.
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

//! What can go wrong between us and GitHub, told apart by what it means for the caller.

use std::time::{Duration, SystemTime};

use crate::failure::{Code, Failure};

/// The cause below a transport error; never holds a request's headers or body.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a client can't be made.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The App's key is no RSA private key in PEM.
    #[error("the GitHub App's private key can't be read: {0}")]
    PrivateKey(&'static str),
    /// A token with characters that no header can carry, e.g. a newline in its midst.
    #[error("the GitHub token has characters that a header can't carry")]
    Token,
    /// GitHub lets no App manage an enterprise's runners.
    #[error("runners of an enterprise can't be managed by a GitHub App")]
    EnterpriseApp,
    /// An App's hook is asked for with a JWT, which a token's owner can't sign.
    #[error("deliveries of an App's hook can be asked for with the App's credentials only")]
    HookOfApp,
    /// The system's certificates can't be loaded.
    #[error("the system's root certificates can't be loaded")]
    Certificates(#[source] std::io::Error),
}

impl Failure for SetupError {
    fn code(&self) -> Code {
        match self {
            Self::Certificates(_) => Code::Unavailable,
            _ => Code::BadConfiguration,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::PrivateKey(_) => {
                "Name the .pem file that GitHub gave out when the key was made (RSA, 2048 bits or \
                 more), whole."
            }
            Self::Token => "Check the token's file for stray lines.",
            Self::EnterpriseApp => {
                "Use a classic personal access token with manage_runners:enterprise, or register \
                 at an organisation."
            }
            Self::HookOfApp => "Name the hook by its number, or configure the App.",
            Self::Certificates(_) => "Install ca-certificates.",
        };
        Some(hint.to_owned())
    }
}

/// How a call to GitHub ended other than well.
///
/// What a caller must do differs by variant: [`CallError::NotSent`] had no effect;
/// [`CallError::Ambiguous`] may have had its effect, which is then to be looked up.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The request did not leave: no connection could be made.
    #[error("{call}: GitHub can't be reached")]
    NotSent {
        /// What was asked, e.g. `POST /orgs/octo/actions/runners/generate-jitconfig`.
        call: String,
        /// What failed.
        #[source]
        source: Cause,
    },
    /// The request left and no whole answer came (or a 5xx): it may have taken effect.
    #[error("{call}: no whole answer came")]
    Ambiguous {
        /// What was asked.
        call: String,
        /// What came instead.
        #[source]
        source: Cause,
    },
    /// The credentials are not (or no longer) accepted.
    #[error("{call}: the credentials are not accepted: {message}")]
    Unauthorized {
        /// What was asked.
        call: String,
        /// GitHub's words.
        message: String,
    },
    /// GitHub refuses (403, 422, …).
    #[error("{call}: GitHub refuses ({status}): {message}")]
    Refused {
        /// What was asked.
        call: String,
        /// The HTTP status.
        status: u16,
        /// GitHub's words; `TYPENAME: …` of a scale set's service.
        message: String,
        /// The right that such a call needs, where one is known.
        needs: Option<&'static str>,
    },
    /// There is a runner of that name in the scope (409).
    #[error("{call}: a runner of that name is there already")]
    NameTaken {
        /// What was asked.
        call: String,
    },
    /// No such thing, or none that these credentials may see: GitHub does not tell which (404).
    #[error("{call}: not there, or not visible with these credentials: {message}")]
    NotFound {
        /// What was asked.
        call: String,
        /// GitHub's words; `TYPENAME: …` of a scale set's service.
        message: String,
        /// The right that such a call needs, where one is known.
        needs: Option<&'static str>,
    },
    /// A rate limit; calls before `until` are not sent.
    #[error("{call}: rate limited for another {} s", seconds_until(*until))]
    RateLimited {
        /// What was asked.
        call: String,
        /// When it may be asked again.
        until: SystemTime,
    },
}

fn seconds_until(until: SystemTime) -> u64 {
    until.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO).as_secs()
}

impl CallError {
    /// Whether the same call may go well later without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::NotSent { .. } | Self::Ambiguous { .. } | Self::RateLimited { .. })
    }

    /// The HTTP status, where GitHub refused with one.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::Unauthorized { .. } => Some(401),
            Self::NameTaken { .. } => Some(409),
            Self::NotFound { .. } => Some(404),
            Self::NotSent { .. } | Self::Ambiguous { .. } | Self::RateLimited { .. } => None,
        }
    }
}

impl Failure for CallError {
    fn code(&self) -> Code {
        match self {
            Self::Unauthorized { .. } | Self::Refused { status: 403, .. } => Code::Forbidden,
            Self::NotFound { .. } => Code::NotFound,
            _ => Code::Unavailable,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotSent { .. } => {
                "Check DNS, the firewall, and https_proxy and no_proxy of this host.".to_owned()
            }
            Self::Ambiguous { .. } => {
                "GitHub may be in trouble; its status page tells. What may have taken effect is \
                 looked up before the next try."
                    .to_owned()
            }
            Self::Unauthorized { .. } => {
                "Check that the token has not expired, or that the App's id and private key belong \
                 together, and that this host's clock is right."
                    .to_owned()
            }
            Self::Refused { needs: Some(needs), .. }
            | Self::NotFound { needs: Some(needs), .. } => {
                format!("Check the name, and that the credentials have this right: {needs}.")
            }
            Self::NameTaken { .. } => "A new name is tried; nothing need be done.".to_owned(),
            Self::RateLimited { .. } => {
                "Nothing need be done; a GitHub App has a limit of its own, apart from people's."
                    .to_owned()
            }
            Self::Refused { .. } | Self::NotFound { .. } => return None,
        })
    }
}

//! Errors of GitHub calls, by what they mean for the caller.

use std::time::{Duration, SystemTime};

use mayfly_failure::{Code, Failure};

/// The source of a transport error; never contains a request's headers or body.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An error that prevents creating a client.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The App's key is not an RSA private key in PEM.
    #[error("can't read the GitHub App's private key: {0}")]
    PrivateKey(&'static str),
    /// The token has characters that are not allowed in a header, e.g. a newline.
    #[error("the GitHub token has characters that are not allowed in an HTTP header")]
    Token,
    /// GitHub does not let Apps manage the runners of an enterprise.
    #[error("a GitHub App can't manage the runners of an enterprise")]
    EnterpriseApp,
    /// Calls about an App's own webhook need a JWT, which only the App's key can sign.
    #[error("deliveries of an App's webhook can be requested only with the App's credentials")]
    AppHookWithToken,
    /// The system's certificates could not be loaded.
    #[error("can't load the system's root certificates")]
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
                "Use the complete .pem file that GitHub provided when the key was created (RSA, \
                 2048 bits or more)."
            }
            Self::Token => "Remove stray lines from the token's file.",
            Self::EnterpriseApp => {
                "Use a classic personal access token with manage_runners:enterprise, or register \
                 runners with an organization."
            }
            Self::AppHookWithToken => "Set the webhook's ID, or configure the App's credentials.",
            Self::Certificates(_) => "Install ca-certificates.",
        };
        Some(hint.to_owned())
    }
}

/// An error of a call to GitHub.
///
/// What the caller must do depends on the variant: after [`CallError::NotSent`] the call had no
/// effect; after [`CallError::Ambiguous`] it may have had one, and the caller must look it up.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The request was not sent: no connection could be made.
    #[error("{call}: can't connect to GitHub")]
    NotSent {
        /// The call, e.g. `POST /orgs/octo/actions/runners/generate-jitconfig`.
        call: String,
        /// The connection error.
        #[source]
        source: BoxError,
    },
    /// The request was sent, but no complete response arrived (or a 5xx): it may have taken effect.
    #[error("{call}: no complete response from GitHub")]
    Ambiguous {
        /// The call.
        call: String,
        /// The error or the response that arrived instead.
        #[source]
        source: BoxError,
    },
    /// GitHub does not (or no longer) accept the credentials.
    #[error("{call}: GitHub rejected the credentials: {message}")]
    Unauthorized {
        /// The call.
        call: String,
        /// GitHub's message.
        message: String,
    },
    /// GitHub refused the call (403, 422, …).
    #[error("{call}: GitHub refused the call ({status}): {message}")]
    Refused {
        /// The call.
        call: String,
        /// The HTTP status.
        status: u16,
        /// GitHub's message; `TYPENAME: …` from the scale set service.
        message: String,
        /// The permission that the call needs, if known.
        needs: Option<&'static str>,
    },
    /// The scope already has a runner with that name (409).
    #[error("{call}: a runner with that name already exists")]
    NameTaken {
        /// The call.
        call: String,
    },
    /// Not found, or not visible with these credentials: GitHub does not say which (404).
    #[error("{call}: not found, or not visible with these credentials: {message}")]
    NotFound {
        /// The call.
        call: String,
        /// GitHub's message; `TYPENAME: …` from the scale set service.
        message: String,
        /// The permission that the call needs, if known.
        needs: Option<&'static str>,
    },
    /// A rate limit; no call is sent before `until`.
    #[error("{call}: rate limited for another {} s", seconds_until(*until))]
    RateLimited {
        /// The call.
        call: String,
        /// When calls are allowed again.
        until: SystemTime,
    },
}

fn seconds_until(until: SystemTime) -> u64 {
    until.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO).as_secs()
}

impl CallError {
    /// Whether the same call may succeed later without any change.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::NotSent { .. } | Self::Ambiguous { .. } | Self::RateLimited { .. })
    }

    /// Returns the HTTP status, if GitHub responded with an error status.
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
                "Check GitHub's status page. Mayfly looks up what may have taken effect before it \
                 tries again."
                    .to_owned()
            }
            Self::Unauthorized { .. } => {
                "Check that the token has not expired, or that the App's ID and private key belong \
                 together, and that this host's clock is right."
                    .to_owned()
            }
            Self::Refused { needs: Some(needs), .. }
            | Self::NotFound { needs: Some(needs), .. } => {
                format!("Check the name, and that the credentials have this permission: {needs}.")
            }
            Self::NameTaken { .. } => "No action needed: Mayfly tries a new name.".to_owned(),
            Self::RateLimited { .. } => {
                "Wait for the limit to reset. A GitHub App has its own limit, separate from users'."
                    .to_owned()
            }
            Self::Refused { .. } | Self::NotFound { .. } => return None,
        })
    }
}

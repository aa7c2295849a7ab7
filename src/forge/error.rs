//! Errors of a forge, by what they mean for the caller.

use std::time::SystemTime;

use mayfly_failure::{Code, Failure, chain};

/// A failed call to a forge. The text is for people and includes every cause.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForgeError {
    /// The forge could not be reached: the call had no effect.
    #[error("{0}")]
    Unreachable(String),
    /// No complete response arrived: the call may have taken effect.
    #[error("{0}")]
    Ambiguous(String),
    /// The forge does not (or no longer) accept the credentials.
    #[error("{0}")]
    Unauthorized(String),
    /// The forge refused the call.
    #[error("{0}")]
    Refused(String),
    /// A runner with that name already exists.
    #[error("{0}")]
    NameTaken(String),
    /// A rate limit: do not call again before `until`.
    #[error("{why}")]
    RateLimited {
        /// The call that was limited.
        why: String,
        /// When calls are allowed again.
        until: SystemTime,
    },
}

impl ForgeError {
    /// Whether the forge responded and accepted the credentials.
    pub fn is_response(&self) -> bool {
        !matches!(self, Self::Unreachable(_) | Self::Ambiguous(_) | Self::Unauthorized(_))
    }
}

/// A forge can't be opened with these settings. The text is for people and includes every cause.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ForgeSetupError {
    message: String,
    code: Code,
    hint: Option<String>,
}

impl ForgeSetupError {
    /// Creates an error from the driver's own.
    pub fn new(error: &impl Failure) -> Self {
        Self { message: chain(error), code: error.code(), hint: error.hint() }
    }
}

impl Failure for ForgeSetupError {
    fn code(&self) -> Code {
        self.code
    }

    fn hint(&self) -> Option<String> {
        self.hint.clone()
    }
}

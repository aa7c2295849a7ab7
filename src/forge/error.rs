//! Why a forge did not do what was asked, told apart by what that means for who asked.

use std::time::SystemTime;

/// A call to a forge ended other than well. The text is for people, with every cause.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForgeError {
    /// It could not be reached: the call had no effect.
    #[error("{0}")]
    Unreachable(String),
    /// No whole answer came: the call may have had its effect.
    #[error("{0}")]
    Ambiguous(String),
    /// The credentials are not, or no longer, accepted.
    #[error("{0}")]
    Unauthorized(String),
    /// It refuses.
    #[error("{0}")]
    Refused(String),
    /// A runner of that name is there already.
    #[error("{0}")]
    NameTaken(String),
    /// It was asked too often, and is to be asked again at that time.
    #[error("{why}")]
    RateLimited {
        /// What was asked.
        why: String,
        /// When it may be asked again.
        until: SystemTime,
    },
}

impl ForgeError {
    /// Whether the forge answered at all, and knew who asked.
    pub fn is_answer(&self) -> bool {
        !matches!(self, Self::Unreachable(_) | Self::Ambiguous(_) | Self::Unauthorized(_))
    }
}

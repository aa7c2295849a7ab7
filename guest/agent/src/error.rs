//! What went wrong, in two parts: the step that was tried and what the system said to it.
//!
//! Every failure of this crate is a system call that was refused, so one type serves all of it; it
//! becomes a line on the console or a `Failed` message as it is.

use std::borrow::Cow;
use std::error::Error;
use std::io;

use mayfly_protocol::message::GuestMessage;

/// A step that could not be done.
#[derive(Debug, thiserror::Error)]
#[error("{step}")]
pub struct StepError {
    /// What was tried, e.g. `mount /dev/vda on /root`.
    pub step: Cow<'static, str>,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

impl StepError {
    /// A step that failed for a reason that is not the system's.
    pub fn new(step: impl Into<Cow<'static, str>>, reason: impl Into<String>) -> Self {
        Self { step: step.into(), source: io::Error::other(reason.into()) }
    }

    /// The message that tells the host.
    pub fn to_message(&self) -> GuestMessage {
        GuestMessage::Failed { step: self.step.to_string(), error: self.source.to_string() }
    }
}

/// Says what was tried to a result that only knows what the system said.
pub trait During<T> {
    /// Names the step, where it failed.
    fn during<S: Into<Cow<'static, str>>>(self, step: impl FnOnce() -> S) -> Result<T, StepError>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during<S: Into<Cow<'static, str>>>(self, step: impl FnOnce() -> S) -> Result<T, StepError> {
        self.map_err(|error| StepError { step: step().into(), source: error.into() })
    }
}

/// An error and what caused it, on one line.
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}

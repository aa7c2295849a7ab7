//! The error type of the agent: the step that failed and its cause.
//!
//! Nearly every failure of this crate is a failed system call, so one type covers all. It is
//! written to the console or sent as a `Failed` message.

use std::borrow::Cow;
use std::error::Error;
use std::io;

use mayfly_protocol::message::GuestMessage;

/// A step that failed.
#[derive(Debug, thiserror::Error)]
#[error("{step}")]
pub struct StepError {
    /// The step, e.g. `mount /dev/vda on /root`.
    pub step: Cow<'static, str>,
    /// The cause.
    #[source]
    pub source: io::Error,
}

impl StepError {
    /// Returns an error whose cause is not a system call.
    pub fn new(step: impl Into<Cow<'static, str>>, reason: impl Into<String>) -> Self {
        Self { step: step.into(), source: io::Error::other(reason.into()) }
    }

    /// Returns the message that reports the error to the host.
    pub fn to_message(&self) -> GuestMessage {
        GuestMessage::Failed { step: self.step.to_string(), error: self.source.to_string() }
    }
}

/// Adds the step to the error of a system call.
pub trait Context<T> {
    /// Wraps an error with the step that failed.
    fn context<S: Into<Cow<'static, str>>>(self, step: impl FnOnce() -> S) -> Result<T, StepError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context<S: Into<Cow<'static, str>>>(self, step: impl FnOnce() -> S) -> Result<T, StepError> {
        self.map_err(|error| StepError { step: step().into(), source: error.into() })
    }
}

/// Formats an error and its causes on one line.
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

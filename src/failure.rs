//! What every error of Mayfly's own can tell a person beside its text: the exit code it stands
//! for, and what to do about it.
//!
//! Each folder has an error enum of its own that implements [`Failure`]; `cli` shows the chain of
//! causes once, then the hint, and exits with the code.

/// Exit codes of Mayfly's own failures, a contract with scripts (`docs/reference/exit-codes.md`).
///
/// The values are those of `sysexits.h` where one fits and of `timeout(1)` and container tools
/// where scripts expect them, well clear of what commands commonly use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// The arguments make no sense (`EX_USAGE`).
    Usage = 64,
    /// What was given to read is not what it should be, e.g. a changed image (`EX_DATAERR`).
    BadData = 65,
    /// A file, image or path that was named is not there (`EX_NOINPUT`).
    NotFound = 66,
    /// The host lacks something: a program, a device, memory (`EX_UNAVAILABLE`).
    Unavailable = 69,
    /// A mistake in Mayfly (`EX_SOFTWARE`).
    Internal = 70,
    /// A file can't be written: no room, no permission (`EX_CANTCREAT`).
    CannotWrite = 73,
    /// The host forbids something: a device's permissions, user namespaces (`EX_NOPERM`).
    Forbidden = 77,
    /// A recipe or settings file is wrong (`EX_CONFIG`).
    BadConfiguration = 78,
    /// The job did not end by its deadline (as `timeout(1)`).
    TimedOut = 124,
    /// The microVM failed before the job could end (as container tools).
    MachineFailed = 125,
    /// The command is there but can't be executed (as a shell).
    CommandNotExecutable = 126,
    /// There is no such command (as a shell).
    CommandNotFound = 127,
    /// A person or a signal ended the run (as a shell: 128 + SIGINT).
    Interrupted = 130,
}

/// An error with an exit code and, where there is something to be done, a hint.
pub trait Failure: std::error::Error {
    /// The exit code that it stands for.
    fn code(&self) -> Code;

    /// What a person can do about it, in one or two sentences.
    fn hint(&self) -> Option<String> {
        None
    }
}

/// Says that a task panicked, where it did: a mistake in Mayfly, which concerns that task alone.
pub fn contained(ended: Result<(), tokio::task::JoinError>) {
    let Err(error) = ended else { return };
    if error.is_panic() {
        let cause = panic_text(&*error.into_panic());
        crate::telemetry::metrics::PANICS.add([], 1);
        tracing::error!(cause, "a task of the daemon panicked, which is a mistake in Mayfly");
    }
}

/// The whole chain of causes in one line: `error: cause: cause of the cause`.
pub fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

/// What a panic said.
pub fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without words".to_owned())
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod words;

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("can't read the recipe")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn the_chain_names_each_cause_once() {
        let error = Outer(std::io::Error::other("disk on fire"));
        assert_eq!(chain(&error), "can't read the recipe: disk on fire");
    }
}

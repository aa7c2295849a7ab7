//! Exit codes and hints of Mayfly's errors.
//!
//! Owns the exit codes and the trait [`Failure`], which the error enums of all crates implement.
//! `cli` prints the chain of causes once, then the hint, and exits with the code. Uses no other
//! crate.

/// Exit codes of Mayfly's own failures. Scripts depend on them (`docs/reference/exit-codes.md`).
///
/// The values follow `sysexits.h` where one fits, and `timeout(1)` and container tools where
/// scripts expect them. They avoid the values that commands commonly use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// The arguments are not valid (`EX_USAGE`).
    Usage = 64,
    /// Input data is not valid, for example a modified image (`EX_DATAERR`).
    BadData = 65,
    /// A named file, image or path does not exist (`EX_NOINPUT`).
    NotFound = 66,
    /// The host lacks something: a program, a device, memory (`EX_UNAVAILABLE`).
    Unavailable = 69,
    /// A bug in Mayfly (`EX_SOFTWARE`).
    Internal = 70,
    /// A file can't be written: no space, no permission (`EX_CANTCREAT`).
    CannotWrite = 73,
    /// The host denies something: a device's permissions, user namespaces (`EX_NOPERM`).
    Forbidden = 77,
    /// A recipe or settings file is not valid (`EX_CONFIG`).
    BadConfiguration = 78,
    /// The job exceeded its deadline (as `timeout(1)`).
    TimedOut = 124,
    /// The microVM failed before the job could end (as container tools).
    MachineFailed = 125,
    /// The command exists but can't be executed (as a shell).
    CommandNotExecutable = 126,
    /// The command does not exist (as a shell).
    CommandNotFound = 127,
    /// A user or a signal ended the run (as a shell: 128 + SIGINT).
    Interrupted = 130,
}

/// An error with an exit code and an optional hint.
pub trait Failure: std::error::Error {
    /// Returns the exit code of the error.
    fn code(&self) -> Code;

    /// Returns what the user can do about the error, in one or two sentences.
    fn hint(&self) -> Option<String> {
        None
    }
}

/// Returns the full chain of causes in one line: `error: cause: cause of the cause`.
pub fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

/// Returns the message of a panic.
pub fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}

#[cfg(test)]
mod reference;

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

//! The log: lines for a person, JSON objects, or journal entries.
//!
//! The context of a line is in its fields, also if it is known further out only: the current
//! microVM, job, pool and runner are fields of a span ([`enter_context`]) and so of every line
//! within it.

mod fields;
mod journald;
mod json;

use std::io::IsTerminal;
use std::os::fd::AsFd;

use tracing::field::display;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

use fields::SpanFieldsLayer;
pub use journald::Journal;

/// The format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for a person.
    Text,
    /// A JSON object in each line.
    Json,
    /// Entries of systemd's journal, each with its fields.
    Journald,
}

/// The log can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The journal can't be reached.
    #[error("can't connect to the journal at {}", journald::SOCKET)]
    Journal(#[source] std::io::Error),
    /// A log is set up already.
    #[error("can't set up the log")]
    AlreadySet(#[from] TryInitError),
}

impl LogFormat {
    /// Returns the journal if stderr is connected to it, as in systemd services, and it is
    /// reachable; otherwise text.
    pub fn detect() -> Self {
        let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
        match nix::sys::stat::fstat(std::io::stderr().as_fd()) {
            Ok(stderr)
                if is_stream(&stream, stderr.st_dev, stderr.st_ino) && Journal::open().is_ok() =>
            {
                Self::Journald
            }
            _ => Self::Text,
        }
    }
}

/// Returns whether `$JOURNAL_STREAM` (systemd.exec(5)) names this file: child processes inherit the
/// variable.
fn is_stream(stream: &str, device: u64, inode: u64) -> bool {
    stream.split_once(':').is_some_and(|(named_device, named_inode)| {
        named_device.parse() == Ok(device) && named_inode.parse() == Ok(inode)
    })
}

/// Sets up the log of the process. Call it once.
pub fn start(format: LogFormat, filter: EnvFilter) -> Result<(), LogError> {
    let lines: Box<dyn Layer<_> + Send + Sync> = match format {
        LogFormat::Text => fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .boxed(),
        LogFormat::Json => {
            fmt::layer().with_writer(std::io::stderr).event_format(json::Json).boxed()
        }
        LogFormat::Journald => Journal::open().map_err(LogError::Journal)?.boxed(),
    };
    Registry::default().with(SpanFieldsLayer).with(lines).with(filter).try_init()?;
    Ok(())
}

/// The context of log lines. `None` is left out.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogContext<'a> {
    /// The microVM's name.
    pub microvm: Option<&'a str>,
    /// The job's number.
    pub job: Option<u64>,
    /// The pool's name.
    pub pool: Option<&'a str>,
    /// The runner's name at GitHub.
    pub runner: Option<&'a str>,
}

/// Adds `context` to every log line until the returned guard is dropped.
pub fn enter_context(context: LogContext<'_>) -> tracing::span::EnteredSpan {
    let LogContext { microvm, job, pool, runner } = context;
    // The highest level, so that no filter removes the context from a warning.
    let (microvm, pool, runner) = (microvm.map(display), pool.map(display), runner.map(display));
    tracing::error_span!("about", job, microvm, pool, runner).entered()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_taken_only_where_stderr_is_its_stream() {
        assert!(is_stream("9:1234", 9, 1234));
        for other in ["", "9", "9:1235", "8:1234", "9:1234:1", "a:b"] {
            assert!(!is_stream(other, 9, 1234), "{other}");
        }
    }
}

//! The log: lines for a person, JSON objects, or entries of the journal.
//!
//! What a line is about is in its fields, also where it is known further out only: the microVM, the
//! job, the pool and the runner that are being dealt with are fields of a span ([`about`]), and every
//! line below it has them.

mod fields;
mod journald;
mod json;

use std::io::IsTerminal;
use std::os::fd::AsFd;

use tracing::field::display;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

use fields::Remember;
pub use journald::Journal;

/// How it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Lines for a person.
    Text,
    /// A JSON object in each line.
    Json,
    /// Entries of systemd's journal, each with its fields.
    Journald,
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The journal can't be reached.
    #[error("can't reach the journal at {}", journald::SOCKET)]
    Journal(#[source] std::io::Error),
    /// There is one already.
    #[error("can't set up the log")]
    Twice(#[from] TryInitError),
}

impl Format {
    /// The journal where stderr leads there, as systemd's services have it, and where it can be
    /// reached; else text.
    pub fn of_process() -> Self {
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

/// Whether `$JOURNAL_STREAM` (systemd.exec(5)) names this file: others inherit the variable.
fn is_stream(stream: &str, device: u64, inode: u64) -> bool {
    stream.split_once(':').is_some_and(|(its_device, its_inode)| {
        its_device.parse() == Ok(device) && its_inode.parse() == Ok(inode)
    })
}

/// Sets it up for the whole process; to be called once.
pub fn start(format: Format, filter: EnvFilter) -> Result<(), LogError> {
    let lines: Box<dyn Layer<_> + Send + Sync> = match format {
        Format::Text => fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .boxed(),
        Format::Json => fmt::layer().with_writer(std::io::stderr).event_format(json::Json).boxed(),
        Format::Journald => Journal::open().map_err(LogError::Journal)?.boxed(),
    };
    Registry::default().with(Remember).with(lines).with(filter).try_init()?;
    Ok(())
}

/// What lines can be about. What is `None` they don't say.
#[derive(Debug, Clone, Copy, Default)]
pub struct Subject<'a> {
    /// The microVM's name.
    pub microvm: Option<&'a str>,
    /// The job's number.
    pub job: Option<u64>,
    /// The pool's name.
    pub pool: Option<&'a str>,
    /// The runner's name at GitHub.
    pub runner: Option<&'a str>,
}

/// Every line is about this, until what is returned is dropped.
pub fn about(subject: Subject<'_>) -> tracing::span::EnteredSpan {
    let Subject { microvm, job, pool, runner } = subject;
    // Of the highest level, so that no filter takes from a warning what it is about.
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

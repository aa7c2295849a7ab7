//! What the daemon says about what it does: lines for a person, or JSON for a collector.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use super::report::Problem;
use crate::failure::Code;

/// The variable that says what is told, e.g. `debug` or `mayfly::github=debug,info`.
const VARIABLE: &str = "MAYFLY_LOG";

/// How it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// Lines for a person.
    Text,
    /// A JSON object in each line.
    Json,
}

/// Sets it up for the whole process; to be called once.
pub(super) fn start(format: Format) -> Result<(), Problem> {
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter(std::env::var(VARIABLE).ok().as_deref())?)
        .with_writer(std::io::stderr);
    let set = match format {
        Format::Text => {
            subscriber.with_ansi(std::io::stderr().is_terminal()).with_target(false).try_init()
        }
        Format::Json => subscriber.json().flatten_event(true).try_init(),
    };
    set.map_err(|error| Problem::file(format!("can't set up the log: {error}"), Code::Internal))
}

fn filter(wanted: Option<&str>) -> Result<EnvFilter, Problem> {
    let wanted = wanted.filter(|text| !text.is_empty()).unwrap_or("info");
    EnvFilter::try_new(wanted).map_err(|error: ParseError| {
        Problem::usage(format!("{VARIABLE} = {wanted:?} is no filter: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_filter_is_refused() {
        assert!(filter(None).is_ok() && filter(Some("")).is_ok());
        assert!(filter(Some("mayfly::github=debug,info")).is_ok());
        assert!(filter(Some("mayfly=loud")).is_err());
    }
}

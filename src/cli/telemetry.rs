//! Sets up the daemon's log: its format and its filter.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use super::report::CliError;
use mayfly_failure::{Code, chain};
use mayfly_telemetry::log::{self, LogError, LogFormat};

/// The variable of the log filter, for example `debug` or `mayfly_github=debug,info`.
const VARIABLE: &str = "MAYFLY_LOG";

/// A format of the log, as an option of `mayfly serve`.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum LogFormatArgument {
    /// Lines for a person
    Text,
    /// A JSON object in each line
    Json,
    /// Entries of systemd's journal, each with its fields
    Journald,
}

impl From<LogFormatArgument> for LogFormat {
    fn from(argument: LogFormatArgument) -> Self {
        match argument {
            LogFormatArgument::Text => Self::Text,
            LogFormatArgument::Json => Self::Json,
            LogFormatArgument::Journald => Self::Journald,
        }
    }
}

/// Sets up the log of this process. Must be called once.
pub(super) fn start(format: Option<LogFormatArgument>) -> Result<(), CliError> {
    let filter = filter(std::env::var(VARIABLE).ok().as_deref())?;
    log::start(format.map_or_else(LogFormat::detect, Into::into), filter).map_err(|error| {
        let code = match error {
            LogError::Journal(_) => Code::Unavailable,
            LogError::AlreadySet(_) => Code::Internal,
        };
        CliError::file(chain(&error), code)
    })
}

fn filter(value: Option<&str>) -> Result<EnvFilter, CliError> {
    let value = value.filter(|text| !text.is_empty()).unwrap_or("info");
    EnvFilter::try_new(value).map_err(|error: ParseError| {
        CliError::usage(format!("{VARIABLE} = {value:?} is not a valid log filter: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_filter_is_rejected() {
        assert!(filter(None).is_ok() && filter(Some("")).is_ok());
        assert!(filter(Some("mayfly_github=debug,info")).is_ok());
        assert!(filter(Some("mayfly=loud")).is_err());
    }
}

//! What the daemon says about what it does: how it is written, and how much of it.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use super::report::Problem;
use crate::failure::{Code, chain};
use crate::telemetry::log::{self, Format, LogError};

/// The variable that says what is told, e.g. `debug` or `mayfly::github=debug,info`.
const VARIABLE: &str = "MAYFLY_LOG";

/// Sets it up for the whole process; to be called once.
pub(super) fn start(format: Option<Format>) -> Result<(), Problem> {
    let filter = filter(std::env::var(VARIABLE).ok().as_deref())?;
    log::start(format.unwrap_or_else(Format::of_process), filter).map_err(|error| {
        let code = match error {
            LogError::Journal(_) => Code::Unavailable,
            LogError::Twice(_) => Code::Internal,
        };
        Problem::file(chain(&error), code)
    })
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

//! `mayfly ps`: lists the running microVMs, whichever process started them.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::report::CliError;
use super::{daemon, table};
use mayfly_api::client::ClientError;
use mayfly_api::present;
use mayfly_api::types::JobId;
use mayfly_failure::Code;
use mayfly_host::state::StateDirectory;
use mayfly_shepherd::record::{self, MicrovmEntry};

/// How long to wait for the daemon's list of microVMs.
const DAEMON_TIMEOUT: Duration = Duration::from_secs(2);

/// List the running microVMs of this state directory.
#[derive(Debug, clap::Args)]
pub(super) struct PsArguments {
    #[command(flatten)]
    connection: daemon::Connection,
}

pub(super) fn run(arguments: &PsArguments, state: &StateDirectory) -> Result<ExitCode, CliError> {
    let unreadable = |error: std::io::Error| {
        CliError::file(
            format!("can't read {}: {error}", state.microvms().display()),
            Code::NotFound,
        )
    };
    let entries = match record::list_running(&state.microvms()) {
        // No microVM has run here yet.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        found => found.map_err(unreadable)?,
    };
    let jobs = jobs(&arguments.connection, state);
    let lines: Vec<_> = entries
        .iter()
        .map(|entry| Line { entry, job: jobs.get(&entry.summary.id.to_string()).copied() })
        .collect();
    arguments.connection.print(&lines, |lines, out| {
        out.line("ID            PHASE       CPUS    MEMORY  AGE          JOB     IMAGE")?;
        for Line { entry: MicrovmEntry { summary, phase }, job } in lines {
            out.line(format_args!(
                "{:<14}{:<11}{:>5} {:>9}  {:<13}{:<8}{}",
                summary.id.to_string(),
                phase.to_string(),
                summary.processors,
                summary.memory.to_string(),
                age(&summary.since),
                table::optional(*job),
                summary.image
            ))?;
        }
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

/// A microVM and the daemon's job in it.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    entry: &'a MicrovmEntry,
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<JobId>,
}

/// Returns the job of each microVM if a daemon responds in time. The list does not depend on the
/// daemon.
fn jobs(connection: &daemon::Connection, state: &StateDirectory) -> BTreeMap<String, JobId> {
    let Ok(client) = connection.client(Some(state.root())) else { return BTreeMap::new() };
    let microvms = daemon::wait(async {
        let response = tokio::time::timeout(DAEMON_TIMEOUT, client.microvms()).await;
        response.unwrap_or(Err(ClientError::TimedOut))
    });
    let microvms = microvms.unwrap_or_default().into_iter();
    microvms.filter_map(|microvm| Some((microvm.id, microvm.job?))).collect()
}

/// Returns the time since a timestamp.
fn age(since: &str) -> String {
    let elapsed = humantime::parse_rfc3339(since)
        .ok()
        .and_then(|since| SystemTime::now().duration_since(since).ok())
        .unwrap_or_default();
    present::ongoing(elapsed)
}

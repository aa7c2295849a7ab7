//! `mayfly ps`: the microVMs that live, whoever started them.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::report::Problem;
use super::{daemon, table};
use crate::api::client::ClientError;
use crate::api::types::JobId;
use crate::failure::Code;
use crate::host::state::StateDirectory;
use crate::shepherd::record::{self, Entry};

/// How long a daemon may take to say which jobs run.
const DAEMON_TIME: Duration = Duration::from_secs(2);

/// List the microVMs of this state directory that live.
#[derive(Debug, clap::Args)]
pub(super) struct PsArguments {
    #[command(flatten)]
    connection: daemon::Connection,
}

pub(super) fn run(arguments: &PsArguments, state: &StateDirectory) -> Result<ExitCode, Problem> {
    let unreadable = |error: std::io::Error| {
        Problem::file(format!("can't read {}: {error}", state.microvms().display()), Code::NotFound)
    };
    let entries = match record::living(&state.microvms()) {
        // Nothing has lived here yet.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        found => found.map_err(unreadable)?,
    };
    let jobs = jobs(&arguments.connection, state);
    let lines: Vec<_> = entries
        .iter()
        .map(|entry| Line { entry, job: jobs.get(&entry.summary.id.to_string()).copied() })
        .collect();
    arguments.connection.print(&lines, |lines, out| {
        out.line("ID            PHASE       CPUS    MEMORY  AGE      JOB     IMAGE")?;
        for Line { entry: Entry { summary, phase }, job } in lines {
            out.line(format_args!(
                "{:<14}{:<11}{:>5} {:>9}  {:<9}{:<8}{}",
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

/// A microVM, and the daemon's job in it.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    entry: &'a Entry,
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<JobId>,
}

/// Which job runs in which microVM, if there is a daemon that says so at once; the list does not
/// depend on one.
fn jobs(connection: &daemon::Connection, state: &StateDirectory) -> BTreeMap<String, JobId> {
    let Ok(client) = connection.client(Some(state.root())) else { return BTreeMap::new() };
    let asked = daemon::wait(async {
        let asked = tokio::time::timeout(DAEMON_TIME, client.microvms()).await;
        asked.unwrap_or(Err(ClientError::Silent))
    });
    let microvms = asked.unwrap_or_default().into_iter();
    microvms.filter_map(|microvm| Some((microvm.id, microvm.job?))).collect()
}

/// How long ago a time was.
fn age(since: &str) -> String {
    let elapsed = humantime::parse_rfc3339(since)
        .ok()
        .and_then(|since| SystemTime::now().duration_since(since).ok())
        .unwrap_or_default();
    table::brief(Duration::from_secs(elapsed.as_secs()))
}

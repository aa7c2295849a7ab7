//! The commands that call the daemon. Each prints for a person or, with `--json`, for a program.

mod jobs;
mod show;
mod submit;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::examples;
use super::output::{self, Output, OutputError};
use super::report::CliError;
use mayfly_api::client::{ApiClient, ClientError};
use mayfly_config::ApiConfig;
use mayfly_failure::Code;
use mayfly_host::state::StateDirectory;

/// The commands that call the daemon. The other help texts are in the files of the commands.
#[derive(Debug, Subcommand)]
pub(super) enum DaemonCommand {
    Submit(submit::SubmitArguments),
    /// List the daemon's jobs, newest first
    Jobs(jobs::JobsArguments),
    /// Print the output of a job
    #[command(after_help = examples::LOGS)]
    Logs(jobs::LogsArguments),
    /// Show why a job waits or how it ended, and how long each step took
    ///
    /// A waiting job has one of these blockers: no pool has its labels, its pool is at its maximum,
    /// the host's budget is used up, the image can't be used, microVMs fail to boot, GitHub rejects
    /// calls, is unreachable or limits the rate of calls, a microVM boots for it, a runner is
    /// registered for it, the daemon drains.
    #[command(after_help = EXPLAIN_EXAMPLES)]
    Explain(jobs::JobArguments),
    /// Cancel a running job, or a waiting local job
    ///
    /// A local job ends at once. For a running GitHub job, Mayfly interrupts the runner, which has
    /// `deadlines.farewell` to end the job and report to GitHub. Cancel a waiting GitHub job at
    /// GitHub.
    #[command(after_help = examples::CANCEL)]
    Cancel(jobs::JobArguments),
    /// List the daemon's pools and what blocks them
    #[command(after_help = examples::POOLS)]
    Pools(Connection),
    /// Show the state of the daemon
    #[command(after_help = examples::STATUS)]
    Status(Connection),
    /// Stop taking jobs, and stop the daemon when the running jobs have ended
    ///
    /// Returns at once. The daemon exits within `host.drain`. The next daemon takes over queued
    /// local jobs and jobs that still run then. `--end-jobs` also ends the running jobs, even
    /// during a drain: Mayfly interrupts the runners, which end their jobs and report to GitHub.
    #[command(after_help = examples::DRAIN)]
    Drain(show::DrainArguments),
    /// Reload the daemon's settings
    ///
    /// Prints which changed keys are in effect and which need a restart. If the settings are not
    /// valid, nothing changes.
    #[command(after_help = examples::RELOAD)]
    Reload(Connection),
}

const EXPLAIN_EXAMPLES: &str = "\
Examples:
  mayfly explain 7
  mayfly explain 7 --json | jq -r .blocker.code
  mayfly jobs --state queued        list the waiting jobs";

/// How to connect to the daemon, and how to print its response.
#[derive(Debug, Args)]
pub(super) struct Connection {
    /// Socket of the daemon [default: `api.sock` in the state directory]
    #[arg(long, value_name = "PATH", env = "MAYFLY_SOCKET")]
    socket: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Connection {
    pub(super) fn client(&self, state: Option<&Path>) -> Result<ApiClient, CliError> {
        if let Some(socket) = &self.socket {
            return Ok(ApiClient::new(socket));
        }
        let state =
            state.map_or_else(StateDirectory::default_path, |state| Ok(state.to_owned()))?;
        Ok(ApiClient::new(&state.join(ApiConfig::DEFAULT_SOCKET)))
    }

    /// Prints a response, as JSON if requested.
    pub(super) fn print<T: Serialize>(
        &self,
        response: &T,
        print_text: impl FnOnce(&T, &mut Output) -> Result<(), OutputError>,
    ) -> Result<(), CliError> {
        if self.json {
            let text = serde_json::to_string_pretty(response);
            let text = text.map_err(|error| CliError::file(error.to_string(), Code::Internal))?;
            return Ok(output::stdout().line(text)?);
        }
        Ok(print_text(response, &mut output::stdout())?)
    }
}

/// Runs a call of the API client to its end.
pub(super) fn wait<T>(work: impl Future<Output = Result<T, ClientError>>) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| CliError::file(error.to_string(), Code::Unavailable))?;
    Ok(runtime.block_on(work)?)
}

pub(super) fn run(command: &DaemonCommand, state: Option<&Path>) -> Result<ExitCode, CliError> {
    match command {
        DaemonCommand::Submit(arguments) => return submit::run(arguments, state),
        DaemonCommand::Jobs(arguments) => jobs::jobs(arguments, state)?,
        DaemonCommand::Logs(arguments) => jobs::logs(arguments, state)?,
        DaemonCommand::Explain(arguments) => jobs::explain(arguments, state)?,
        DaemonCommand::Cancel(arguments) => jobs::cancel(arguments, state)?,
        DaemonCommand::Pools(connection) => show::pools(connection, state)?,
        DaemonCommand::Status(connection) => show::status(connection, state)?,
        DaemonCommand::Drain(arguments) => show::drain(arguments, state)?,
        DaemonCommand::Reload(connection) => show::reload(connection, state)?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests;

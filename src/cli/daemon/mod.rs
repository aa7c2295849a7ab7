//! The verbs that ask the daemon: what each prints, for a person or, with `--json`, a program.

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
use super::report::Problem;
use crate::api::client::{Client, ClientError};
use crate::config::Api;
use crate::failure::Code;
use crate::host::state::StateDirectory;

/// What the daemon is asked. What has no words here has them in its own file.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    Submit(submit::SubmitArguments),
    /// List the daemon's jobs, the newest first
    Jobs(jobs::JobsArguments),
    /// Print what a job has written
    #[command(after_help = examples::LOGS)]
    Logs(jobs::LogsArguments),
    /// Say why a job is where it is, and how long each step took
    ///
    /// A job that waits waits for something that has a name: no pool has its labels, its pool is at
    /// its maximum, the host's budget is in use, the image can't be used, microVMs fail to boot,
    /// GitHub refuses, can't be reached or limits the rate of calls, a microVM boots for it, a
    /// runner is registered for it, the daemon drains.
    #[command(after_help = EXPLAIN_EXAMPLES)]
    Explain(jobs::JobArguments),
    /// End a job that runs, or a local one that waits
    ///
    /// A local job ends at once. The runner of a job of GitHub's is interrupted, ends its job, tells
    /// GitHub and has `deadlines.farewell` for that. One that waits at GitHub is cancelled there.
    #[command(after_help = examples::CANCEL)]
    Cancel(jobs::JobArguments),
    /// List the daemon's pools and what each waits for
    #[command(after_help = examples::POOLS)]
    Pools(Connection),
    /// Say how the daemon is
    #[command(after_help = examples::STATUS)]
    Status(Connection),
    /// Let the daemon take no more jobs and end when the running ones have ended
    ///
    /// Answers at once. The daemon ends within `host.drain`; local jobs that are queued, and jobs
    /// that still run then, are the next daemon's. With `--end-jobs`, also later, jobs that run are
    /// ended: runners are interrupted, end their jobs and tell GitHub.
    #[command(after_help = examples::DRAIN)]
    Drain(show::DrainArguments),
    /// Let the daemon read its settings again
    ///
    /// Prints which keys are in effect and which need a restart. Settings that are wrong change
    /// nothing.
    #[command(after_help = examples::RELOAD)]
    Reload(Connection),
}

const EXPLAIN_EXAMPLES: &str = "\
Examples:
  mayfly explain 7
  mayfly explain 7 --json | jq -r .blocker.code
  mayfly jobs --state queued        the numbers of the jobs that wait";

/// How the daemon is reached, and how its answer is printed.
#[derive(Debug, Args)]
pub(super) struct Connection {
    /// The daemon's socket [default: `api.sock` in the state directory]
    #[arg(long, value_name = "PATH", env = "MAYFLY_SOCKET")]
    socket: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Connection {
    pub(super) fn client(&self, state: Option<&Path>) -> Result<Client, Problem> {
        if let Some(socket) = &self.socket {
            return Ok(Client::new(socket));
        }
        let state =
            state.map_or_else(StateDirectory::default_path, |state| Ok(state.to_owned()))?;
        Ok(Client::new(&state.join(Api::DEFAULT_SOCKET)))
    }

    /// Prints an answer, as JSON if that was asked for.
    pub(super) fn print<T: Serialize>(
        &self,
        answer: &T,
        people: impl FnOnce(&T, &mut Output) -> Result<(), OutputError>,
    ) -> Result<(), Problem> {
        if self.json {
            let text = serde_json::to_string_pretty(answer);
            let text = text.map_err(|error| Problem::file(error.to_string(), Code::Internal))?;
            return Ok(output::stdout().line(text)?);
        }
        Ok(people(answer, &mut output::stdout())?)
    }
}

/// Waits for what a client does.
pub(super) fn wait<T>(work: impl Future<Output = Result<T, ClientError>>) -> Result<T, Problem> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Problem::file(error.to_string(), Code::Unavailable))?;
    Ok(runtime.block_on(work)?)
}

pub(super) fn run(verb: &Verb, state: Option<&Path>) -> Result<ExitCode, Problem> {
    match verb {
        Verb::Submit(arguments) => return submit::run(arguments, state),
        Verb::Jobs(arguments) => jobs::jobs(arguments, state)?,
        Verb::Logs(arguments) => jobs::logs(arguments, state)?,
        Verb::Explain(arguments) => jobs::explain(arguments, state)?,
        Verb::Cancel(arguments) => jobs::cancel(arguments, state)?,
        Verb::Pools(connection) => show::pools(connection, state)?,
        Verb::Status(connection) => show::status(connection, state)?,
        Verb::Drain(arguments) => show::drain(arguments, state)?,
        Verb::Reload(connection) => show::reload(connection, state)?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests;

//! `mayfly submit`: queues a command and, with `--wait`, behaves as if the command ran here.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use super::super::output;
use super::super::report::{self, CliError};
use super::{Connection, wait};
use mayfly_api::types::{JobState, JobView, Submission};
use mayfly_failure::Code;

/// Queue a command for a pool of the daemon.
///
/// Prints the job's number. With --wait, prints the command's output and exits with its status. The
/// job continues if the wait is interrupted.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SubmitArguments {
    /// Name of the pool
    #[arg(long, value_name = "NAME", default_value = "default")]
    pool: String,
    /// Set an environment variable for the command; without a value, pass on the current one
    #[arg(long, short = 'e', value_name = "NAME[=VALUE]", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Working directory of the command [default: the user's home directory]
    #[arg(long, short = 'w', value_name = "DIR")]
    workdir: Option<String>,
    /// User to run the command as [default: runner]
    #[arg(long, short = 'u', value_name = "NAME")]
    user: Option<String>,
    /// End the command after this time, e.g. 90s or 1h30m [default: the pool's deadline]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// Wait for the job to end, and print its output
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    connection: Connection,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

const EXAMPLES: &str = "\
Examples:
  mayfly submit --pool ci -- make test
  mayfly submit --pool ci --wait -e CI=1 -- sh -c 'echo $CI'
  mayfly logs -f $(mayfly submit --pool ci -- make test)";

pub(super) fn run(arguments: &SubmitArguments, state: Option<&Path>) -> Result<ExitCode, CliError> {
    let client = arguments.connection.client(state)?;
    let submission = submission(arguments);
    let job = wait(client.submit(&submission))?;
    if !arguments.wait {
        arguments.connection.print(&job, |job, out| out.line(job.id))?;
        return Ok(ExitCode::SUCCESS);
    }
    let json = arguments.connection.json;
    let job = wait(async {
        client
            .log(job.id, true, |piece| {
                // With --json, stdout contains only the job as JSON.
                if json {
                    // The job continues even if nobody reads its output.
                    let _ = std::io::stderr().write_all(piece);
                    return Ok(());
                }
                let mut stdout = output::stdout();
                stdout.write_all(piece)?;
                stdout.flush()
            })
            .await?;
        client.job(job.id).await
    })?;
    arguments.connection.print(&job, |job, _| {
        warn_of_failure(job);
        Ok(())
    })?;
    Ok(ExitCode::from(code(&job)))
}

fn submission(arguments: &SubmitArguments) -> Submission {
    Submission {
        pool: arguments.pool.clone(),
        command: arguments.command.clone(),
        environment: arguments.env.iter().cloned().collect(),
        timeout_ms: arguments
            .timeout
            .map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
        working_directory: arguments.workdir.clone(),
        user: arguments.user.clone(),
    }
}

/// Prints a warning if a job failed or was canceled.
fn warn_of_failure(job: &JobView) {
    if matches!(job.state, JobState::Failed | JobState::Cancelled) {
        let cause = job.cause.as_deref().unwrap_or("unknown cause");
        report::warning(&format!("job {} {}: {cause}", job.id, job.state));
    }
}

/// Returns the exit code for a job: its own, or the code for how it ended.
fn code(job: &JobView) -> u8 {
    job.exit_code.unwrap_or(match job.state {
        JobState::Finished => 0,
        JobState::Cancelled => Code::Interrupted as u8,
        // The log has ended, so the job does not run. It did not succeed.
        JobState::Failed | JobState::Queued | JobState::Claimed | JobState::Running => {
            Code::MachineFailed as u8
        }
    })
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, value.to_owned()),
        None => {
            (text, std::env::var(text).map_err(|_| "the variable is not set here; use NAME=VALUE")?)
        }
    };
    if name.is_empty() {
        return Err("the name of the variable is empty".to_owned());
    }
    Ok((name.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_split_at_the_first_equals_sign() {
        assert_eq!(variable("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert!(variable("=x").is_err());
        assert!(variable("MAYFLY_SURELY_NOT_SET").is_err());
    }

    #[test]
    fn a_failed_or_canceled_job_is_not_a_success() {
        let job = |state: &str, code: Option<u8>| -> JobView {
            serde_json::from_value(serde_json::json!({
                "id": 1, "source": "local", "pool": null, "state": state, "name": "x",
                "queued": "2026-01-01T00:00:00Z", "exit_code": code,
            }))
            .unwrap()
        };
        assert_eq!(code(&job("finished", Some(3))), 3);
        assert_eq!(code(&job("failed", None)), 125);
        assert_eq!(code(&job("failed", Some(124))), 124);
        assert_eq!(code(&job("cancelled", None)), 130);
    }
}

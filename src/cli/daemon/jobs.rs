//! `mayfly jobs`, `logs`, `explain` and `cancel`.

use std::io::Write;
use std::path::Path;

use super::super::output::{Output, OutputError, is_broken_pipe};
use super::super::report::CliError;
use super::super::table::{self, optional, sanitize};
use super::{Connection, wait};
use mayfly_api::client::ClientError;
use mayfly_api::present::{self, DESTINATION_HEADINGS, Fact, STEP_HEADINGS};
use mayfly_api::types::{Explanation, JobFilter, JobId, JobState, JobView, Time};

/// List the daemon's jobs, newest first.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mayfly jobs --state queued
  mayfly jobs --pool ci --limit 5 --json")]
pub(crate) struct JobsArguments {
    /// Show only jobs in this state: queued, claimed, running, finished, failed, cancelled
    #[arg(long, value_name = "STATE", value_parser = state)]
    state: Option<JobState>,
    /// Show only jobs of this pool
    #[arg(long, value_name = "NAME")]
    pool: Option<String>,
    /// Maximum number of jobs
    #[arg(long, value_name = "N", default_value_t = JobFilter::DEFAULT_LIMIT,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(JobFilter::MAX_LIMIT)))]
    limit: u32,
    #[command(flatten)]
    connection: Connection,
}

/// One job.
#[derive(Debug, clap::Args)]
pub(crate) struct JobArguments {
    /// Number of the job
    job: JobId,
    #[command(flatten)]
    connection: Connection,
}

/// The maximum number of destinations in an explanation.
const DESTINATIONS: usize = 20;

/// Print the output of a job.
#[derive(Debug, clap::Args)]
pub(crate) struct LogsArguments {
    /// Number of the job
    job: JobId,
    /// Continue until the job ends
    #[arg(long, short = 'f')]
    follow: bool,
    /// Socket of the daemon [default: `api.sock` in the state directory]
    #[arg(long, value_name = "PATH", env = "MAYFLY_SOCKET")]
    socket: Option<std::path::PathBuf>,
}

fn state(text: &str) -> Result<JobState, String> {
    serde_json::from_value(text.into())
        .map_err(|_| "expected queued, claimed, running, finished, failed or cancelled".to_owned())
}

pub(super) fn jobs(arguments: &JobsArguments, state: Option<&Path>) -> Result<(), CliError> {
    let filter = JobFilter {
        state: arguments.state,
        pool: arguments.pool.clone(),
        limit: Some(arguments.limit),
    };
    let jobs = wait(arguments.connection.client(state)?.jobs(&filter))?;
    arguments.connection.print(&jobs, |jobs, out| {
        let now = Time::now();
        let rows: Vec<_> = jobs.iter().map(|job| row(job, now)).collect();
        let heading = ["JOB", "STATE", "POOL", "QUEUED", "WAITED", "RAN", "FROM", "NAME"];
        table::print(out, heading, &rows)
    })
}

fn row(job: &JobView, now: Time) -> [String; 8] {
    let note = if job.warning.is_some() { ", see explain" } else { "" };
    [
        job.id.to_string(),
        format!("{}{note}", present::outcome(job).text),
        optional(job.pool.as_ref()),
        present::ago(job.queued, now),
        present::waited(job, now),
        optional(present::ran(job, now)),
        present::origin(job).to_owned(),
        present::name(job).to_owned(),
    ]
}

pub(super) fn logs(arguments: &LogsArguments, state: Option<&Path>) -> Result<(), CliError> {
    let connection = Connection { socket: arguments.socket.clone(), json: false };
    let client = connection.client(state)?;
    let pass_on = |piece: &[u8]| {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(piece)?;
        stdout.flush()
    };
    wait(async {
        match client.log(arguments.job, arguments.follow, pass_on).await {
            // Nobody reads the rest, and the job may run for long.
            Err(ClientError::Write(error)) if is_broken_pipe(&error) => Ok(()),
            other => other,
        }
    })
}

pub(super) fn cancel(arguments: &JobArguments, state: Option<&Path>) -> Result<(), CliError> {
    let job = wait(arguments.connection.client(state)?.cancel(arguments.job))?;
    arguments
        .connection
        .print(&job, |job, out| out.line(format_args!("job {} is {}", job.id, job.state)))
}

pub(super) fn explain(arguments: &JobArguments, state: Option<&Path>) -> Result<(), CliError> {
    let explanation = wait(arguments.connection.client(state)?.explain(arguments.job))?;
    arguments.connection.print(&explanation, |explanation, out| {
        let now = Time::now();
        explanation_lines(explanation, now).into_iter().try_for_each(|line| out.line(line))?;
        let (rows, more) = present::destinations(explanation, DESTINATIONS);
        table_if_any(out, STEP_HEADINGS, &present::steps(explanation, now))?;
        table_if_any(out, DESTINATION_HEADINGS, &rows)?;
        more.into_iter().try_for_each(|line| out.line(line))
    })
}

/// Prints an empty line and a table unless it has no rows.
fn table_if_any<const N: usize>(
    out: &mut Output,
    headings: [&str; N],
    rows: &[[String; N]],
) -> Result<(), OutputError> {
    if rows.is_empty() {
        return Ok(());
    }
    out.line("")?;
    table::print(out, headings, rows)
}

/// Returns the lines of text that explain a job.
fn explanation_lines(explanation: &Explanation, now: Time) -> Vec<String> {
    let job = &explanation.job;
    let mut lines = vec![format!("job {}: {}", job.id, sanitize(present::name(job)))];
    let mut field = |name: &str, value: &str| {
        lines.push(format!("  {name:<12} {}", sanitize(value)));
    };
    for (name, fact) in present::facts(explanation) {
        let value = match fact {
            Fact::Outcome(outcome) => outcome.text,
            Fact::Text(text) => text,
            Fact::Time(at) => moment(at, now),
            Fact::Page(id, url) => url.map_or_else(|| id.to_string(), str::to_owned),
        };
        field(name, &value);
    }
    for (label, note) in present::notes(explanation, now) {
        field(&label.to_lowercase(), &note.text);
    }
    let verdicts: Vec<_> = present::verdicts(explanation).into_iter().map(|one| one.text).collect();
    field("egress", &verdicts.join(", "));
    for line in present::traffic(explanation) {
        field("", &line);
    }
    lines
}

/// Returns a past time and how long ago it was.
pub(super) fn moment(at: Time, now: Time) -> String {
    format!("{} ({})", present::moment(at), present::ago(at, now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explanation_is_laid_out_and_has_no_control_characters() {
        let explanation: Explanation = serde_json::from_value(serde_json::json!({
            "job": {
                "id": 4, "source": "github", "pool": "ci", "state": "queued", "name": "build\u{1b}",
                "repository": "acme/site", "github_id": 1,
                "url": "https://github.com/acme/site/actions/runs/2/job/1",
                "queued": "2026-01-01T00:00:00Z",
            },
            "phases": [],
            "blocker": {
                "code": "rate_limit", "message": "GitHub's rate limit",
                "until": "2026-01-01T00:01:00Z",
            },
            "egress": {
                "allowed": 2, "refused": 1, "would_refuse": 0, "up": 2048, "down": 7,
                "destinations": [],
            },
        }))
        .unwrap();
        let now = Time(explanation.job.queued.0 + 15_000);
        assert_eq!(
            explanation_lines(&explanation, now),
            [
                "job 4: build?",
                "  state        queued",
                "  from         acme/site",
                "  pool         ci",
                "  queued       2026-01-01 00:00:00 UTC (15 s ago)",
                "  at GitHub    https://github.com/acme/site/actions/runs/2/job/1",
                "  waiting      GitHub's rate limit; next attempt in 45 s",
                "  egress       1 refused, 2 allowed",
                "               2 KiB sent, 7 B received",
            ]
        );
    }

    #[test]
    fn a_row_separates_waiting_and_running_time() {
        let job: JobView = serde_json::from_value(serde_json::json!({
            "id": 4, "source": "local", "pool": "ci", "state": "finished", "name": "true",
            "queued": "2026-01-01T00:00:00Z", "started": "2026-01-01T00:00:03Z",
            "ended": "2026-01-01T00:01:03Z", "exit_code": 0, "result": "exit 0",
        }))
        .unwrap();
        let now = Time(job.queued.0 + 120_000);
        assert_eq!(
            row(&job, now),
            ["4", "exit 0", "ci", "2 min ago", "3.0 s", "1 min 0 s", "submitted locally", "true"]
        );
        let warned = JobView { warning: Some("no log".to_owned()), ..job };
        assert_eq!(row(&warned, now)[1], "exit 0, see explain");
    }
}

//! `mayfly jobs`, `logs`, `explain` and `cancel`.

use std::io::Write;
use std::path::Path;

use super::super::output::is_broken_pipe;
use super::super::report::CliError;
use super::super::table::{self, brief, optional, sanitize};
use super::{Connection, wait};
use mayfly_api::client::ClientError;
use mayfly_api::types::{
    Blocker, EgressView, Explanation, JobFilter, JobId, JobState, JobView, Time,
};

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
        let heading = ["JOB", "STATE", "POOL", "QUEUED", "WAITED", "RAN", "RESULT", "NAME"];
        table::print(out, heading, &rows)
    })
}

fn row(job: &JobView, now: Time) -> [String; 8] {
    let waited = job.started.or(job.ended).unwrap_or(now).since(job.queued);
    let ran = job.started.map(|started| brief(job.ended.unwrap_or(now).since(started)));
    let name = match &job.repository {
        Some(repository) => format!("{repository}: {}", job.name),
        None => job.name.clone(),
    };
    [
        job.id.to_string(),
        job.state.to_string(),
        optional(job.pool.as_ref()),
        format!("{} ago", brief(now.since(job.queued))),
        brief(waited),
        optional(ran),
        result(job),
        name,
    ]
}

/// Returns the result of a job, with a note if the job has a warning.
fn result(job: &JobView) -> String {
    let result = optional(job.result.as_ref());
    if job.warning.is_some() { format!("{result}, see explain") } else { result }
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
        for line in explanation_lines(explanation, Time::now()) {
            out.line(line)?;
        }
        let rows: Vec<_> = steps(explanation, Time::now()).collect();
        if !rows.is_empty() {
            out.line("")?;
            table::print(out, ["STEP", "STARTED", "DURATION", ""], &rows)?;
        }
        let rows: Vec<_> = destinations(explanation).collect();
        if rows.is_empty() {
            return Ok(());
        }
        out.line("")?;
        table::print(out, ["DESTINATION", "VERDICT", "CONNECTIONS", "SENT", "RECEIVED"], &rows)
    })
}

/// Returns the rows of a job's steps. The last step of an ended job has no duration.
fn steps(explanation: &Explanation, now: Time) -> impl Iterator<Item = [String; 4]> {
    let is_over = explanation.job.state.is_over();
    explanation.phases.iter().map(move |phase| {
        let lasted = phase.lasted_ms.map(std::time::Duration::from_millis);
        let lasted = lasted.or_else(|| (!is_over).then(|| now.since(phase.at)));
        let detail = phase.detail.clone().unwrap_or_default();
        [phase.phase.clone(), phase.at.to_string(), optional(lasted.map(brief)), detail]
    })
}

/// Returns the rows of the first destinations that a job's microVM connected to or tried to.
fn destinations(explanation: &Explanation) -> impl Iterator<Item = [String; 5]> {
    let egress = explanation.egress.iter();
    egress.flat_map(|egress| &egress.destinations).take(DESTINATIONS).map(|one| {
        let port = if one.port == 0 { String::new() } else { format!(":{}", one.port) };
        let cause = one.cause.as_ref().map(|cause| format!(" ({cause})")).unwrap_or_default();
        [
            format!("{}{port}", one.host),
            format!("{}{cause}", one.verdict),
            one.connections.to_string(),
            one.up.to_string(),
            one.down.to_string(),
        ]
    })
}

/// Summarizes the connections of a job's microVM, including those that are not listed.
fn egress_summary(egress: &EgressView) -> Vec<String> {
    let EgressView { allowed, refused, would_refuse, up, down, .. } = egress;
    let mut lines = vec![format!("{allowed} allowed, {refused} refused")];
    if *would_refuse > 0 {
        lines.push(format!("{would_refuse} would be refused if the policy were enforced"));
    }
    lines.push(format!("{up} bytes sent, {down} received"));
    if egress.omitted > 0 {
        let omitted = egress.omitted;
        lines.push(format!("{omitted} more destinations are not listed: too many"));
    }
    if egress.unrecorded > 0 {
        lines.push(format!(
            "{} lines are missing in the egress record: too many",
            egress.unrecorded
        ));
    }
    let more = egress.destinations.len().saturating_sub(DESTINATIONS);
    if more > 0 {
        lines.push(format!("{more} more destinations: use mayfly explain --json"));
    }
    lines
}

/// Returns the lines of text that explain a job.
fn explanation_lines(explanation: &Explanation, now: Time) -> Vec<String> {
    let Explanation { job, blocker, black_box, .. } = explanation;
    let mut lines = vec![format!("job {} is {}: {}", job.id, job.state, sanitize(&job.name))];
    let mut field = |name: &str, value: Option<&str>| {
        lines.extend(value.map(|value| format!("  {name:<9} {}", sanitize(value))));
    };
    field("pool", job.pool.as_deref());
    field("from", job.repository.as_deref());
    field("at GitHub", job.url.as_deref());
    field("microVM", job.microvm.as_deref());
    field("result", job.result.as_deref());
    field("cause", job.cause.as_deref());
    field("warning", job.warning.as_deref());
    field("evidence", black_box.as_deref());
    for line in explanation.egress.iter().flat_map(egress_summary) {
        field("egress", Some(&line));
    }
    field("waits for", blocker.as_ref().map(|blocker| describe_blocker(blocker, now)).as_deref());
    lines
}

/// Describes a blocker and its remaining time.
pub(super) fn describe_blocker(blocker: &Blocker, now: Time) -> String {
    let until = blocker.until.filter(|until| *until > now);
    let until = until.map(|until| format!(" (for {} more)", brief(until.since(now))));
    format!("{}{}", blocker.message, until.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explanation_summarizes_egress_and_what_is_not_listed() {
        let row = |host: &str, verdict: &str, up: u64| {
            serde_json::json!({
                "host": host, "port": 443, "verdict": verdict, "connections": 1, "up": up, "down": 7,
            })
        };
        let mut rows = vec![row("upload.example", "allowed", 3_000_000)];
        rows.resize(30, row("\u{1b}evil", "refused", 0));
        let explanation: Explanation = serde_json::from_value(serde_json::json!({
            "job": {
                "id": 4, "source": "local", "pool": "ci", "state": "finished", "name": "build",
                "queued": "2026-01-01T00:00:00Z",
            },
            "phases": [],
            "egress": {
                "allowed": 1, "refused": 600, "would_refuse": 0, "up": 3_000_000, "down": 7,
                "omitted": 571, "unrecorded": 2, "destinations": rows,
            },
        }))
        .unwrap();
        assert_eq!(
            explanation_lines(&explanation, explanation.job.queued)[2..],
            [
                "  egress    1 allowed, 600 refused",
                "  egress    3000000 bytes sent, 7 received",
                "  egress    571 more destinations are not listed: too many",
                "  egress    2 lines are missing in the egress record: too many",
                "  egress    10 more destinations: use mayfly explain --json",
            ]
        );
        let rows: Vec<_> = destinations(&explanation).collect();
        assert_eq!(rows.len(), DESTINATIONS);
        assert_eq!(rows[0].join(" "), "upload.example:443 allowed 1 3000000 7");
    }

    #[test]
    fn the_last_step_of_an_ended_job_has_no_duration() {
        let last = |state: &str| {
            let explanation: Explanation = serde_json::from_value(serde_json::json!({
                "job": {
                    "id": 4, "source": "local", "pool": "ci", "state": state, "name": "build",
                    "queued": "2026-01-01T00:00:00Z",
                },
                "phases": [
                    { "phase": "queued", "at": "2026-01-01T00:00:00Z", "lasted_ms": 2000 },
                    { "phase": "destroyed", "at": "2026-01-01T00:00:02Z" },
                ],
            }))
            .unwrap();
            let now = Time(explanation.job.queued.0 + 62_000);
            steps(&explanation, now).map(|[_, _, lasted, _]| lasted).collect::<Vec<_>>()
        };
        assert_eq!(last("running"), ["2.0s", "1m"]);
        assert_eq!(last("finished"), ["2.0s", "-"]);
    }

    #[test]
    fn an_explanation_names_the_blocker_and_its_remaining_time() {
        let explanation: Explanation = serde_json::from_value(serde_json::json!({
            "job": {
                "id": 4, "source": "github", "pool": "ci", "state": "queued", "name": "build\u{1b}",
                "repository": "acme/site", "url": "https://github.com/acme/site/actions/runs/2/job/1",
                "queued": "2026-01-01T00:00:00Z",
            },
            "phases": [],
            "blocker": {
                "code": "rate_limit", "message": "GitHub's rate limit",
                "until": "2026-01-01T00:01:00Z",
            },
        }))
        .unwrap();
        let now = Time(explanation.job.queued.0 + 15_000);
        assert_eq!(
            explanation_lines(&explanation, now),
            [
                "job 4 is queued: build?",
                "  pool      ci",
                "  from      acme/site",
                "  at GitHub https://github.com/acme/site/actions/runs/2/job/1",
                "  waits for GitHub's rate limit (for 45s more)",
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
            ["4", "finished", "ci", "2m ago", "3.0s", "1m", "exit 0", "true"]
        );
        let warned = JobView { warning: Some("no log".to_owned()), ..job };
        assert_eq!(row(&warned, now)[6], "exit 0, see explain");
    }
}

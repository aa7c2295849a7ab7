//! `mayfly pools`, `status`, `drain` and `reload`.

use std::path::Path;
use std::time::Duration;

use super::super::report::{self, CliError};
use super::super::table::{self, optional};
use super::jobs::moment;
use super::{Connection, wait};
use mayfly_api::present;
use mayfly_api::types::{DaemonStatus, DrainRequest, Time};

pub(super) fn pools(connection: &Connection, state: Option<&Path>) -> Result<(), CliError> {
    let pools = wait(connection.client(state)?.pools())?;
    connection.print(&pools, |pools, out| {
        let now = Time::now();
        let rows: Vec<_> = pools
            .iter()
            .map(|pool| {
                [
                    pool.name.clone(),
                    pool.trigger.clone(),
                    present::usage(pool),
                    pool.min_idle.to_string(),
                    pool.waiting.to_string(),
                    pool.labels.join(","),
                    optional(pool.blocker.as_ref().map(|blocker| present::reason(blocker, now))),
                ]
            })
            .collect();
        let heading =
            ["POOL", "TRIGGER", "MICROVMS", "MIN IDLE", "WAITING", "LABELS", "BLOCKED BY"];
        table::print(out, heading, &rows)
    })
}

pub(super) fn status(connection: &Connection, state: Option<&Path>) -> Result<(), CliError> {
    let status = wait(connection.client(state)?.status())?;
    connection.print(&status, |status, out| {
        let mut facts = facts(status).into_iter();
        facts.try_for_each(|(name, value)| out.line(format_args!("{name:<10}{value}")))
    })
}

fn facts(status: &DaemonStatus) -> Vec<(&'static str, String)> {
    let state = if status.draining { "draining: takes no new jobs" } else { "running" };
    vec![
        ("daemon", format!("{} ({state}), process {}", status.version, status.pid)),
        ("since", moment(status.started, Time::now())),
        ("settings", optional(status.settings.as_ref())),
        ("github", optional(status.github.as_ref())),
        ("jobs", format!("{} waiting, {} running", status.waiting, status.running)),
        ("microVMs", status.microvms.to_string()),
    ]
}

/// The arguments of `mayfly drain`.
#[derive(Debug, clap::Args)]
pub(crate) struct DrainArguments {
    /// End the running jobs
    #[arg(long)]
    end_jobs: bool,
    /// Time limit for ending them, if shorter than `deadlines.farewell`
    #[arg(long, value_name = "DURATION", requires = "end_jobs",
          value_parser = humantime::parse_duration)]
    within: Option<Duration>,
    #[command(flatten)]
    connection: Connection,
}

pub(super) fn drain(arguments: &DrainArguments, state: Option<&Path>) -> Result<(), CliError> {
    let DrainArguments { end_jobs, within, connection } = arguments;
    let within = within.map(|within| u64::try_from(within.as_millis()).unwrap_or(u64::MAX));
    let request = DrainRequest { end_jobs: *end_jobs, within_ms: within };
    let report = wait(connection.client(state)?.drain(request))?;
    connection.print(&report, |report, out| {
        out.line(format_args!(
            "draining: the daemon takes no new jobs: {} running, {} queued; it exits within {}",
            report.running,
            report.queued,
            present::brief(report.until.since(Time::now()))
        ))
    })
}

pub(super) fn reload(connection: &Connection, state: Option<&Path>) -> Result<(), CliError> {
    let report = wait(connection.client(state)?.reload())?;
    report.warnings.iter().for_each(|warning| report::warning(warning));
    connection.print(&report, |report, out| {
        if report.applied.is_empty() && report.needs_restart.is_empty() {
            out.line("no settings have changed")?;
        }
        let applied = report.applied.iter().map(|key| format!("applied        {key}"));
        let rest = report.needs_restart.iter().map(|key| format!("needs restart  {key}"));
        applied.chain(rest).try_for_each(|line| out.line(line))
    })
}

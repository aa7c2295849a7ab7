//! `mayfly image audit`.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;

use super::say;
use crate::cli::report::Problem;
use crate::cli::table;
use crate::egress::policy::Policies;
use crate::host::state::StateDirectory;
use crate::image::hardening::audit::{Outcome, Report};
use crate::image::{Image, ImageError, Reference, Store};
use crate::machine::accelerator::Wish;
use crate::trial::{self, Bench};

/// Boot an image once and check each of its hardening controls from inside.
///
/// Prints a row for each control: what was looked at, what others ask for the same, and what was
/// seen. The exit status is 1 if a control failed.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mayfly image audit runner
  mayfly image audit runner --json | jq '.rows[] | select(.result == \"fail\")'

What each control is for: docs/reference/hardening.md.")]
pub(in crate::cli) struct AuditArguments {
    /// NAME, the newest build, or NAME@DIGEST-PREFIX
    #[arg(value_parser = super::reference)]
    image: Reference,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// What executes the guest's instructions: auto, kvm or tcg (software emulation)
    #[arg(long, value_name = "ACCELERATOR", default_value = "auto", value_parser = str::parse::<Wish>)]
    accel: Wish,
}

/// Where an image of the store is put on trial: with nothing to be reached.
pub(super) fn bench<'a>(
    store: &'a Store,
    state: &'a StateDirectory,
    accelerator: Wish,
) -> Result<Bench<'a>, Problem> {
    let egress = Policies::read(None)?.get("none")?.clone();
    Ok(Bench { store, state, accelerator, egress })
}

pub(super) fn run(
    arguments: &AuditArguments,
    store: &Store,
    state: &StateDirectory,
    output: &mut dyn Write,
) -> Result<ExitCode, Problem> {
    let image = store.find(&arguments.image)?;
    let report = trial::audit::run(&bench(store, state, arguments.accel)?, &image)?;
    if arguments.json {
        say(
            output,
            &serde_json::json!({
                "name": image.name, "digest": image.digest, "passed": report.passed(),
                "rows": report.rows,
            })
            .to_string(),
        )?;
    } else {
        show(&image, &report, output)?;
    }
    Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The letters of evidence that a row shows; `--json` has all.
const EVIDENCE: usize = 60;

fn show(image: &Image, report: &Report, output: &mut dyn Write) -> Result<(), ImageError> {
    let rows: Vec<[String; 4]> = report
        .rows
        .iter()
        .map(|row| {
            let evidence = row.evidence.split_whitespace().collect::<Vec<_>>().join(" ");
            let mut shown: String = evidence.chars().take(EVIDENCE).collect();
            if shown.len() < evidence.len() {
                shown.push('…');
            }
            [word(row.result).to_owned(), row.control.to_string(), row.reference.to_string(), shown]
        })
        .collect();
    for line in table::lines(["RESULT", "CONTROL", "REFERENCE", "SEEN"], &rows) {
        say(output, &line)?;
    }
    let count = |outcome| report.count(outcome);
    let (passed, failed, off) = (count(Outcome::Pass), count(Outcome::Fail), count(Outcome::Off));
    let image = format!("{}@{}", image.name, image.digest.short());
    say(output, &format!("{image}: {passed} passed, {failed} failed, {off} off"))
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Pass => "pass",
        Outcome::Fail => "FAIL",
        Outcome::Off => "off",
    }
}

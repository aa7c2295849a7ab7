//! `mayfly image audit`.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;

use super::print_line;
use crate::report::CliError;
use crate::table;
use mayfly_egress::policy::Policies;
use mayfly_host::state::StateDirectory;
use mayfly_image::hardening::audit::{AuditOutcome, AuditReport};
use mayfly_image::{Image, ImageError, Reference, Store};
use mayfly_machine::accelerator::AcceleratorPreference;
use mayfly_trial::TrialEnvironment;

/// Boot an image once and check each of its hardening controls from inside.
///
/// Prints a row for each control: the result, the control, the requirement of other standards that
/// it matches, and the evidence. Exits with 1 if a control failed.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mayfly image audit runner
  mayfly image audit runner --json | jq '.rows[] | select(.result == \"fail\")'

Purpose of each control: docs/reference/hardening.md.")]
pub(crate) struct AuditArguments {
    /// NAME (its current build) or NAME@DIGEST-PREFIX
    #[arg(value_parser = super::reference)]
    image: Reference,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Accelerator: auto, kvm or tcg (software emulation)
    #[arg(long, value_name = "ACCELERATOR", default_value = "auto", value_parser = str::parse::<AcceleratorPreference>)]
    accel: AcceleratorPreference,
}

/// Returns the environment for trials of an image, without network access.
pub(super) fn bench<'a>(
    store: &'a Store,
    state: &'a StateDirectory,
    accelerator: AcceleratorPreference,
) -> Result<TrialEnvironment<'a>, CliError> {
    let egress = Policies::read(None)?.get("none")?.clone();
    Ok(TrialEnvironment { store, state, accelerator, egress })
}

pub(super) fn run(
    arguments: &AuditArguments,
    store: &Store,
    state: &StateDirectory,
    output: &mut dyn Write,
) -> Result<ExitCode, CliError> {
    let image = store.find(&arguments.image)?;
    let report = mayfly_trial::audit::run(&bench(store, state, arguments.accel)?, &image)?;
    if arguments.json {
        print_line(
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

/// The maximum length of the evidence in a row. `--json` has all of it.
const EVIDENCE: usize = 60;

fn show(image: &Image, report: &AuditReport, output: &mut dyn Write) -> Result<(), ImageError> {
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
    for line in table::lines(["RESULT", "CONTROL", "REFERENCE", "EVIDENCE"], &rows) {
        print_line(output, &line)?;
    }
    let count = |outcome| report.count(outcome);
    let (passed, failed, off) =
        (count(AuditOutcome::Pass), count(AuditOutcome::Fail), count(AuditOutcome::Off));
    let image = format!("{}@{}", image.name, image.digest.short());
    print_line(output, &format!("{image}: {passed} passed, {failed} failed, {off} off"))
}

fn word(outcome: AuditOutcome) -> &'static str {
    match outcome {
        AuditOutcome::Pass => "pass",
        AuditOutcome::Fail => "FAIL",
        AuditOutcome::Off => "off",
    }
}

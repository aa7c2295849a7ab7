//! `mayfly image refresh`: checks for updates, builds, tests, and then moves the name.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::audit::bench;
use super::build_inputs::{InputArguments, recipe_of};
use super::print_line;
use super::steps::Steps;
use crate::report::CliError;
use mayfly_host::state::StateDirectory;
use mayfly_image::build::updates::{self, PackageOrigin};
use mayfly_image::build::{Builder, Progress, RunnerSource, agent_digest};
use mayfly_image::hardening::audit::{AuditOutcome, AuditReport};
use mayfly_image::refresh::{AvailableInputs, RefreshReason, reasons};
use mayfly_image::{Digest, Image, ImageName, Reference, Store};
use mayfly_machine::accelerator::AcceleratorPreference;
use mayfly_trial::TrialEnvironment;
use mayfly_trial::smoke::SmokeResult;

/// Rebuild an image if its packages, its runner, the agent or the recipe have changed.
///
/// Boots and audits the new build and runs a small job in it. If all succeed, points the name to
/// it. Otherwise the name keeps its current build and the exit status is 1. `mayfly image rollback`
/// returns to the previous build later.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mayfly image refresh runner --config /etc/mayfly/mayfly.toml
  mayfly image refresh base --check

A timer that runs it every night: docs/guide/bare-metal.md.")]
pub(crate) struct RefreshArguments {
    /// Name of the image
    #[arg(value_parser = name)]
    image: ImageName,
    /// Recipe that it was built from [default: the one in its manifest]
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// Only show what has changed; exits with 1 if something has
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    inputs: InputArguments,
    /// Accelerator: auto, kvm or tcg (software emulation)
    #[arg(long, value_name = "ACCELERATOR", default_value = "auto", value_parser = str::parse::<AcceleratorPreference>)]
    accel: AcceleratorPreference,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn name(text: &str) -> Result<ImageName, String> {
    text.parse().map_err(|error: mayfly_image::InvalidName| error.to_string())
}

/// The result of a refresh.
#[derive(Debug, Serialize)]
struct Refreshed {
    name: ImageName,
    /// The build that the name pointed to before.
    before: Digest,
    /// Why the image was, or would be, rebuilt.
    reasons: Vec<RefreshReason>,
    /// The new build.
    candidate: Option<Digest>,
    audit: Option<AuditReport>,
    smoke: Option<SmokeResult>,
    /// Whether the name points to the new build.
    moved: bool,
}

pub(super) fn run(
    arguments: &RefreshArguments,
    store: &Store,
    state: &StateDirectory,
    output: &mut dyn Write,
) -> Result<ExitCode, CliError> {
    let current = store.find(&Reference { name: arguments.image.clone(), digest_prefix: None })?;
    let progress = Steps::new();
    let result = refresh(arguments, &current, (store, state), &progress);
    progress.finish(false);
    let refreshed = result?;
    let well = refreshed.moved || refreshed.reasons.is_empty();
    if arguments.json {
        print_line(output, &serde_json::json!(refreshed).to_string())?;
    } else {
        show(&refreshed, &current, output)?;
    }
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn refresh(
    arguments: &RefreshArguments,
    current: &Image,
    (store, state): (&Store, &StateDirectory),
    progress: &Steps,
) -> Result<Refreshed, CliError> {
    let recipe = recipe_of(current, arguments.recipe.as_deref())?;
    let agent = arguments.inputs.agent()?;
    let runner = arguments.inputs.runner(&recipe)?;
    progress.step("looking for newer packages");
    let origin = PackageOrigin {
        suite: &recipe.suite,
        mirror: recipe.content.mirror.as_ref(),
        kernel: &recipe.kernel,
    };
    let available = AvailableInputs {
        packages: updates::find(
            store,
            &current.manifest,
            &origin,
            arguments.inputs.timeout,
            progress,
        )?,
        runner: runner.as_ref().and_then(release),
        agent: agent_digest(&agent)?,
        recipe: recipe.digest.clone(),
    };
    let mut refreshed = Refreshed {
        name: current.name.clone(),
        before: current.digest.clone(),
        reasons: reasons(&current.manifest, available),
        candidate: None,
        audit: None,
        smoke: None,
        moved: false,
    };
    if refreshed.reasons.is_empty() || arguments.check {
        return Ok(refreshed);
    }
    let builder = Builder {
        store,
        recipe: &recipe,
        agent: &agent,
        runner: runner.as_ref(),
        date: None,
        timeout: arguments.inputs.timeout,
        progress,
    };
    let candidate = builder.build_candidate()?;
    let image = &candidate.image;
    refreshed.candidate = Some(image.digest.clone());
    if try_out(&bench(store, state, arguments.accel)?, image, progress, &mut refreshed)? {
        store.promote(&candidate)?;
        refreshed.moved = true;
    }
    Ok(refreshed)
}

/// Returns the version and digest of a release. A local archive has neither.
fn release(source: &RunnerSource) -> Option<(String, Digest)> {
    match source {
        RunnerSource::Release(release) => {
            Some((release.version.to_string(), release.sha256.clone()))
        }
        RunnerSource::Archive(_) => None,
    }
}

/// Tests the candidate. Returns whether the name may point to it.
fn try_out(
    bench: &TrialEnvironment<'_>,
    candidate: &Image,
    progress: &Steps,
    refreshed: &mut Refreshed,
) -> Result<bool, CliError> {
    progress.step("auditing the new build");
    let report = mayfly_trial::audit::run(bench, candidate)?;
    let audited = report.passed();
    refreshed.audit = Some(report);
    if !audited {
        return Ok(false);
    }
    progress.step("running a test job");
    let smoke = mayfly_trial::smoke::run(bench, candidate)?;
    let passed = smoke.passed;
    refreshed.smoke = Some(smoke);
    Ok(passed)
}

fn show(refreshed: &Refreshed, current: &Image, output: &mut dyn Write) -> Result<(), CliError> {
    let mut print_line = |line: &str| print_line(output, line);
    let name = &refreshed.name;
    let before = format!("{name}@{}", refreshed.before.short());
    if refreshed.reasons.is_empty() {
        let packages = current.manifest.packages.len();
        return Ok(print_line(&format!("{before} is up to date ({packages} packages)"))?);
    }
    for reason in &refreshed.reasons {
        print_line(&format!("{reason}"))?;
    }
    let Some(candidate) = &refreshed.candidate else {
        return Ok(print_line(&format!("{before} needs a rebuild"))?);
    };
    let candidate = format!("{name}@{}", candidate.short());
    for row in refreshed.audit.iter().flat_map(|report| &report.rows) {
        if row.result == AuditOutcome::Fail {
            print_line(&format!("audit failed: {}: {}", row.control, row.evidence))?;
        }
    }
    if let Some(smoke) = refreshed.smoke.as_ref().filter(|smoke| !smoke.passed) {
        print_line(&format!("the test job failed: {}", smoke.detail))?;
    }
    let line = if refreshed.moved {
        format!("{name} is now {candidate}; `mayfly image rollback {name}` returns to {before}")
    } else {
        format!("{name} is still {before}; inspect {candidate} with `mayfly run --image`")
    };
    Ok(print_line(&line)?)
}

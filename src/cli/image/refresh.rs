//! `mayfly image refresh`: looks for what is newer, builds, tries, and only then moves the name.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::audit::bench;
use super::inputs::{InputArguments, recipe_of};
use super::say;
use super::steps::Steps;
use crate::cli::report::Problem;
use crate::host::state::StateDirectory;
use crate::image::build::newer::{self, Origin};
use crate::image::build::{Builder, Progress, RunnerSource, digest_of_agent};
use crate::image::hardening::audit::{Outcome, Report};
use crate::image::{Digest, Image, ImageName, Reference, Store};
use crate::machine::accelerator::Wish;
use crate::trial::refresh::{Available, Reason, reasons};
use crate::trial::smoke::Smoke;
use crate::trial::{self, Bench};

/// Build an image anew if its packages, its runner, the agent or the recipe have changed.
///
/// The new build is booted, audited and given a small job first. Only if all went well its name
/// means it; else the name means what it meant, and the exit status is 1. `mayfly image rollback`
/// goes back afterwards, too.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mayfly image refresh runner --config /etc/mayfly/mayfly.toml
  mayfly image refresh base --check

A timer that does so every night: docs/guide/bare-metal.md.")]
pub(in crate::cli) struct RefreshArguments {
    /// The image's name
    #[arg(value_parser = name)]
    image: ImageName,
    /// The recipe that it was built from [default: as its manifest has it]
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// Only say what is newer; the exit status is 1 if something is
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    inputs: InputArguments,
    /// What executes the guest's instructions: auto, kvm or tcg (software emulation)
    #[arg(long, value_name = "ACCELERATOR", default_value = "auto", value_parser = str::parse::<Wish>)]
    accel: Wish,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn name(text: &str) -> Result<ImageName, String> {
    text.parse().map_err(|error: crate::image::InvalidName| error.to_string())
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Refreshed {
    name: ImageName,
    /// What the name meant before.
    before: Digest,
    /// Why the image was, or would be, built anew.
    reasons: Vec<Reason>,
    /// The new build.
    candidate: Option<Digest>,
    audit: Option<Report>,
    smoke: Option<Smoke>,
    /// Whether the name means the new build.
    moved: bool,
}

pub(super) fn run(
    arguments: &RefreshArguments,
    store: &Store,
    state: &StateDirectory,
    output: &mut dyn Write,
) -> Result<ExitCode, Problem> {
    let current = store.find(&Reference { name: arguments.image.clone(), digest_prefix: None })?;
    let progress = Steps::new();
    let result = refresh(arguments, &current, (store, state), &progress);
    progress.finish(false);
    let refreshed = result?;
    let well = refreshed.moved || refreshed.reasons.is_empty();
    if arguments.json {
        say(output, &serde_json::json!(refreshed).to_string())?;
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
) -> Result<Refreshed, Problem> {
    let recipe = recipe_of(current, arguments.recipe.as_deref())?;
    let agent = arguments.inputs.agent()?;
    let runner = arguments.inputs.runner(&recipe)?;
    progress.step("looking for newer packages");
    let origin = Origin {
        suite: &recipe.suite,
        mirror: recipe.content.mirror.as_ref(),
        kernel: &recipe.kernel,
    };
    let available = Available {
        packages: newer::look(
            store,
            &current.manifest,
            &origin,
            arguments.inputs.timeout,
            progress,
        )?,
        runner: runner.as_ref().and_then(release),
        agent: digest_of_agent(&agent)?,
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
        store.adopt(&candidate)?;
        refreshed.moved = true;
    }
    Ok(refreshed)
}

/// Version and digest of a release; a local archive is compared by nothing but its image.
fn release(source: &RunnerSource) -> Option<(String, Digest)> {
    match source {
        RunnerSource::Release(release) => {
            Some((release.version.to_string(), release.sha256.clone()))
        }
        RunnerSource::Archive(_) => None,
    }
}

/// Whether the candidate may take the name.
fn try_out(
    bench: &Bench<'_>,
    candidate: &Image,
    progress: &Steps,
    refreshed: &mut Refreshed,
) -> Result<bool, Problem> {
    progress.step("auditing the new build");
    let report = trial::audit::run(bench, candidate)?;
    let audited = report.passed();
    refreshed.audit = Some(report);
    if !audited {
        return Ok(false);
    }
    progress.step("running a job in it");
    let smoke = trial::smoke::run(bench, candidate)?;
    let passed = smoke.passed;
    refreshed.smoke = Some(smoke);
    Ok(passed)
}

fn show(refreshed: &Refreshed, current: &Image, output: &mut dyn Write) -> Result<(), Problem> {
    let mut say = |line: &str| say(output, line);
    let name = &refreshed.name;
    let before = format!("{name}@{}", refreshed.before.short());
    if refreshed.reasons.is_empty() {
        let packages = current.manifest.packages.len();
        return Ok(say(&format!("{before} is up to date ({packages} packages)"))?);
    }
    for reason in &refreshed.reasons {
        say(&format!("{reason}"))?;
    }
    let Some(candidate) = &refreshed.candidate else {
        return Ok(say(&format!("{before} is to be built anew"))?);
    };
    let candidate = format!("{name}@{}", candidate.short());
    for row in refreshed.audit.iter().flat_map(|report| &report.rows) {
        if row.result == Outcome::Fail {
            say(&format!("audit failed: {}: {}", row.control, row.evidence))?;
        }
    }
    if let Some(smoke) = refreshed.smoke.as_ref().filter(|smoke| !smoke.passed) {
        say(&format!("the job failed: {}", smoke.detail))?;
    }
    let line = if refreshed.moved {
        format!("{name} is {candidate} now; `mayfly image rollback {name}` goes back to {before}")
    } else {
        format!("{name} stays {before}; look into {candidate} with `mayfly run --image`")
    };
    Ok(say(&line)?)
}

//! `mayfly image build`.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::steps::Steps;
use super::{newest, say};
use crate::cli::report::Problem;
use crate::image::Store;
use crate::image::build::{Builder, RunnerSource, find_agent};
use crate::image::recipe::{Recipe, RunnerVersion, Setting};

/// What a build can be told beside its recipe.
#[derive(Debug, Args)]
pub(in crate::cli) struct BuildArguments {
    /// The recipe, a TOML file
    recipe: PathBuf,
    /// Set a key of the recipe, or add to a list of it with `+=`; a value is TOML or plain text
    ///
    /// For example: --set size=4G --set packages+=jq --set kernel.guest_modules+=overlay
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    settings: Vec<Setting>,
    /// The archive of GitHub's runner that is put into the image, for a recipe with a runner
    #[arg(long, value_name = "FILE")]
    runner_archive: Option<PathBuf>,
    /// The settings whose GitHub account is asked for the newest runner, where the recipe wants it
    #[arg(long, env = "MAYFLY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The guest agent, a static program [default: beside `mayfly`, else in ../libexec/mayfly]
    #[arg(long, env = "MAYFLY_GUEST", value_name = "PATH")]
    agent: Option<PathBuf>,
    /// How long the build may take
    #[arg(long, default_value = "20min", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Seconds since 1970 that stand for the time of the build
    #[arg(long, env = "SOURCE_DATE_EPOCH", value_name = "SECONDS", hide = true)]
    date: Option<u64>,
}

fn setting(text: &str) -> Result<Setting, String> {
    text.parse().map_err(|error: crate::image::InvalidName| error.to_string())
}

pub(super) fn build(
    arguments: &BuildArguments,
    store: &Store,
    output: &mut dyn Write,
) -> Result<(), Problem> {
    let recipe = Recipe::load(&arguments.recipe, &arguments.settings)?;
    let agent = find_agent(arguments.agent.as_deref())?;
    let runner = runner_source(arguments, &recipe)?;
    let progress = Steps::new();
    let builder = Builder {
        store,
        recipe: &recipe,
        agent: &agent,
        runner: runner.as_ref(),
        date: arguments.date,
        timeout: arguments.timeout,
        progress: &progress,
    };
    let result = builder.build();
    progress.finish(result.is_ok());
    let image = result?;
    Ok(say(output, &format!("{}@{}", image.name, image.digest))?)
}

/// Where the runner comes from, if not from where the recipe says.
fn runner_source(
    arguments: &BuildArguments,
    recipe: &Recipe,
) -> Result<Option<RunnerSource>, Problem> {
    if let Some(archive) = &arguments.runner_archive {
        return Ok(Some(RunnerSource::Archive(archive.clone())));
    }
    let runner = recipe.content.runner.as_ref();
    match (runner.and_then(|runner| runner.version), &arguments.config) {
        (Some(RunnerVersion::Latest), Some(config)) => newest::runner(config).map(Some),
        _ => Ok(None),
    }
}

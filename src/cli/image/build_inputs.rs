//! The arguments that are common to the commands that build an image.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::newest_runner;
use crate::report::CliError;
use mayfly_image::build::{RunnerSource, find_agent};
use mayfly_image::recipe::{Recipe, RunnerVersion, Setting};
use mayfly_image::{Image, ImageError, InvalidName};

/// The inputs of a build besides its recipe.
#[derive(Debug, Args)]
pub(crate) struct InputArguments {
    /// Archive of GitHub's runner to install, for a recipe with a runner
    #[arg(long, value_name = "FILE")]
    runner_archive: Option<PathBuf>,
    /// Settings file whose GitHub account is used to find the newest runner, for a recipe with it
    #[arg(long, env = "MAYFLY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Guest agent, a static program [default: next to `mayfly`, else in ../libexec/mayfly]
    #[arg(long, env = "MAYFLY_GUEST", value_name = "PATH")]
    agent: Option<PathBuf>,
    /// Time limit for the build
    #[arg(long, default_value = "20min", value_parser = humantime::parse_duration)]
    pub(super) timeout: Duration,
}

impl InputArguments {
    /// Returns the path of the agent.
    pub(super) fn agent(&self) -> Result<PathBuf, ImageError> {
        find_agent(self.agent.as_deref())
    }

    /// Returns the source of the runner if it is not the one of the recipe.
    pub(super) fn runner(&self, recipe: &Recipe) -> Result<Option<RunnerSource>, CliError> {
        if let Some(archive) = &self.runner_archive {
            return Ok(Some(RunnerSource::Archive(archive.clone())));
        }
        let runner = recipe.content.runner.as_ref();
        match (runner.and_then(|runner| runner.version), &self.config) {
            (Some(RunnerVersion::Latest), Some(config)) => newest_runner::find(config).map(Some),
            _ => Ok(None),
        }
    }
}

/// Returns the recipe to rebuild an image from: the one at `path` with the image's `--set` values,
/// or the one in its manifest.
pub(super) fn recipe_of(image: &Image, path: Option<&Path>) -> Result<Recipe, CliError> {
    let Some(path) = path else { return Ok(Recipe::of_manifest(&image.manifest)?) };
    let settings = image.manifest.inputs.settings.iter();
    let settings: Result<Vec<Setting>, InvalidName> = settings.map(|text| text.parse()).collect();
    let settings = settings.map_err(|error| CliError::usage(error.to_string()))?;
    Ok(Recipe::load(path, &settings)?)
}

//! What the verbs that build an image can be told beside its recipe.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::newest;
use crate::cli::report::Problem;
use crate::image::build::{RunnerSource, find_agent};
use crate::image::recipe::{Recipe, RunnerVersion, Setting};
use crate::image::{Image, ImageError, InvalidName};

/// What goes into an image beside its recipe.
#[derive(Debug, Args)]
pub(in crate::cli) struct InputArguments {
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
    pub(super) timeout: Duration,
}

impl InputArguments {
    /// The agent's path.
    pub(super) fn agent(&self) -> Result<PathBuf, ImageError> {
        find_agent(self.agent.as_deref())
    }

    /// Where the runner comes from, if not from where the recipe says.
    pub(super) fn runner(&self, recipe: &Recipe) -> Result<Option<RunnerSource>, Problem> {
        if let Some(archive) = &self.runner_archive {
            return Ok(Some(RunnerSource::Archive(archive.clone())));
        }
        let runner = recipe.content.runner.as_ref();
        match (runner.and_then(|runner| runner.version), &self.config) {
            (Some(RunnerVersion::Latest), Some(config)) => newest::runner(config).map(Some),
            _ => Ok(None),
        }
    }
}

/// The recipe that an image is to be built from again: the one at `path`, set as it was then, else
/// the one that its manifest has.
pub(super) fn recipe_of(image: &Image, path: Option<&Path>) -> Result<Recipe, Problem> {
    let Some(path) = path else { return Ok(Recipe::of_manifest(&image.manifest)?) };
    let settings = image.manifest.inputs.settings.iter();
    let settings: Result<Vec<Setting>, InvalidName> = settings.map(|text| text.parse()).collect();
    let settings = settings.map_err(|error| Problem::usage(error.to_string()))?;
    Ok(Recipe::load(path, &settings)?)
}

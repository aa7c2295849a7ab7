//! `mayfly image build`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::inputs::InputArguments;
use super::say;
use super::steps::Steps;
use crate::cli::report::Problem;
use crate::image::Store;
use crate::image::build::Builder;
use crate::image::recipe::{Recipe, Setting};

/// What a build can be told beside its recipe.
#[derive(Debug, Args)]
pub(in crate::cli) struct BuildArguments {
    /// The recipe, a TOML file
    recipe: PathBuf,
    /// Set a key of the recipe, or add to a list of it with `+=`; a value is TOML or plain text
    ///
    /// For example: `--set size=4G --set packages+=jq --set kernel.guest_modules+=overlay`
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    settings: Vec<Setting>,
    #[command(flatten)]
    inputs: InputArguments,
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
    let agent = arguments.inputs.agent()?;
    let runner = arguments.inputs.runner(&recipe)?;
    let progress = Steps::new();
    let builder = Builder {
        store,
        recipe: &recipe,
        agent: &agent,
        runner: runner.as_ref(),
        date: arguments.date,
        timeout: arguments.inputs.timeout,
        progress: &progress,
    };
    let result = builder.build();
    progress.finish(result.is_ok());
    let image = result?;
    Ok(say(output, &format!("{}@{}", image.name, image.digest))?)
}

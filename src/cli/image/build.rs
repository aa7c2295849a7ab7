//! `mayfly image build`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::build_inputs::InputArguments;
use super::print_line;
use super::steps::Steps;
use crate::report::CliError;
use mayfly_image::Store;
use mayfly_image::build::Builder;
use mayfly_image::recipe::{Recipe, Setting};

/// The arguments of `mayfly image build`.
#[derive(Debug, Args)]
pub(crate) struct BuildArguments {
    /// Recipe, a TOML file
    recipe: PathBuf,
    /// Set a key of the recipe, or append to a list with `+=`; a value is TOML or plain text
    ///
    /// For example: `--set size=4G --set packages+=jq --set kernel.guest_modules+=overlay`
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    settings: Vec<Setting>,
    #[command(flatten)]
    inputs: InputArguments,
    /// Build time in seconds since 1970
    #[arg(long, env = "SOURCE_DATE_EPOCH", value_name = "SECONDS", hide = true)]
    date: Option<u64>,
}

fn setting(text: &str) -> Result<Setting, String> {
    text.parse().map_err(|error: mayfly_image::InvalidName| error.to_string())
}

pub(super) fn build(
    arguments: &BuildArguments,
    store: &Store,
    output: &mut dyn Write,
) -> Result<(), CliError> {
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
    Ok(print_line(output, &format!("{}@{}", image.name, image.digest))?)
}

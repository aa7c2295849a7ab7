//! `mayfly image rebuild-check`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::build_inputs::{InputArguments, recipe_of};
use super::steps::Steps;
use super::{diff, print_line, reference};
use crate::report::CliError;
use crate::table::sanitize;
use mayfly_image::build::{Builder, Rebuilt};
use mayfly_image::{Image, ImageError, Reference, Store};

/// The maximum number of files that differ in the text output.
const SHOWN: usize = 40;

/// The arguments of `mayfly image rebuild-check`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mayfly image rebuild-check base
  mayfly image rebuild-check runner --runner-archive actions-runner.tar.gz

The store keeps nothing of the rebuild. Exits with 0 if the result is identical, else with 65. Prints
the differences: packages, build tools, parts, and files of the root file system.")]
pub(super) struct RebuildArguments {
    /// NAME (its current build) or NAME@DIGEST-PREFIX
    #[arg(value_parser = reference)]
    image: Reference,
    /// Recipe that the image was built from [default: the one in its manifest]
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    #[command(flatten)]
    inputs: InputArguments,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(
    arguments: &RebuildArguments,
    store: &Store,
    output: &mut dyn Write,
) -> Result<(), CliError> {
    let image = store.find(&arguments.image)?;
    let recipe = recipe_of(&image, arguments.recipe.as_deref())?;
    let agent = arguments.inputs.agent()?;
    let runner = arguments.inputs.runner(&recipe)?;
    let progress = Steps::new();
    let builder = Builder {
        store,
        recipe: &recipe,
        agent: &agent,
        runner: runner.as_ref(),
        date: None,
        timeout: arguments.inputs.timeout,
        progress: &progress,
    };
    let result = builder.rebuild(&image);
    progress.finish(result.is_ok());
    let rebuilt = result?;
    let same = rebuilt.digest == image.digest;
    if arguments.json {
        print_line(output, &to_json(&image, &rebuilt).to_string())?;
    } else if same {
        print_line(
            output,
            &format!("{}@{} was rebuilt and is identical", image.name, image.digest),
        )?;
    } else {
        show(&rebuilt, output)?;
    }
    if same {
        return Ok(());
    }
    let image = format!("{}@{}", image.name, image.digest.short());
    Err(ImageError::RebuildMismatch { image, rebuilt: rebuilt.digest }.into())
}

fn to_json(image: &Image, rebuilt: &Rebuilt) -> serde_json::Value {
    serde_json::json!({
        "name": image.name,
        "digest": image.digest,
        "rebuilt": rebuilt.digest,
        "same": rebuilt.digest == image.digest,
        "changes": rebuilt.changes,
        "files": rebuilt.files,
    })
}

fn show(rebuilt: &Rebuilt, output: &mut dyn Write) -> Result<(), ImageError> {
    diff::show(&rebuilt.changes, output)?;
    if rebuilt.files.is_empty() {
        return Ok(());
    }
    print_line(output, "files")?;
    for change in rebuilt.files.iter().take(SHOWN) {
        print_line(output, &format!("  {:<8} {}", change.difference, sanitize(&change.path)))?;
    }
    match rebuilt.files.len().saturating_sub(SHOWN) {
        0 => Ok(()),
        more => print_line(output, &format!("  and {more} more: use --json")),
    }
}

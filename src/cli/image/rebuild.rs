//! `mayfly image rebuild-check`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::inputs::{InputArguments, recipe_of};
use super::steps::Steps;
use super::{diff, reference, say};
use crate::cli::report::Problem;
use crate::cli::table::plain;
use crate::image::build::{Builder, Rebuilt};
use crate::image::{Image, ImageError, Reference, Store};

/// How many files that differ are shown to a person.
const SHOWN: usize = 40;

/// What is built again, and from what.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mayfly image rebuild-check base
  mayfly image rebuild-check runner --runner-archive actions-runner.tar.gz

The store keeps nothing of it. The exit code is 0 if it is the same, 65 if it is another; what
differs is printed: packages, programs that made it, parts, and files of the root file system.")]
pub(super) struct RebuildArguments {
    /// NAME, the newest build, or NAME@DIGEST-PREFIX
    #[arg(value_parser = reference)]
    image: Reference,
    /// The recipe that the image was built from [default: as its manifest has it]
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
) -> Result<(), Problem> {
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
        say(output, &answer(&image, &rebuilt).to_string())?;
    } else if same {
        say(output, &format!("{}@{} was built again, and is the same", image.name, image.digest))?;
    } else {
        show(&rebuilt, output)?;
    }
    if same {
        return Ok(());
    }
    let image = format!("{}@{}", image.name, image.digest.short());
    Err(ImageError::NotTheSame { image, rebuilt: rebuilt.digest }.into())
}

fn answer(image: &Image, rebuilt: &Rebuilt) -> serde_json::Value {
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
    say(output, "files")?;
    for change in rebuilt.files.iter().take(SHOWN) {
        say(output, &format!("  {:<8} {}", change.difference, plain(&change.path)))?;
    }
    match rebuilt.files.len().saturating_sub(SHOWN) {
        0 => Ok(()),
        more => say(output, &format!("  and {more} more (--json has them)")),
    }
}

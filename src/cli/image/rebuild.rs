//! `mayfly image rebuild-check`.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::steps::Steps;
use super::{diff, reference, say};
use crate::cli::table::plain;
use crate::image::build::{Builder, Rebuilt, find_agent};
use crate::image::recipe::Recipe;
use crate::image::{Image, ImageError, Reference, Store};

/// How many files that differ are shown to a person.
const SHOWN: usize = 40;

/// What is built again, and from what.
#[derive(Debug, Args)]
#[command(after_help = "\
The store keeps nothing of it. The exit code is 0 if it is the same, 65 if it is another; what
differs is printed: packages, programs that made it, parts, and files of the root file system.

Examples:
  mayfly image rebuild-check base --recipe images/base/image.toml")]
pub(super) struct RebuildArguments {
    /// NAME, the newest build, or NAME@DIGEST-PREFIX
    #[arg(value_parser = reference)]
    image: Reference,
    /// The recipe that the image was built from
    #[arg(long, value_name = "FILE")]
    recipe: PathBuf,
    /// The guest agent that is in the image [default: as for `build`]
    #[arg(long, env = "MAYFLY_GUEST", value_name = "PATH")]
    agent: Option<PathBuf>,
    /// How long the build may take
    #[arg(long, default_value = "20min", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(
    arguments: &RebuildArguments,
    store: &Store,
    output: &mut dyn Write,
) -> Result<(), ImageError> {
    let image = store.find(&arguments.image)?;
    let recipe = Recipe::load(&arguments.recipe)?;
    let agent = find_agent(arguments.agent.as_deref())?;
    let progress = Steps::new();
    let builder = Builder {
        store,
        recipe: &recipe,
        agent: &agent,
        date: None,
        timeout: arguments.timeout,
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
    Err(ImageError::NotTheSame { image, rebuilt: rebuilt.digest })
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
        let difference = format!("{:?}", change.difference).to_lowercase();
        say(output, &format!("  {difference:<8} {}", plain(&change.path)))?;
    }
    match rebuilt.files.len().saturating_sub(SHOWN) {
        0 => Ok(()),
        more => say(output, &format!("  and {more} more (--json has them)")),
    }
}

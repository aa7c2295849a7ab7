//! `mayfly image gc`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::{Problem, say};
use crate::config::{ConfigError, Environment, Settings};
use crate::failure::Code;
use crate::host::size::Size;
use crate::image::{Collection, Kept, Retention, Store};

/// Remove builds that nothing means or uses any more
///
/// Kept are the build that each name means and the one it meant before (see `rollback`), what
/// pools of the settings file name by digest, and what microVMs run from. What builds and imports
/// left that ended in the middle goes, and so do downloads that are a day old and in no image.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct GcArguments {
    /// Say what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// Keep also the N builds of each name that were published last
    #[arg(long, value_name = "N", default_value_t = 0)]
    keep: usize,
    /// The settings file, whose pools keep their images
    #[arg(long, env = "MAYFLY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  mayfly image gc --dry-run
  mayfly image gc --keep 5 --config /etc/mayfly/mayfly.toml";

pub(super) fn gc(
    arguments: &GcArguments,
    store: &Store,
    output: &mut dyn Write,
) -> Result<(), Problem> {
    let pinned = match &arguments.config {
        Some(file) => {
            let environment = Environment::of_process().map_err(ConfigError::Host)?;
            Settings::images(file, &environment)?
        }
        None => Vec::new(),
    };
    let retention = Retention { pinned, recent: arguments.keep };
    let collection = store.collect(&retention, arguments.dry_run)?;
    if arguments.json {
        let text = serde_json::to_string(&collection);
        let text = text.map_err(|error| Problem::file(error.to_string(), Code::Internal))?;
        return Ok(say(output, &text)?);
    }
    show(&collection, arguments.dry_run, output)
}

fn show(collection: &Collection, dry_run: bool, output: &mut dyn Write) -> Result<(), Problem> {
    for build in &collection.images {
        let what = match build.kept {
            None if dry_run => "would go",
            None => "removed",
            Some(Kept::Meant) => "kept: its name means it",
            Some(Kept::Previous) => "kept: for a rollback",
            Some(Kept::Pinned) => "kept: a pool names it",
            Some(Kept::Recent) => "kept: --keep",
            Some(Kept::InUse) => "kept: in use",
        };
        let size = Size(build.bytes).to_string();
        let name = format!("{}@{}", build.name, build.digest.short());
        say(output, &format!("{name:<32} {size:>10}  {what}"))?;
    }
    for (count, what) in [
        (collection.dead_builds, "unfinished builds and imports"),
        (collection.downloads, "old downloads"),
    ] {
        if count > 0 {
            say(
                output,
                &format!("{what}: {count} {}", if dry_run { "would go" } else { "removed" }),
            )?;
        }
    }
    let verb = if dry_run { "would be freed" } else { "freed" };
    Ok(say(output, &format!("{} {verb}", Size(collection.freed)))?)
}

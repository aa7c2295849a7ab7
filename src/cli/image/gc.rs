//! `mayfly image gc`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::{CliError, print_line};
use mayfly_config::{ConfigError, Environment, Settings};
use mayfly_failure::Code;
use mayfly_host::size::Size;
use mayfly_image::{CollectionReport, RetainedBuilds, RetentionReason, Store};

/// Remove builds that are no longer used
///
/// Keeps the current and the previous build of each name (see `rollback`), builds that pools of the
/// settings file name by digest, and builds that microVMs run from. Also removes the remains of
/// interrupted builds and imports, and downloads that are a day old and in no image.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct GcArguments {
    /// Show what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// Also keep the N builds of each name that were published last
    #[arg(long, value_name = "N", default_value_t = 0)]
    keep: usize,
    /// Settings file; images that its pools name are kept
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
) -> Result<(), CliError> {
    let pinned = match &arguments.config {
        Some(file) => {
            let environment = Environment::of_process().map_err(ConfigError::Host)?;
            Settings::images(file, &environment)?
        }
        None => Vec::new(),
    };
    let retention = RetainedBuilds { pinned, recent: arguments.keep };
    let collection = store.collect(&retention, arguments.dry_run)?;
    if arguments.json {
        let text = serde_json::to_string(&collection);
        let text = text.map_err(|error| CliError::file(error.to_string(), Code::Internal))?;
        return Ok(print_line(output, &text)?);
    }
    show(&collection, arguments.dry_run, output)
}

fn show(
    collection: &CollectionReport,
    dry_run: bool,
    output: &mut dyn Write,
) -> Result<(), CliError> {
    for build in &collection.images {
        let what = match build.retained {
            None if dry_run => "would be removed",
            None => "removed",
            Some(RetentionReason::Current) => "kept: current build",
            Some(RetentionReason::Previous) => "kept: previous build, for a rollback",
            Some(RetentionReason::Pinned) => "kept: pinned by a pool",
            Some(RetentionReason::Recent) => "kept: --keep",
            Some(RetentionReason::InUse) => "kept: in use",
        };
        let size = Size(build.bytes).to_string();
        let name = format!("{}@{}", build.name, build.digest.short());
        print_line(output, &format!("{name:<32} {size:>10}  {what}"))?;
    }
    for (count, what) in [
        (collection.dead_builds, "unfinished builds and imports"),
        (collection.downloads, "old downloads"),
    ] {
        if count > 0 {
            print_line(
                output,
                &format!(
                    "{what}: {count} {}",
                    if dry_run { "would be removed" } else { "removed" }
                ),
            )?;
        }
    }
    let action = if dry_run { "would be freed" } else { "freed" };
    Ok(print_line(output, &format!("{} {action}", Size(collection.freed)))?)
}

//! `mayfly image …`: builds, shows, checks and removes images.

mod build;
mod newest;
mod show;
mod steps;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::report::Problem;
use crate::image::{ImageError, Reference, Store};

/// `mayfly image`.
#[derive(Debug, Args)]
pub(super) struct ImageArguments {
    /// The image store [default: `images` in the state directory]
    #[arg(long, global = true, env = "MAYFLY_IMAGE_STORE", value_name = "DIR")]
    store: Option<PathBuf>,
    #[command(subcommand)]
    command: ImageCommand,
}

/// What to do with images.
#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Build an image from a recipe and let its name mean it
    Build(build::BuildArguments),
    /// List the images of the store, the newest build of each name first
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what an image is and what it was made of
    Inspect {
        /// NAME, the newest build, or NAME@DIGEST-PREFIX
        #[arg(value_parser = reference)]
        image: Reference,
        /// Print the manifest as it is
        #[arg(long)]
        json: bool,
    },
    /// Hash every part of an image and compare with what was built
    Verify {
        /// NAME, the newest build, or NAME@DIGEST-PREFIX
        #[arg(required = true, value_parser = reference)]
        images: Vec<Reference>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove an image; what runs from it goes on
    Remove {
        /// NAME, the newest build, or NAME@DIGEST-PREFIX
        #[arg(required = true, value_parser = reference)]
        images: Vec<Reference>,
    },
}

fn reference(text: &str) -> Result<Reference, String> {
    text.parse().map_err(|error: crate::image::InvalidName| error.to_string())
}

/// Does what was asked for with the images of the store that the arguments name, else of
/// `default_store`. Data goes to standard output, everything else to standard error.
///
/// # Errors
///
/// What the image folder says, or standard output can't be written.
pub(super) fn run(arguments: ImageArguments, default_store: &Path) -> Result<(), Problem> {
    let store = &Store::open(arguments.store.as_deref().unwrap_or(default_store));
    let mut output = io::stdout().lock();
    let done = match arguments.command {
        ImageCommand::Build(arguments) => return build::build(&arguments, store, &mut output),
        ImageCommand::List { json } => show::list(store, json, &mut output),
        ImageCommand::Inspect { image, json } => {
            show::inspect(&store.find(&image)?, json, &mut output)
        }
        ImageCommand::Verify { images, json } => {
            images.iter().try_for_each(|image| verify(store, image, json, &mut output))
        }
        ImageCommand::Remove { images } => images.iter().try_for_each(|image| {
            let digest = store.remove(image)?;
            say(&mut output, &format!("{}@{digest}", image.name))
        }),
    };
    Ok(done?)
}

fn verify(
    store: &Store,
    reference: &Reference,
    json: bool,
    output: &mut dyn Write,
) -> Result<(), ImageError> {
    let image = store.find(reference)?;
    store.verify(&image)?;
    if json {
        let answer = serde_json::json!({
            "name": image.name, "digest": image.digest, "verified": true,
        });
        return say(output, &answer.to_string());
    }
    say(output, &format!("{}@{} is what was built", image.name, image.digest))
}

fn say(output: &mut dyn Write, line: &str) -> Result<(), ImageError> {
    writeln!(output, "{line}").map_err(|source| ImageError::Write {
        path: Path::new("standard output").to_owned(),
        source,
    })
}

//! `mayfly image …`: builds, shows, checks and removes images.

mod audit;
mod build;
mod bytes;
mod diff;
mod export;
mod gc;
mod import;
mod inputs;
mod newest;
mod rebuild;
mod refresh;
mod sbom;
mod show;
mod sign;
mod steps;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::examples;
use super::output;
use super::report::Problem;
use super::trust::public_key;
use crate::host::state::StateDirectory;
use crate::image::{ImageError, ImageName, PublicKey, Reference, Store, Trust};

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
    #[command(after_help = examples::IMAGE_BUILD)]
    Build(build::BuildArguments),
    /// List the images of the store, the newest build of each name first
    #[command(after_help = examples::IMAGE_LIST)]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what an image is and what it was made of
    #[command(after_help = examples::IMAGE_INSPECT)]
    Inspect {
        /// NAME, the newest build, or NAME@DIGEST-PREFIX
        #[arg(value_parser = reference)]
        image: Reference,
        /// Print the manifest as it is
        #[arg(long)]
        json: bool,
    },
    Export(export::ExportArguments),
    Import(import::ImportArguments),
    Sign(sign::SignArguments),
    /// Let a name mean the build that it meant before; done again, what it means now
    #[command(after_help = examples::IMAGE_ROLLBACK)]
    Rollback {
        /// The name
        #[arg(value_parser = name)]
        name: ImageName,
    },
    Gc(gc::GcArguments),
    /// Hash every part of an image and compare with what was built; with a key, check who signed it
    #[command(after_help = examples::IMAGE_VERIFY)]
    Verify {
        /// NAME, the newest build, or NAME@DIGEST-PREFIX
        #[arg(required = true, value_parser = reference)]
        images: Vec<Reference>,
        /// Refuse an image that is signed with none of these keys: public keys of minisign's, or
        /// files with one
        #[arg(long = "key", value_name = "KEY", value_parser = public_key)]
        keys: Vec<PublicKey>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print an image's bill of materials, for scanners
    Sbom(sbom::SbomArguments),
    /// Show what is different in another image: packages, kernel, settings, sizes
    Diff(diff::DiffArguments),
    /// Build an image again from what it was built from, and say whether it is the same
    RebuildCheck(rebuild::RebuildArguments),
    Audit(audit::AuditArguments),
    Refresh(refresh::RefreshArguments),
    /// Remove an image; what runs from it goes on
    #[command(after_help = examples::IMAGE_REMOVE)]
    Remove {
        /// NAME, the newest build, or NAME@DIGEST-PREFIX
        #[arg(required = true, value_parser = reference)]
        images: Vec<Reference>,
    },
}

fn name(text: &str) -> Result<ImageName, String> {
    text.parse().map_err(|error: crate::image::InvalidName| error.to_string())
}

fn reference(text: &str) -> Result<Reference, String> {
    text.parse().map_err(|error: crate::image::InvalidName| error.to_string())
}

/// Does what was asked for with the images of the store that the arguments name, else of
/// that of the state directory. Data goes to standard output, everything else to standard error.
///
/// # Errors
///
/// What the image folder or the settings say, or standard output can't be written.
pub(super) fn run(arguments: ImageArguments, state: &StateDirectory) -> Result<ExitCode, Problem> {
    let store = &Store::open(arguments.store.unwrap_or_else(|| state.images()));
    let mut output = output::stdout();
    match arguments.command {
        ImageCommand::Build(arguments) => build::build(&arguments, store, &mut output)?,
        ImageCommand::List { json } => show::list(store, json, &mut output)?,
        ImageCommand::Inspect { image, json } => {
            show::inspect(&store.find(&image)?, json, &mut output)?;
        }
        // It may write to standard output itself.
        ImageCommand::Export(arguments) => {
            drop(output);
            export::export(&arguments, store)?;
        }
        ImageCommand::Import(arguments) => import::import(&arguments, store, &mut output)?,
        ImageCommand::Sign(arguments) => sign::sign(&arguments, store, &mut output)?,
        ImageCommand::Rollback { name } => {
            let image = store.rollback(&name)?;
            say(&mut output, &format!("{}@{}", image.name, image.digest))?;
        }
        ImageCommand::Gc(arguments) => gc::gc(&arguments, store, &mut output)?,
        ImageCommand::Verify { images, keys, json } => {
            let trust = Trust::new(keys);
            images.iter().try_for_each(|image| verify(store, image, &trust, json, &mut output))?;
        }
        ImageCommand::Sbom(arguments) => sbom::run(&arguments, store, &mut output)?,
        ImageCommand::Diff(arguments) => diff::run(&arguments, store, &mut output)?,
        ImageCommand::RebuildCheck(arguments) => rebuild::run(&arguments, store, &mut output)?,
        ImageCommand::Audit(arguments) => {
            return audit::run(&arguments, store, state, &mut output);
        }
        ImageCommand::Refresh(arguments) => {
            return refresh::run(&arguments, store, state, &mut output);
        }
        ImageCommand::Remove { images } => images.iter().try_for_each(|image| {
            let digest = store.remove(image)?;
            say(&mut output, &format!("{}@{digest}", image.name))
        })?,
    }
    Ok(ExitCode::SUCCESS)
}

fn verify(
    store: &Store,
    reference: &Reference,
    trust: &Trust,
    json: bool,
    output: &mut dyn Write,
) -> Result<(), ImageError> {
    let image = store.find(reference)?;
    let signed = store.check_signature(&image, trust)?;
    store.verify(&image)?;
    if json {
        let answer = serde_json::json!({
            "name": image.name,
            "digest": image.digest,
            "verified": true,
            "signed_with": signed.as_ref().map(|signed| signed.key.to_string()),
            "comment": signed.as_ref().map(|signed| &signed.comment),
        });
        return say(output, &answer.to_string());
    }
    let signed = signed.map(|signed| format!(", and signed with {}", signed.key));
    let signed = signed.unwrap_or_default();
    say(output, &format!("{}@{} is what was built{signed}", image.name, image.digest))
}

fn say(output: &mut dyn Write, line: &str) -> Result<(), ImageError> {
    writeln!(output, "{line}").map_err(|source| ImageError::Write {
        path: Path::new("standard output").to_owned(),
        source,
    })
}

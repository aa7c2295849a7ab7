//! `mayfly image …`: builds, inspects, verifies and removes images.

mod audit;
mod build;
mod build_inputs;
mod diff;
mod export;
mod gc;
mod import;
mod newest_runner;
mod rebuild;
mod refresh;
mod sbom;
mod show;
mod sign;
mod steps;
mod transfer_bar;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::examples;
use super::output;
use super::report::CliError;
use super::trust::public_key;
use mayfly_host::state::StateDirectory;
use mayfly_image::{ImageError, ImageName, PublicKey, Reference, Store, Trust};

/// The arguments of `mayfly image`.
#[derive(Debug, Args)]
pub(super) struct ImageArguments {
    /// Directory of the image store [default: `images` in the state directory]
    #[arg(long, global = true, env = "MAYFLY_IMAGE_STORE", value_name = "DIR")]
    store: Option<PathBuf>,
    #[command(subcommand)]
    command: ImageCommand,
}

/// The subcommands of `mayfly image`.
#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Build an image from a recipe and point its name to the new build
    #[command(after_help = examples::IMAGE_BUILD)]
    Build(build::BuildArguments),
    /// List the images of the store, the current build of each name first
    #[command(after_help = examples::IMAGE_LIST)]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the contents of an image and what it was built from
    #[command(after_help = examples::IMAGE_INSPECT)]
    Inspect {
        /// NAME (its current build) or NAME@DIGEST-PREFIX
        #[arg(value_parser = reference)]
        image: Reference,
        /// Print the manifest as JSON
        #[arg(long)]
        json: bool,
    },
    Export(export::ExportArguments),
    Import(import::ImportArguments),
    Sign(sign::SignArguments),
    /// Point a name back to its previous build; a second rollback undoes the first
    #[command(after_help = examples::IMAGE_ROLLBACK)]
    Rollback {
        /// Name of the image
        #[arg(value_parser = name)]
        name: ImageName,
    },
    Gc(gc::GcArguments),
    /// Compare the hash of every part of an image with its manifest; with --key, check the
    /// signature
    #[command(after_help = examples::IMAGE_VERIFY)]
    Verify {
        /// NAME (its current build) or NAME@DIGEST-PREFIX
        #[arg(required = true, value_parser = reference)]
        images: Vec<Reference>,
        /// Require the image to be signed with one of these keys: minisign public keys, or files
        /// with one
        #[arg(long = "key", value_name = "KEY", value_parser = public_key)]
        keys: Vec<PublicKey>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print an image's bill of materials (SBOM), for scanners
    Sbom(sbom::SbomArguments),
    /// Show the differences between two images: packages, kernel, settings, sizes
    Diff(diff::DiffArguments),
    /// Rebuild an image from its inputs and check whether the result is identical
    RebuildCheck(rebuild::RebuildArguments),
    Audit(audit::AuditArguments),
    Refresh(refresh::RefreshArguments),
    /// Remove images; microVMs that run from them continue
    #[command(after_help = examples::IMAGE_REMOVE)]
    Remove {
        /// NAME (its current build) or NAME@DIGEST-PREFIX
        #[arg(required = true, value_parser = reference)]
        images: Vec<Reference>,
    },
}

fn name(text: &str) -> Result<ImageName, String> {
    text.parse().map_err(|error: mayfly_image::InvalidName| error.to_string())
}

fn reference(text: &str) -> Result<Reference, String> {
    text.parse().map_err(|error: mayfly_image::InvalidName| error.to_string())
}

/// Runs a subcommand on the store that the arguments name, or on the store of the state directory.
/// Data goes to standard output, everything else to standard error.
///
/// # Errors
///
/// Errors of `image` and the settings, or if standard output can't be written.
pub(super) fn run(arguments: ImageArguments, state: &StateDirectory) -> Result<ExitCode, CliError> {
    let store = &Store::open(arguments.store.unwrap_or_else(|| state.images()));
    let mut output = output::stdout();
    match arguments.command {
        ImageCommand::Build(arguments) => build::build(&arguments, store, &mut output)?,
        ImageCommand::List { json } => show::list(store, json, &mut output)?,
        ImageCommand::Inspect { image, json } => {
            show::inspect(&store.find(&image)?, json, &mut output)?;
        }
        // The export locks standard output itself.
        ImageCommand::Export(arguments) => {
            drop(output);
            export::export(&arguments, store)?;
        }
        ImageCommand::Import(arguments) => import::import(&arguments, store, &mut output)?,
        ImageCommand::Sign(arguments) => sign::sign(&arguments, store, &mut output)?,
        ImageCommand::Rollback { name } => {
            let image = store.rollback(&name)?;
            print_line(&mut output, &format!("{}@{}", image.name, image.digest))?;
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
            print_line(&mut output, &format!("{}@{digest}", image.name))
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
        let output_json = serde_json::json!({
            "name": image.name,
            "digest": image.digest,
            "verified": true,
            "signed_with": signed.as_ref().map(|signed| signed.key.to_string()),
            "comment": signed.as_ref().map(|signed| &signed.comment),
        });
        return print_line(output, &output_json.to_string());
    }
    let signed = signed.map(|signed| format!(", and signed with {}", signed.key));
    let signed = signed.unwrap_or_default();
    print_line(output, &format!("{}@{} is unchanged{signed}", image.name, image.digest))
}

fn print_line(output: &mut dyn Write, line: &str) -> Result<(), ImageError> {
    writeln!(output, "{line}").map_err(|source| ImageError::Write {
        path: Path::new("standard output").to_owned(),
        source,
    })
}

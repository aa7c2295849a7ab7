//! `mayfly image sbom`.

use std::io::Write;
use std::path::Path;

use clap::{Args, ValueEnum};

use super::reference;
use mayfly_image::{ImageError, Reference, Store};

/// The arguments of `mayfly image sbom`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mayfly image sbom base | jq '.packages[].name'
  mayfly image sbom runner --format cyclonedx > runner.cdx.json")]
pub(super) struct SbomArguments {
    /// NAME (its current build) or NAME@DIGEST-PREFIX
    #[arg(value_parser = reference)]
    image: Reference,
    /// Format: SPDX 2.3 or `CycloneDX` 1.5, both as JSON
    #[arg(long, value_enum, default_value_t = Format::Spdx)]
    format: Format,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Spdx,
    Cyclonedx,
}

pub(super) fn run(
    arguments: &SbomArguments,
    store: &Store,
    output: &mut dyn Write,
) -> Result<(), ImageError> {
    let image = store.find(&arguments.image)?;
    let parts = &image.manifest.parts;
    let part = match arguments.format {
        Format::Spdx => &parts.spdx,
        Format::Cyclonedx => &parts.cyclonedx,
    };
    let bytes = store.read_verified(&image, part)?;
    output.write_all(&bytes).map_err(|source| ImageError::Write {
        path: Path::new("standard output").to_owned(),
        source,
    })
}

//! `mayfly image export`.

use std::fs::{self, File};
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use clap::Args;

use super::transfer_bar::TransferBar;
use super::{CliError, output, reference};
use mayfly_image::{ImageError, Reference, Store};

/// Write an image to an archive, to copy it to another host
///
/// Verifies every part on the way. The archive is a tar file, compressed with zstd, and includes
/// the signature. The same image always results in the same archive.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ExportArguments {
    /// NAME (its current build) or NAME@DIGEST-PREFIX
    #[arg(value_parser = reference)]
    image: Reference,
    /// Archive to create, which must not exist; - is standard output
    file: PathBuf,
}

const EXAMPLES: &str = "\
Examples:
  mayfly image export runner /media/stick/runner.tar.zst
  mayfly image export runner - | ssh host mayfly image import -";

pub(super) fn export(arguments: &ExportArguments, store: &Store) -> Result<(), CliError> {
    let image = store.find(&arguments.image)?;
    let bar = TransferBar::new();
    let moved = &mut |done, total| bar.update(done, total);
    if arguments.file == Path::new("-") {
        if io::stdout().is_terminal() {
            return Err(CliError::usage("can't write an archive to a terminal: name a file"));
        }
        return Ok(store.export(&image, output::stdout(), Path::new("standard output"), moved)?);
    }
    let path = &arguments.file;
    let write_error = |source| ImageError::Write { path: path.clone(), source };
    let mut file = File::create_new(path).map_err(write_error)?;
    let written = store.export(&image, &mut file, path, moved);
    let written = written.and_then(|()| file.sync_all().map_err(write_error));
    if written.is_err() {
        // The file is incomplete. If it can't be removed, an import rejects it.
        let _ = fs::remove_file(path);
    }
    Ok(written?)
}

//! `mayfly image export`.

use std::fs::{self, File};
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use clap::Args;

use super::bytes::Bytes;
use super::{Problem, output, reference};
use crate::image::{ImageError, Reference, Store};

/// Write an image to a file, to carry it to another host
///
/// Every part is checked on the way. The file is a tar archive, compressed with zstd; the same
/// image always makes the same one. A signature travels along.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ExportArguments {
    /// NAME, the build that it means, or NAME@DIGEST-PREFIX
    #[arg(value_parser = reference)]
    image: Reference,
    /// The file, which must not be there yet; - is standard output
    file: PathBuf,
}

const EXAMPLES: &str = "\
Examples:
  mayfly image export runner /media/stick/runner.tar.zst
  mayfly image export runner - | ssh host mayfly image import -";

pub(super) fn export(arguments: &ExportArguments, store: &Store) -> Result<(), Problem> {
    let image = store.find(&arguments.image)?;
    let bytes = Bytes::new();
    let moved = &mut |done, total| bytes.moved(done, total);
    if arguments.file == Path::new("-") {
        if io::stdout().is_terminal() {
            return Err(Problem::usage("an archive on a terminal is of no use: name a file"));
        }
        return Ok(store.export(&image, output::stdout(), Path::new("standard output"), moved)?);
    }
    let path = &arguments.file;
    let unwritten = |source| ImageError::Write { path: path.clone(), source };
    let mut file = File::create_new(path).map_err(unwritten)?;
    let written = store.export(&image, &mut file, path, moved);
    let written = written.and_then(|()| file.sync_all().map_err(unwritten));
    if written.is_err() {
        // What is there is no archive. If it stays, an import says so.
        let _ = fs::remove_file(path);
    }
    Ok(written?)
}

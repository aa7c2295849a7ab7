//! `mayfly image import`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::print_line;
use super::transfer_bar::TransferBar;
use crate::trust::TrustArguments;
use mayfly_image::{ImageError, Store};

/// Import an image from an archive and point its name to it
///
/// The store changes only after the whole archive was read and verified. `mayfly image rollback`
/// returns to the previous build.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ImportArguments {
    /// Archive of `mayfly image export`; - is standard input
    file: PathBuf,
    #[command(flatten)]
    trust: TrustArguments,
}

const EXAMPLES: &str = "\
Examples:
  mayfly image import /media/stick/runner.tar.zst
  mayfly image import --image-key /etc/mayfly/images.pub runner.tar.zst";

pub(super) fn import(
    arguments: &ImportArguments,
    store: &Store,
    output: &mut dyn Write,
) -> Result<(), ImageError> {
    let path = &arguments.file;
    let (input, from): (Box<dyn Read>, &Path) = if path == Path::new("-") {
        (Box::new(io::stdin().lock()), Path::new("standard input"))
    } else {
        let read_error = |source| ImageError::Read { path: path.clone(), source };
        (Box::new(File::open(path).map_err(read_error)?), path)
    };
    let bar = TransferBar::new();
    let trust = arguments.trust.trust();
    let image = store.import(input, from, &trust, &mut |done, total| bar.update(done, total))?;
    drop(bar);
    print_line(output, &format!("{}@{}", image.name, image.digest))
}

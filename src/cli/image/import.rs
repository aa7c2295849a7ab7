//! `mayfly image import`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::bytes::Bytes;
use super::say;
use crate::cli::trust::TrustArguments;
use crate::image::{ImageError, Store};

/// Put the image of an archive into the store and let its name mean it
///
/// Nothing is in the store before all of the archive was read and found to be what was exported.
/// `mayfly image rollback` goes back to what the name meant before.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ImportArguments {
    /// What `mayfly image export` wrote; - is standard input
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
        let unread = |source| ImageError::Read { path: path.clone(), source };
        (Box::new(File::open(path).map_err(unread)?), path)
    };
    let bytes = Bytes::new();
    let trust = arguments.trust.trust();
    let image = store.import(input, from, &trust, &mut |done, total| bytes.moved(done, total))?;
    drop(bytes);
    say(output, &format!("{}@{}", image.name, image.digest))
}

//! Whose signatures count: public keys on the command line.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::image::{PublicKey, Trust};

/// Keys that images must be signed with.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct TrustArguments {
    /// Refuse images that are signed with none of these keys: public keys of minisign's, or files
    /// with one; with commas between them in the variable
    #[arg(long = "image-key", value_name = "KEY", env = "MAYFLY_IMAGE_KEYS", value_delimiter = ',', value_parser = public_key)]
    image_keys: Vec<PublicKey>,
}

impl TrustArguments {
    /// Whom they trust.
    pub(super) fn trust(&self) -> Trust {
        Trust::new(self.image_keys.clone())
    }
}

/// The most bytes of a key's file; one has 130.
const LONGEST: u64 = 4096;

/// A public key, or the one in a file.
pub(super) fn public_key(text: &str) -> Result<PublicKey, String> {
    let error = match text.parse::<PublicKey>() {
        Ok(key) => return Ok(key),
        Err(error) => error,
    };
    // A key has slashes, too: only a file that is there is one.
    if !Path::new(text).is_file() {
        return Err(format!("{error}, nor is there such a file"));
    }
    let mut content = String::new();
    let read = File::open(text).and_then(|file| file.take(LONGEST).read_to_string(&mut content));
    read.map_err(|error| error.to_string())?;
    content.parse::<PublicKey>().map_err(|error| error.to_string())
}

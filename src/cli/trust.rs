//! Public keys of trusted image signers on the command line.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use mayfly_image::{PublicKey, Trust};

/// Keys that images must be signed with.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct TrustArguments {
    /// Require images to be signed with one of these keys: minisign public keys, or files with one.
    /// In the variable, separate them with commas
    #[arg(long = "image-key", value_name = "KEY", env = "MAYFLY_IMAGE_KEYS", value_delimiter = ',', value_parser = public_key)]
    image_keys: Vec<PublicKey>,
}

impl TrustArguments {
    /// Returns the trusted keys.
    pub(super) fn trust(&self) -> Trust {
        Trust::new(self.image_keys.clone())
    }
}

/// The maximum size of a key file. Usual ones have 130 bytes.
const MAX_BYTES: u64 = 4096;

/// Parses a public key, or reads it from a file.
pub(super) fn public_key(text: &str) -> Result<PublicKey, String> {
    let error = match text.parse::<PublicKey>() {
        Ok(key) => return Ok(key),
        Err(error) => error,
    };
    // A key may contain slashes too, so only an existing file counts as one.
    if !Path::new(text).is_file() {
        return Err(format!("{error}, and no such file exists"));
    }
    let mut content = String::new();
    let read = File::open(text).and_then(|file| file.take(MAX_BYTES).read_to_string(&mut content));
    read.map_err(|error| error.to_string())?;
    content.parse::<PublicKey>().map_err(|error| error.to_string())
}

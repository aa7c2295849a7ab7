//! `mayfly image sign`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use secrecy::{ExposeSecret, SecretString};

use super::{CliError, print_line, reference};
use mayfly_failure::Code;
use mayfly_image::{ImageError, KeyError, Reference, SecretKey, Store};

/// Sign an image, so that hosts that trust the key boot it
///
/// Verifies all parts first. The signature covers the manifest, has minisign's format and is stored
/// beside the manifest. Create a key with `minisign -G`. The password of a protected key comes from
/// --password-file, the variable `MAYFLY_SIGNING_PASSWORD` or the terminal.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct SignArguments {
    /// NAME (its current build) or NAME@DIGEST-PREFIX
    #[arg(value_parser = reference)]
    image: Reference,
    /// File with the secret key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// File with the password of the key in its first line
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  minisign -G -p images.pub -s images.key
  mayfly image sign runner --key images.key
  mayfly image verify runner --key images.pub";

const PASSWORD: &str = "MAYFLY_SIGNING_PASSWORD";

/// The maximum size of a file with a key or a password.
const MAX_BYTES: u64 = 8 << 10;

pub(super) fn sign(
    arguments: &SignArguments,
    store: &Store,
    output: &mut dyn Write,
) -> Result<(), CliError> {
    let image = store.find(&arguments.image)?;
    let path = &arguments.key;
    let key_error = |source: KeyError| ImageError::Key { key: path.display().to_string(), source };
    let file = read(path)?;
    let password = if SecretKey::is_protected(&file).map_err(key_error)? {
        Some(password(arguments.password_file.as_deref())?)
    } else {
        None
    };
    let key = SecretKey::unlock(&file, password.as_ref()).map_err(key_error)?;
    // A signature vouches for all parts.
    store.verify(&image)?;
    let signed = store.sign(&image, &key)?;
    Ok(print_line(
        output,
        &format!("{}@{} is signed with {}", image.name, image.digest, signed.key),
    )?)
}

fn password(file: Option<&Path>) -> Result<SecretString, CliError> {
    if let Some(path) = file {
        let text = read(path)?;
        return Ok(text.expose_secret().lines().next().unwrap_or_default().into());
    }
    if let Ok(password) = std::env::var(PASSWORD) {
        return Ok(password.into());
    }
    rpassword::prompt_password("Password of the key: ").map(SecretString::from).map_err(|_| {
        CliError::usage(format!(
            "the key has a password: use --password-file, {PASSWORD} or a terminal"
        ))
    })
}

fn read(path: &Path) -> Result<SecretString, CliError> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| {
        let length = file.take(MAX_BYTES + 1).read_to_string(&mut text)?;
        if length as u64 > MAX_BYTES { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(()) }
    });
    read.map(|()| text.into()).map_err(|error: io::Error| {
        CliError::file(format!("can't read {}: {error}", path.display()), Code::NotFound)
    })
}

//! `mayfly image sign`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use secrecy::{ExposeSecret, SecretString};

use super::{Problem, reference, say};
use crate::failure::Code;
use crate::image::{ImageError, KeyError, Reference, SecretKey, Store};

/// Sign an image, so that hosts which trust the key boot it
///
/// Its parts are checked first. The signature is of its manifest, in minisign's format, and lies
/// beside it; a key is made with `minisign -G`. The password of a protected key is asked for at
/// the terminal, or comes from --password-file or the variable `MAYFLY_SIGNING_PASSWORD`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct SignArguments {
    /// NAME, the build that it means, or NAME@DIGEST-PREFIX
    #[arg(value_parser = reference)]
    image: Reference,
    /// The file of the secret key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// A file with the password of the key in its first line
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  minisign -G -p images.pub -s images.key
  mayfly image sign runner --key images.key
  mayfly image verify runner --key images.pub";

const PASSWORD: &str = "MAYFLY_SIGNING_PASSWORD";

/// The most bytes of a file with a key or a password.
const LONGEST: u64 = 8 << 10;

pub(super) fn sign(
    arguments: &SignArguments,
    store: &Store,
    output: &mut dyn Write,
) -> Result<(), Problem> {
    let image = store.find(&arguments.image)?;
    let path = &arguments.key;
    let unusable = |source: KeyError| ImageError::Key { key: path.display().to_string(), source };
    let file = read(path)?;
    let password = if SecretKey::is_protected(&file).map_err(unusable)? {
        Some(password(arguments.password_file.as_deref())?)
    } else {
        None
    };
    let key = SecretKey::unlock(&file, password.as_ref()).map_err(unusable)?;
    // Who signs vouches for all of it.
    store.verify(&image)?;
    let signed = store.sign(&image, &key)?;
    Ok(say(output, &format!("{}@{} is signed with {}", image.name, image.digest, signed.key))?)
}

fn password(file: Option<&Path>) -> Result<SecretString, Problem> {
    if let Some(path) = file {
        let text = read(path)?;
        return Ok(text.expose_secret().lines().next().unwrap_or_default().into());
    }
    if let Ok(password) = std::env::var(PASSWORD) {
        return Ok(password.into());
    }
    rpassword::prompt_password("Password of the key: ").map(SecretString::from).map_err(|_| {
        let way = format!("give it with --password-file or {PASSWORD}");
        Problem::usage(format!("the key has a password, and there is no terminal: {way}"))
    })
}

fn read(path: &Path) -> Result<SecretString, Problem> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| {
        let length = file.take(LONGEST + 1).read_to_string(&mut text)?;
        if length as u64 > LONGEST { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(()) }
    });
    read.map(|()| text.into()).map_err(|error: io::Error| {
        Problem::file(format!("can't read {}: {error}", path.display()), Code::NotFound)
    })
}

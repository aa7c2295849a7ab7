//! The GitHub App's RSA key: generated for a test; the simulator keeps the public half.

use std::path::{Path, PathBuf};
use std::process::Command;

use data_encoding::{BASE64, BASE64URL_NOPAD};
use ring::signature::{KeyPair, RSA_PKCS1_2048_8192_SHA256, RsaKeyPair, UnparsedPublicKey};
use serde_json::Value;

/// An error of a key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file can't be read.
    #[error("can't read the key file {0}")]
    Unreadable(PathBuf, #[source] std::io::Error),
    /// Not a PEM file with an RSA private key.
    #[error("the key file {0} does not contain an RSA private key in PEM")]
    NotAKey(PathBuf),
    /// `openssl` is missing or failed.
    #[error("openssl genrsa failed: {0}")]
    Generate(String),
}

/// Generates a 2048-bit key in a new file that only its owner can read.
pub fn generate(path: &Path) -> Result<(), KeyError> {
    let output = Command::new("openssl").args(["genrsa", "-out"]).arg(path).arg("2048").output();
    let output = output.map_err(|error| KeyError::Generate(error.to_string()))?;
    if !output.status.success() {
        return Err(KeyError::Generate(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    Ok(())
}

/// Returns the public half of a private key's PEM file (PKCS #1, as GitHub provides, or PKCS #8),
/// in DER.
pub fn public_key(path: &Path) -> Result<Vec<u8>, KeyError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| KeyError::Unreadable(path.to_owned(), error))?;
    let not_a_key = || KeyError::NotAKey(path.to_owned());
    let body: String = text.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = BASE64.decode(body.as_bytes()).map_err(|_| not_a_key())?;
    let pair = RsaKeyPair::from_pkcs8(&der)
        .or_else(|_| RsaKeyPair::from_der(&der))
        .map_err(|_| not_a_key())?;
    Ok(pair.public_key().as_ref().to_vec())
}

/// Returns the claims of a JWT with a valid RS256 signature; checks nothing else.
///
/// # Errors
///
/// GitHub's error message.
pub fn verified_claims(token: &str, public_key: &[u8]) -> Result<Value, &'static str> {
    const UNDECODABLE: &str = "A JSON web token could not be decoded";
    let (signed, signature) = token.rsplit_once('.').ok_or(UNDECODABLE)?;
    let (header, claims) = signed.split_once('.').ok_or(UNDECODABLE)?;
    let decoded = |part: &str| -> Result<Value, &'static str> {
        let bytes = BASE64URL_NOPAD.decode(part.as_bytes()).map_err(|_| UNDECODABLE)?;
        serde_json::from_slice(&bytes).map_err(|_| UNDECODABLE)
    };
    if decoded(header)?["alg"] != "RS256" {
        return Err(UNDECODABLE);
    }
    let signature = BASE64URL_NOPAD.decode(signature.as_bytes()).map_err(|_| UNDECODABLE)?;
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public_key)
        .verify(signed.as_bytes(), &signature)
        .map_err(|_| UNDECODABLE)?;
    decoded(claims)
}

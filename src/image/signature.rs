//! Signatures of image manifests, in the format of `minisign`.
//!
//! The manifest contains the digests of all parts, so its signature covers the image. The signature
//! is stored beside the manifest as [`SIGNATURE`] and is not part of the image: it is made later,
//! can be replaced, and changes no digest. Anyone can verify it with `minisign -Vm manifest.json -P
//! KEY`.

use std::fmt;
use std::io::Cursor;
use std::str::FromStr;

use data_encoding::BASE64;
use secrecy::{ExposeSecret, SecretSlice, SecretString};

/// The file name of an image's signature, beside its manifest.
pub(super) const SIGNATURE: &str = "manifest.json.minisig";

/// The largest signature or key file, in bytes; a usual one has 300.
pub(super) const MAX_FILE_SIZE: u64 = 8 << 10;

/// The length of a secret key: three algorithms, key derivation parameters, key id, key and
/// checksum.
const SECRET_KEY_BYTES: usize = 3 * 2 + (32 + 8 + 8) + 8 + 64 + 32;

/// The reason why a signature is not trusted.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// The image has no signature.
    #[error("the image is not signed")]
    Missing,
    /// The file is not a valid signature.
    #[error("{SIGNATURE} is not a valid minisign signature: {0}")]
    Malformed(&'static str),
    /// It was made with an untrusted key.
    #[error("signed with the untrusted key {found}; trusted keys: {trusted}")]
    UntrustedKey {
        /// The id of its key.
        found: KeyId,
        /// The ids of the trusted keys.
        trusted: String,
    },
    /// It does not match the manifest.
    #[error("the signature with key {0} does not match the manifest")]
    Mismatch(KeyId),
}

/// The reason why a key can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The text is not a public key.
    #[error("not a minisign public key (56 characters that begin with RW)")]
    NotPublic,
    /// The file is not a secret key.
    #[error("not a minisign secret key")]
    NotSecret,
    /// The password is wrong.
    #[error("wrong password")]
    WrongPassword,
    /// The signing operation failed.
    #[error("signing failed: {0}")]
    SigningFailed(String),
}

/// The id of a key, as `minisign` shows it. It distinguishes keys and proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyId([u8; 8]);

impl KeyId {
    fn of(bytes: &[u8]) -> Self {
        let mut id = [0; 8];
        id.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        Self(id)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016X}", u64::from_le_bytes(self.0))
    }
}

/// A public key. Parses the output of `minisign -G` or the file that it writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(minisign::PublicKey);

impl PublicKey {
    /// Returns its id.
    pub fn id(&self) -> KeyId {
        KeyId::of(self.0.keynum())
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        // A key file has a comment line before the key.
        let line = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().trim();
        let bytes = BASE64.decode(line.as_bytes()).map_err(|_| KeyError::NotPublic)?;
        if bytes.len() != 2 + 8 + 32 || !bytes.starts_with(b"Ed") {
            return Err(KeyError::NotPublic);
        }
        minisign::PublicKey::from_bytes(&bytes).map(Self).map_err(|_| KeyError::NotPublic)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0.to_base64())
    }
}

/// The keys whose signature an image needs. The default requires no signature.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trust(Vec<PublicKey>);

impl Trust {
    /// Requires a signature by one of these keys; without keys, none is required.
    pub fn new(keys: Vec<PublicKey>) -> Self {
        Self(keys)
    }

    /// Adds keys.
    #[must_use]
    pub fn and(mut self, keys: &[PublicKey]) -> Self {
        self.0.extend_from_slice(keys);
        self
    }

    /// Returns the keys; empty if no signature is required.
    pub fn keys(&self) -> &[PublicKey] {
        &self.0
    }

    /// Verifies the signature of a manifest, if one is required.
    pub(super) fn check(
        &self,
        manifest: &[u8],
        signature: Option<&[u8]>,
    ) -> Result<Option<SignatureInfo>, SignatureError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let signature = Signature::parse(signature.ok_or(SignatureError::Missing)?)?;
        let id = signature.id();
        let Some(key) = self.0.iter().find(|key| key.id() == id) else {
            let trusted: Vec<String> = self.0.iter().map(|key| key.id().to_string()).collect();
            return Err(SignatureError::UntrustedKey { found: id, trusted: trusted.join(", ") });
        };
        // Signatures by old versions of minisign, which don't hash first, are accepted.
        minisign::verify(&key.0, &signature.0, Cursor::new(manifest), true, false, true)
            .map_err(|_| SignatureError::Mismatch(id))?;
        let comment = signature.0.trusted_comment().unwrap_or_default();
        Ok(Some(SignatureInfo { key: key.clone(), comment }))
    }
}

/// A verified signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignatureInfo {
    /// The signing key.
    pub key: PublicKey,
    /// The trusted comment, which is signed as well.
    pub comment: String,
}

/// A signature whose format is valid but which is not verified.
struct Signature(minisign::SignatureBox);

impl Signature {
    /// Checks what the library does not: four lines, and the lengths of the encoded data.
    fn parse(bytes: &[u8]) -> Result<Self, SignatureError> {
        let malformed = SignatureError::Malformed;
        if bytes.len() as u64 > MAX_FILE_SIZE {
            return Err(malformed("too long"));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| malformed("not UTF-8 text"))?;
        let lines: Vec<&str> = text.lines().collect();
        let [_, signature, _, global_signature] = lines[..] else {
            return Err(malformed("must have four lines"));
        };
        for (line, length) in [(signature, 2 + 8 + 64), (global_signature, 64)] {
            let bytes = BASE64.decode(line.as_bytes());
            if !bytes.is_ok_and(|bytes| bytes.len() == length) {
                return Err(malformed("encoded data has the wrong length"));
            }
        }
        let parsed = minisign::SignatureBox::from_string(text);
        parsed.map(Self).map_err(|_| malformed("invalid comment or algorithm"))
    }

    fn id(&self) -> KeyId {
        KeyId::of(self.0.keynum())
    }
}

/// Returns the key id that a signature claims.
pub(super) fn key_id(signature: &[u8]) -> Option<KeyId> {
    Signature::parse(signature).ok().map(|signature| signature.id())
}

/// An unlocked secret key.
pub struct SecretKey(minisign::SecretKey);

impl fmt::Debug for SecretKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SecretKey(hidden)")
    }
}

impl SecretKey {
    /// Returns whether a key file is protected with a password.
    ///
    /// # Errors
    ///
    /// The file is not a secret key.
    pub fn is_protected(file: &SecretString) -> Result<bool, KeyError> {
        // The signature algorithm, two bytes, then the algorithm of the protection.
        match decode(file)?.expose_secret().get(..4) {
            Some(b"EdSc") => Ok(true),
            Some(b"Ed\0\0") => Ok(false),
            _ => Err(KeyError::NotSecret),
        }
    }

    /// Reads the key of a file, with its password if it is protected.
    ///
    /// # Errors
    ///
    /// The file is not a secret key, or the password is wrong or missing.
    pub fn unlock(file: &SecretString, password: Option<&SecretString>) -> Result<Self, KeyError> {
        let key = if Self::is_protected(file)? {
            let password = password.ok_or(KeyError::WrongPassword)?.expose_secret().to_owned();
            let boxed = minisign::SecretKeyBox::from(file.expose_secret().to_owned());
            boxed.into_secret_key(Some(password)).map_err(|_| KeyError::WrongPassword)?
        } else {
            // Not as a box: the library requires a checksum, which `minisign -W` does not write.
            let bytes = decode(file)?;
            minisign::SecretKey::from_bytes(bytes.expose_secret())
                .map_err(|_| KeyError::NotSecret)?
        };
        Ok(Self(key))
    }

    /// Returns the matching public key.
    ///
    /// # Errors
    ///
    /// The halves of the key do not match.
    pub fn public(&self) -> Result<PublicKey, KeyError> {
        minisign::PublicKey::from_secret_key(&self.0)
            .map(PublicKey)
            .map_err(|_| KeyError::NotSecret)
    }

    /// Signs a manifest. `comment`, one line, is signed as well.
    pub(super) fn sign(&self, manifest: &[u8], comment: &str) -> Result<Vec<u8>, KeyError> {
        let public = self.public()?;
        let untrusted = format!("signature of a Mayfly image with key {}", public.id());
        let data = Cursor::new(manifest);
        minisign::sign(Some(&public.0), &self.0, data, Some(comment), Some(&untrusted))
            .map(|signature| signature.to_bytes())
            .map_err(|error| KeyError::SigningFailed(error.to_string()))
    }
}

/// Decodes a secret key file; the key is in its second line.
fn decode(file: &SecretString) -> Result<SecretSlice<u8>, KeyError> {
    let line = file.expose_secret().lines().nth(1).ok_or(KeyError::NotSecret)?;
    let bytes = BASE64.decode(line.trim().as_bytes()).map_err(|_| KeyError::NotSecret)?;
    if bytes.len() == SECRET_KEY_BYTES { Ok(bytes.into()) } else { Err(KeyError::NotSecret) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair() -> (SecretKey, PublicKey) {
        let key = SecretKey(minisign::KeyPair::generate_unencrypted_keypair().unwrap().sk);
        let public = key.public().unwrap();
        (key, public)
    }

    #[test]
    fn a_signature_is_valid_for_one_manifest_and_one_key() {
        let ((key, public), (_, other)) = (pair(), pair());
        let signature = key.sign(b"manifest", "by hand").unwrap();
        let check = |keys: &[&PublicKey], manifest: &[u8], signature: Option<&[u8]>| {
            Trust::new(keys.iter().map(|key| (*key).clone()).collect()).check(manifest, signature)
        };
        let signed = check(&[&other, &public], b"manifest", Some(&signature)).unwrap();
        assert_eq!(
            signed,
            Some(SignatureInfo { key: public.clone(), comment: "by hand".to_owned() })
        );
        let wrong = check(&[&public], b"manifesT", Some(&signature));
        assert!(matches!(wrong, Err(SignatureError::Mismatch(id)) if id == public.id()));
        let foreign = check(&[&other], b"manifest", Some(&signature));
        assert!(
            matches!(foreign, Err(SignatureError::UntrustedKey { found, .. }) if found == public.id())
        );
        assert!(matches!(check(&[&public], b"manifest", None), Err(SignatureError::Missing)));
        assert_eq!(check(&[], b"manifest", None).unwrap(), None);
    }

    #[test]
    fn its_comment_is_signed_as_well() {
        let (key, public) = pair();
        let signature = String::from_utf8(key.sign(b"manifest", "good").unwrap()).unwrap();
        let trust = Trust::new(vec![public]);
        let changed = signature.replace("comment: good", "comment: best");
        assert_ne!(changed, signature);
        let error = trust.check(b"manifest", Some(changed.as_bytes())).unwrap_err();
        assert!(matches!(error, SignatureError::Mismatch(_)));
    }

    #[test]
    fn a_public_key_is_parsed_from_its_text_and_its_file() {
        let (_, key) = pair();
        let text = key.to_string();
        assert!(text.starts_with("RW"), "{text}");
        assert_eq!(text.parse::<PublicKey>().unwrap(), key);
        let file = format!("untrusted comment: minisign public key {}\n{text}\n", key.id());
        assert_eq!(file.parse::<PublicKey>().unwrap(), key);
        for wrong in ["", "RW", &text[1..], &format!("{text}A"), "/etc/passwd"] {
            assert!(wrong.parse::<PublicKey>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_file_that_is_not_a_secret_key_is_rejected() {
        let (_, public) = pair();
        for text in ["", "untrusted comment: x\n", &format!("untrusted comment: x\n{public}\n")] {
            let error = SecretKey::is_protected(&text.into()).unwrap_err();
            assert!(matches!(error, KeyError::NotSecret), "{text}");
        }
    }

    #[test]
    fn a_secret_key_with_mismatched_halves_can_not_sign() {
        let pair = minisign::KeyPair::generate_unencrypted_keypair().unwrap();
        let mut bytes = pair.sk.to_bytes();
        let file = |bytes: &[u8]| {
            SecretString::from(format!("untrusted comment: x\n{}\n", BASE64.encode(bytes)))
        };
        let good = SecretKey::unlock(&file(&bytes), None).unwrap();
        assert!(good.sign(b"manifest", "comment").is_ok());
        // The first byte of the key itself.
        bytes[SECRET_KEY_BYTES - 32 - 64] ^= 1;
        let bad = SecretKey::unlock(&file(&bytes), None).unwrap();
        assert!(matches!(bad.sign(b"manifest", "comment"), Err(KeyError::SigningFailed(_))));
        assert!(SecretKey::unlock(&file(&bytes[1..]), None).is_err());
    }

    proptest! {
        #[test]
        fn random_or_damaged_bytes_are_not_a_signature(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            at in 0..400usize,
            flip in 1..=255u8,
            cut in 0..100usize,
        ) {
            let (key, public) = pair();
            let trust = Trust::new(vec![public]);
            prop_assert!(trust.check(b"manifest", Some(&bytes)).is_err());
            let good = key.sign(b"manifest", "comment").unwrap();
            // The first line is neither signed nor used.
            let first = good.iter().position(|byte| *byte == b'\n').unwrap() + 1;
            let mut bad = good.clone();
            let at = first + at % (good.len() - 1 - first);
            bad[at] ^= flip;
            prop_assert!(trust.check(b"manifest", Some(&bad)).is_err(), "{at} {flip}");
            let end = good.len() - 2 - cut % 80;
            prop_assert!(trust.check(b"manifest", Some(&good[..end])).is_err());
        }
    }
}

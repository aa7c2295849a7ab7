//! Who vouches for an image: signatures of its manifest, in the format of `minisign`.
//!
//! The manifest has the digests of all parts, so its signature stands for the image. It lies
//! beside the manifest in [`SIGNATURE`] and is no part of the image: it comes later, may be made
//! anew, and changes no digest. What is signed is a file that anybody can check with
//! `minisign -Vm manifest.json -P KEY`.

use std::fmt;
use std::io::Cursor;
use std::str::FromStr;

use data_encoding::BASE64;
use secrecy::{ExposeSecret, SecretSlice, SecretString};

/// The file of an image's signature, beside its manifest.
pub(super) const SIGNATURE: &str = "manifest.json.minisig";

/// The most bytes of a signature or key file; a usual one has 300.
pub(super) const LONGEST: u64 = 8 << 10;

/// The bytes of a secret key: three algorithms, how the password becomes a key, the key's id, the
/// key and a checksum.
const SECRET_KEY: usize = 3 * 2 + (32 + 8 + 8) + 8 + 64 + 32;

/// Why a signature is none of those that are trusted.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// There is none.
    #[error("it is not signed")]
    Missing,
    /// The file is no signature.
    #[error("{SIGNATURE} is no signature of minisign's: {0}")]
    Malformed(&'static str),
    /// It was made with another key.
    #[error("it is signed with key {found}, and only {trusted} are trusted")]
    Foreign {
        /// The id of the key that it was made with.
        found: KeyId,
        /// The ids of the keys that are trusted.
        trusted: String,
    },
    /// It is of another manifest, or forged.
    #[error("its signature with key {0} is not of this manifest")]
    Wrong(KeyId),
}

/// Why a key can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It is no public key.
    #[error("it is no public key of minisign's, 56 characters that begin with RW")]
    NotPublic,
    /// It is no secret key.
    #[error("it is no secret key of minisign's")]
    NotSecret,
    /// The password is not the key's.
    #[error("the password is wrong")]
    WrongPassword,
    /// The program's random numbers failed.
    #[error("it can't sign: {0}")]
    CannotSign(String),
}

/// The id of a key, as `minisign` shows it. It tells keys apart and proves nothing.
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

/// A public key. Parses from what `minisign -G` prints, or from the whole file that it makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(minisign::PublicKey);

impl PublicKey {
    /// Its id.
    pub fn id(&self) -> KeyId {
        KeyId::of(self.0.keynum())
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        // In a file there is a comment before the key.
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

/// Whose signature an image needs. By default nobody's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trust(Vec<PublicKey>);

impl Trust {
    /// An image needs a signature made with one of these keys; with none of them it needs none.
    pub fn new(keys: Vec<PublicKey>) -> Self {
        Self(keys)
    }

    /// The same, and these keys as well.
    #[must_use]
    pub fn and(mut self, keys: &[PublicKey]) -> Self {
        self.0.extend_from_slice(keys);
        self
    }

    /// The keys, if a signature is needed.
    pub fn keys(&self) -> &[PublicKey] {
        &self.0
    }

    /// Who signed a manifest, if anybody has to.
    pub(super) fn check(
        &self,
        manifest: &[u8],
        signature: Option<&[u8]>,
    ) -> Result<Option<Signed>, SignatureError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let signature = Signature::parse(signature.ok_or(SignatureError::Missing)?)?;
        let id = signature.id();
        let Some(key) = self.0.iter().find(|key| key.id() == id) else {
            let trusted: Vec<String> = self.0.iter().map(|key| key.id().to_string()).collect();
            return Err(SignatureError::Foreign { found: id, trusted: trusted.join(", ") });
        };
        // Those of old versions of minisign, which don't hash first, are as good.
        minisign::verify(&key.0, &signature.0, Cursor::new(manifest), true, false, true)
            .map_err(|_| SignatureError::Wrong(id))?;
        let comment = signature.0.trusted_comment().unwrap_or_default();
        Ok(Some(Signed { key: key.clone(), comment }))
    }
}

/// A signature that is good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// The key that it was made with.
    pub key: PublicKey,
    /// What its maker said, which is signed as well.
    pub comment: String,
}

/// A signature of which nothing is known yet but its shape.
struct Signature(minisign::SignatureBox);

impl Signature {
    /// What the library takes for granted is checked here: four lines, and the lengths of what is
    /// encoded in them.
    fn parse(bytes: &[u8]) -> Result<Self, SignatureError> {
        let malformed = SignatureError::Malformed;
        if bytes.len() as u64 > LONGEST {
            return Err(malformed("it is too long"));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| malformed("it is no text"))?;
        let lines: Vec<&str> = text.lines().collect();
        let [_, signature, _, of_both] = lines[..] else {
            return Err(malformed("it has not four lines"));
        };
        for (line, length) in [(signature, 2 + 8 + 64), (of_both, 64)] {
            let bytes = BASE64.decode(line.as_bytes());
            if !bytes.is_ok_and(|bytes| bytes.len() == length) {
                return Err(malformed("what is encoded in it has another length"));
            }
        }
        let parsed = minisign::SignatureBox::from_string(text);
        parsed.map(Self).map_err(|_| malformed("its comments or its algorithm are none"))
    }

    fn id(&self) -> KeyId {
        KeyId::of(self.0.keynum())
    }
}

/// The id of the key that a signature says to be made with.
pub(super) fn key_id(signature: &[u8]) -> Option<KeyId> {
    Signature::parse(signature).ok().map(|signature| signature.id())
}

/// A secret key that can sign.
pub struct SecretKey(minisign::SecretKey);

impl fmt::Debug for SecretKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SecretKey(hidden)")
    }
}

impl SecretKey {
    /// Whether a key's file is protected with a password.
    ///
    /// # Errors
    ///
    /// It is no key.
    pub fn is_protected(file: &SecretString) -> Result<bool, KeyError> {
        // The signature's algorithm, two bytes, then that of the protection.
        match decode(file)?.expose_secret().get(..4) {
            Some(b"EdSc") => Ok(true),
            Some(b"Ed\0\0") => Ok(false),
            _ => Err(KeyError::NotSecret),
        }
    }

    /// The key of a file, with the password that it is protected with, if it is.
    ///
    /// # Errors
    ///
    /// It is no key, or the password is another or missing.
    pub fn unlock(file: &SecretString, password: Option<&SecretString>) -> Result<Self, KeyError> {
        let key = if Self::is_protected(file)? {
            let password = password.ok_or(KeyError::WrongPassword)?.expose_secret().to_owned();
            let boxed = minisign::SecretKeyBox::from(file.expose_secret().to_owned());
            boxed.into_secret_key(Some(password)).map_err(|_| KeyError::WrongPassword)?
        } else {
            // Not as a box: the library wants a checksum, which `minisign -W` does not make.
            let bytes = decode(file)?;
            minisign::SecretKey::from_bytes(bytes.expose_secret())
                .map_err(|_| KeyError::NotSecret)?
        };
        Ok(Self(key))
    }

    /// The public key that goes with it.
    ///
    /// # Errors
    ///
    /// The file was put together wrongly.
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
            .map_err(|error| KeyError::CannotSign(error.to_string()))
    }
}

/// The bytes of a secret key's file, which are in its second line.
fn decode(file: &SecretString) -> Result<SecretSlice<u8>, KeyError> {
    let line = file.expose_secret().lines().nth(1).ok_or(KeyError::NotSecret)?;
    let bytes = BASE64.decode(line.trim().as_bytes()).map_err(|_| KeyError::NotSecret)?;
    if bytes.len() == SECRET_KEY { Ok(bytes.into()) } else { Err(KeyError::NotSecret) }
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
    fn a_signature_is_of_one_manifest_by_one_key() {
        let ((key, public), (_, other)) = (pair(), pair());
        let signature = key.sign(b"manifest", "by hand").unwrap();
        let check = |keys: &[&PublicKey], manifest: &[u8], signature: Option<&[u8]>| {
            Trust::new(keys.iter().map(|key| (*key).clone()).collect()).check(manifest, signature)
        };
        let signed = check(&[&other, &public], b"manifest", Some(&signature)).unwrap();
        assert_eq!(signed, Some(Signed { key: public.clone(), comment: "by hand".to_owned() }));
        let wrong = check(&[&public], b"manifesT", Some(&signature));
        assert!(matches!(wrong, Err(SignatureError::Wrong(id)) if id == public.id()));
        let foreign = check(&[&other], b"manifest", Some(&signature));
        assert!(
            matches!(foreign, Err(SignatureError::Foreign { found, .. }) if found == public.id())
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
        assert!(matches!(error, SignatureError::Wrong(_)));
    }

    #[test]
    fn a_public_key_reads_back_also_from_its_file() {
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
    fn a_file_that_is_no_secret_key_has_no_password() {
        let (_, public) = pair();
        for text in ["", "untrusted comment: x\n", &format!("untrusted comment: x\n{public}\n")] {
            let error = SecretKey::is_protected(&text.into()).unwrap_err();
            assert!(matches!(error, KeyError::NotSecret), "{text}");
        }
    }

    #[test]
    fn a_secret_key_whose_halves_do_not_fit_signs_nothing() {
        let pair = minisign::KeyPair::generate_unencrypted_keypair().unwrap();
        let mut bytes = pair.sk.to_bytes();
        let file = |bytes: &[u8]| {
            SecretString::from(format!("untrusted comment: x\n{}\n", BASE64.encode(bytes)))
        };
        let good = SecretKey::unlock(&file(&bytes), None).unwrap();
        assert!(good.sign(b"manifest", "comment").is_ok());
        // The first byte of the key itself.
        bytes[SECRET_KEY - 32 - 64] ^= 1;
        let bad = SecretKey::unlock(&file(&bytes), None).unwrap();
        assert!(matches!(bad.sign(b"manifest", "comment"), Err(KeyError::CannotSign(_))));
        assert!(SecretKey::unlock(&file(&bytes[1..]), None).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_signature_by_chance(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            at in 0..400usize,
            flip in 1..=255u8,
            cut in 0..100usize,
        ) {
            let (key, public) = pair();
            let trust = Trust::new(vec![public]);
            prop_assert!(trust.check(b"manifest", Some(&bytes)).is_err());
            let good = key.sign(b"manifest", "comment").unwrap();
            // Its first line is not signed, and nobody is told what it says.
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

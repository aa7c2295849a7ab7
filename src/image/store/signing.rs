//! Signatures as they lie in the store, each beside its manifest.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Image, MANIFEST, Store, absent_is_fine};
use crate::image::error::ImageError;
use crate::image::hash;
use crate::image::signature::{KeyId, LONGEST, SIGNATURE, SecretKey, Signed, Trust, key_id};

impl Store {
    /// Who signed an image, if that matters.
    ///
    /// # Errors
    ///
    /// [`ImageError::Untrusted`] if it needs a signature and has none that is trusted.
    pub fn check_signature(
        &self,
        image: &Image,
        trust: &Trust,
    ) -> Result<Option<Signed>, ImageError> {
        if trust.keys().is_empty() {
            return Ok(None);
        }
        let (manifest, signature) = (image.manifest_bytes()?, image.signature()?);
        trust
            .check(&manifest, signature.as_deref())
            .map_err(|source| ImageError::Untrusted { image: image.shown(), source })
    }

    /// Signs an image, in place of the signature that it may have. Its parts are not looked at:
    /// see [`Store::verify`].
    ///
    /// # Errors
    ///
    /// The key can't sign, or the signature can't be written.
    pub fn sign(&self, image: &Image, key: &SecretKey) -> Result<Signed, ImageError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let comment = format!("timestamp:{now}\timage:{}@{}", image.name, image.digest);
        let unusable = |source| ImageError::Key { key: "for signing".to_owned(), source };
        let key_of_it = key.public().map_err(unusable)?;
        let signature = key.sign(&image.manifest_bytes()?, &comment).map_err(unusable)?;
        self.put_signature(image, &signature)?;
        Ok(Signed { key: key_of_it, comment })
    }

    /// Puts a signature beside the manifest, in one step.
    pub(in crate::image) fn put_signature(
        &self,
        image: &Image,
        signature: &[u8],
    ) -> Result<(), ImageError> {
        let _lock = self.lock()?;
        let path = image.directory.join(SIGNATURE);
        // One that was left half-way is in the way; the store's lock keeps others out.
        let new = image.directory.join(format!(".{SIGNATURE}"));
        fs::remove_file(&new).or_else(absent_is_fine).map_err(ImageError::write(&new))?;
        write_sealed(&new, signature).map_err(ImageError::write(&new))?;
        fs::rename(&new, &path)
            .and_then(|()| File::open(&image.directory)?.sync_all())
            .map_err(ImageError::write(path))
    }
}

impl Image {
    /// The id of the key that its signature says to be made with, if it has one: for people, since
    /// nothing is checked.
    pub fn signature_key(&self) -> Option<KeyId> {
        self.signature().ok()?.as_deref().and_then(key_id)
    }

    /// The manifest as it was signed.
    pub(in crate::image) fn manifest_bytes(&self) -> Result<Vec<u8>, ImageError> {
        let path = self.directory.join(MANIFEST);
        let bytes = fs::read(&path).map_err(ImageError::read(&path))?;
        let found = hash::of_bytes(&bytes);
        if found == self.digest {
            return Ok(bytes);
        }
        Err(ImageError::Changed { part: path, expected: self.digest.clone(), found })
    }

    /// The signature, if there is one, whatever it is worth.
    pub(in crate::image) fn signature(&self) -> Result<Option<Vec<u8>>, ImageError> {
        let path = self.directory.join(SIGNATURE);
        let mut bytes = Vec::new();
        // One byte more shows that it is too long.
        let read =
            File::open(&path).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes));
        match read {
            Ok(_) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ImageError::read(path)(error)),
        }
    }
}

/// Writes a new file that is read-only and on the disk afterwards.
pub(in crate::image) fn write_sealed(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(bytes)?;
    file.set_permissions(fs::Permissions::from_mode(0o444))?;
    file.sync_all()
}

//! Signatures in the store, each beside its manifest.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Image, MANIFEST, Store, ignore_not_found};
use crate::error::ImageError;
use crate::hash;
use crate::signature::{KeyId, MAX_FILE_SIZE, SIGNATURE, SecretKey, SignatureInfo, Trust, key_id};

impl Store {
    /// Checks the signature of an image, if `trust` requires one.
    ///
    /// # Errors
    ///
    /// [`ImageError::Untrusted`] if a signature is required and no trusted one exists.
    pub fn check_signature(
        &self,
        image: &Image,
        trust: &Trust,
    ) -> Result<Option<SignatureInfo>, ImageError> {
        if trust.keys().is_empty() {
            return Ok(None);
        }
        let (manifest, signature) = (image.manifest_bytes()?, image.signature()?);
        trust
            .check(&manifest, signature.as_deref())
            .map_err(|source| ImageError::Untrusted { image: image.display_name(), source })
    }

    /// Signs an image and replaces its previous signature. Its parts are not checked: see
    /// [`Store::verify`].
    ///
    /// # Errors
    ///
    /// The key can't sign, or the signature can't be written.
    pub fn sign(&self, image: &Image, key: &SecretKey) -> Result<SignatureInfo, ImageError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let comment = format!("timestamp:{now}\timage:{}@{}", image.name, image.digest);
        let unusable = |source| ImageError::Key { key: "for signing".to_owned(), source };
        let public_key = key.public().map_err(unusable)?;
        let signature = key.sign(&image.manifest_bytes()?, &comment).map_err(unusable)?;
        self.put_signature(image, &signature)?;
        Ok(SignatureInfo { key: public_key, comment })
    }

    /// Puts a signature beside the manifest, atomically.
    pub(crate) fn put_signature(&self, image: &Image, signature: &[u8]) -> Result<(), ImageError> {
        let _lock = self.lock()?;
        let path = image.directory.join(SIGNATURE);
        // Removes the remains of an interrupted change; the store's lock excludes others.
        let new = image.directory.join(format!(".{SIGNATURE}"));
        fs::remove_file(&new).or_else(ignore_not_found).map_err(ImageError::write(&new))?;
        write_read_only(&new, signature).map_err(ImageError::write(&new))?;
        fs::rename(&new, &path)
            .and_then(|()| File::open(&image.directory)?.sync_all())
            .map_err(ImageError::write(path))
    }
}

impl Image {
    /// Returns the key id that its signature claims, if it has one. Nothing is verified.
    pub fn signature_key(&self) -> Option<KeyId> {
        self.signature().ok()?.as_deref().and_then(key_id)
    }

    /// Returns the manifest's bytes, as they are signed.
    pub(crate) fn manifest_bytes(&self) -> Result<Vec<u8>, ImageError> {
        let path = self.directory.join(MANIFEST);
        let bytes = fs::read(&path).map_err(ImageError::read(&path))?;
        let found = hash::of_bytes(&bytes);
        if found == self.digest {
            return Ok(bytes);
        }
        Err(ImageError::Changed { part: path, expected: self.digest.clone(), found })
    }

    /// Reads the signature, if any, without checking it.
    pub(crate) fn signature(&self) -> Result<Option<Vec<u8>>, ImageError> {
        let path = self.directory.join(SIGNATURE);
        let mut bytes = Vec::new();
        // One byte more than the limit shows that it is too long.
        let read =
            File::open(&path).and_then(|file| file.take(MAX_FILE_SIZE + 1).read_to_end(&mut bytes));
        match read {
            Ok(_) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ImageError::read(path)(error)),
        }
    }
}

/// Writes a new file, makes it read-only and syncs it to disk.
pub(crate) fn write_read_only(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(bytes)?;
    file.set_permissions(fs::Permissions::from_mode(0o444))?;
    file.sync_all()
}

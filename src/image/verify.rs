//! Verifies that an image's parts have not changed since the build.
//!
//! Hashing a gigabyte before every boot would take longer than the boot. So the result is cached in
//! a *stamp*: the metadata of each file when it was last hashed. While the metadata is unchanged,
//! the file counts as unchanged. An attacker who can forge a change time can also forge the stamp.

use std::fs::{self, File, Metadata};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::ImageError;
use super::hash;
use super::manifest::Part;
use super::signature::Trust;
use super::store::{Image, Store};

/// Metadata that changes whenever the file does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds since 1970.
    modified: (i64, i64),
    /// Seconds and nanoseconds since 1970. Unlike `modified`, no program can set it.
    changed: (i64, i64),
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// The identities of the bootable parts when they were last hashed, in the manifest's order.
type Stamp = [Identity; 3];

impl Store {
    /// Hashes every part of an image.
    ///
    /// # Errors
    ///
    /// [`ImageError::Changed`] for the first part that has changed.
    pub fn verify(&self, image: &Image) -> Result<(), ImageError> {
        for part in image.manifest.parts.all() {
            verify_part(image, part)?;
        }
        Ok(())
    }

    /// Reads a small part and verifies its digest.
    ///
    /// # Errors
    ///
    /// [`ImageError::Changed`], or the part can't be read.
    pub fn read_verified(&self, image: &Image, part: &Part) -> Result<Vec<u8>, ImageError> {
        let path = image.part(part.file);
        let mut bytes = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(part.bytes).read_to_end(&mut bytes))
            .map_err(ImageError::read(&path))?;
        let found = hash::of_bytes(&bytes);
        if found == part.sha256 {
            return Ok(bytes);
        }
        Err(ImageError::Changed { part: path, expected: part.sha256.clone(), found })
    }

    /// Verifies an image before it is booted: its agent speaks this version of the protocol, it has
    /// a signature that `trust` accepts, and its parts have not changed. The parts are hashed only
    /// if they differ from the stamp of the last verification in `stamps`, a directory that is
    /// created if necessary and that only this user may be able to write to.
    ///
    /// # Errors
    ///
    /// [`ImageError::Protocol`], [`ImageError::Untrusted`], [`ImageError::Changed`], or a part
    /// can't be read or the stamp not written.
    pub fn ensure_verified(
        &self,
        image: &Image,
        stamps: &Path,
        trust: &Trust,
    ) -> Result<(), ImageError> {
        check_protocol(image)?;
        self.check_signature(image, trust)?;
        let path = stamps.join(format!("{}.json", image.digest));
        // Taken before hashing, so that a change in the meantime is noticed the next time.
        let now = stamp(image)?;
        let last: Option<Stamp> =
            fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        if last == Some(now) {
            return Ok(());
        }
        self.verify(image)?;
        write_stamp(&path, stamps, now).map_err(ImageError::write(path))
    }
}

fn check_protocol(image: &Image) -> Result<(), ImageError> {
    let (found, expected) = (image.manifest.protocol, mayfly_protocol::VERSION);
    if found == expected {
        return Ok(());
    }
    Err(ImageError::Protocol { image: image.display_name(), found, expected })
}

fn verify_part(image: &Image, part: &Part) -> Result<(), ImageError> {
    let path = image.part(part.file);
    let mut file = File::open(&path).map_err(ImageError::read(&path))?;
    let (found, _) = hash::of_file(&mut file).map_err(ImageError::read(&path))?;
    if found == part.sha256 {
        return Ok(());
    }
    Err(ImageError::Changed { part: path, expected: part.sha256.clone(), found })
}

fn stamp(image: &Image) -> Result<Stamp, ImageError> {
    let [kernel, initramfs, rootfs] = image.manifest.parts.booted().map(|part| {
        let path = image.part(part.file);
        let metadata = fs::metadata(&path).map_err(ImageError::read(path))?;
        Ok(Identity::of(&metadata))
    });
    Ok([kernel?, initramfs?, rootfs?])
}

/// Writes the stamp atomically: two microVMs may start at once.
fn write_stamp(path: &Path, directory: &Path, stamp: Stamp) -> std::io::Result<()> {
    fs::create_dir_all(directory)?;
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(&serde_json::to_vec(&stamp)?)?;
    file.persist(path)?;
    Ok(())
}

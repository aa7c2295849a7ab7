//! The image store: finds, lists, publishes and removes images.
//!
//! An image's directory is named by the digest of its manifest, appears with one rename, and never
//! changes afterwards except for the manifest's signature. Everything else in the store begins with
//! a dot: builds in progress (`.building-*`) and the lock that serializes the short steps that
//! change names.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::Flock;

use super::error::ImageError;
use super::hash;
use super::manifest::{Manifest, PartName};
use super::name::{Digest, ImageName, Reference};
use mayfly_host::lock;

mod collect;
mod hold;
mod pointers;
mod signing;

pub use collect::{CollectedBuild, CollectionReport, RetainedBuilds, RetentionReason};
pub use hold::{Candidate, Hold};
pub(super) use signing::write_read_only;

/// The manifest's file name.
pub(super) const MANIFEST: &str = "manifest.json";

/// How long to wait for the store's lock. Its holders need milliseconds.
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);

/// A directory of images.
#[derive(Debug, Clone)]
pub struct Store {
    path: PathBuf,
}

/// An image of a store. Its manifest matches its digest; its parts are verified only by
/// [`Store::verify`] or [`Store::ensure_verified`].
#[derive(Debug, Clone)]
pub struct Image {
    /// Its name.
    pub name: ImageName,
    /// The digest of its manifest, which covers all of it.
    pub digest: Digest,
    /// Its directory.
    pub directory: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
}

/// The content of a store.
#[derive(Debug, Default)]
pub struct Listing {
    /// Every image, sorted by name, the current build of a name first; and whether it is the
    /// current one.
    pub images: Vec<(Image, bool)>,
    /// The entries that look like images and can't be read.
    pub broken: Vec<ImageError>,
}

impl Image {
    /// Returns the path of a part.
    pub fn part(&self, part: PartName) -> PathBuf {
        self.directory.join(part.as_str())
    }

    /// Returns the path of the uncompressed kernel.
    pub fn kernel(&self) -> PathBuf {
        self.part(PartName::Kernel)
    }

    /// Returns the path of the initramfs.
    pub fn initramfs(&self) -> PathBuf {
        self.part(PartName::Initramfs)
    }

    /// Returns the path of the root file system, raw ext4.
    pub fn rootfs(&self) -> PathBuf {
        self.part(PartName::Rootfs)
    }

    /// Returns its name and short digest, for messages.
    pub(super) fn display_name(&self) -> String {
        format!("{}@{}", self.name, self.digest.short())
    }

    /// Reads the image in a directory and checks its manifest against `digest`.
    fn read(name: &ImageName, digest: Digest, directory: PathBuf) -> Result<Self, ImageError> {
        let path = directory.join(MANIFEST);
        let bytes = fs::read(&path).map_err(ImageError::read(&path))?;
        let found = hash::of_bytes(&bytes);
        if found != digest {
            return Err(ImageError::Changed { part: path, expected: digest, found });
        }
        let manifest: Manifest = serde_json::from_slice(&bytes)
            .map_err(|source| ImageError::Manifest { path, source })?;
        Ok(Self { name: name.clone(), digest, directory, manifest })
    }
}

impl Store {
    /// Opens the store in a directory, which need not exist yet.
    pub fn open(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lists every image.
    ///
    /// # Errors
    ///
    /// The directory can't be read. A broken image is not an error but part of the listing.
    pub fn list(&self) -> Result<Listing, ImageError> {
        let mut listing = Listing::default();
        for entry in names_in(&self.path)? {
            let Ok(name) = entry.parse::<ImageName>() else { continue };
            let latest = self.latest(&name)?;
            let mut builds = Vec::new();
            for digest in self.digests(&name)? {
                let is_latest = latest.as_ref() == Some(&digest);
                match Image::read(&name, digest.clone(), self.directory(&name, &digest)) {
                    Ok(image) => builds.push((image, is_latest)),
                    Err(error) => listing.broken.push(error),
                }
            }
            builds.sort_by_key(|(image, is_latest)| {
                (!is_latest, std::cmp::Reverse(image.manifest.created))
            });
            listing.images.append(&mut builds);
        }
        Ok(listing)
    }

    /// Finds the image of a reference.
    ///
    /// # Errors
    ///
    /// No image or more than one matches, or its manifest has changed since the build.
    pub fn find(&self, reference: &Reference) -> Result<Image, ImageError> {
        let digest = self.resolve(reference)?;
        let directory = self.directory(&reference.name, &digest);
        Image::read(&reference.name, digest, directory)
    }

    /// Resolves a reference to a digest without reading the image.
    fn resolve(&self, reference: &Reference) -> Result<Digest, ImageError> {
        let name = &reference.name;
        let mut matches = match &reference.digest_prefix {
            None => Vec::from_iter(self.latest(name)?),
            Some(prefix) => {
                let mut digests = self.digests(name)?;
                digests.retain(|digest| digest.as_str().starts_with(prefix));
                digests
            }
        };
        match (matches.pop(), matches.is_empty()) {
            (Some(digest), true) => Ok(digest),
            (None, _) => {
                Err(ImageError::Unknown { reference: reference.clone(), store: self.path.clone() })
            }
            (Some(last), false) => {
                matches.push(last);
                Err(ImageError::Ambiguous { reference: reference.clone(), matches })
            }
        }
    }

    /// Removes an image, broken or not. It disappears at once; processes that have its files open
    /// keep them. If it was the current build of its name, the previous one becomes current.
    ///
    /// # Errors
    ///
    /// The image does not exist or can't be removed.
    pub fn remove(&self, reference: &Reference) -> Result<Digest, ImageError> {
        let lock = self.lock()?;
        let digest = self.resolve(reference)?;
        let (name, directory) = (&reference.name, self.directory(&reference.name, &digest));
        let was_latest = self.latest(name)?.as_ref() == Some(&digest);
        // Into a directory that no build locks: if this is interrupted, the next build removes it.
        let scratch = super::build::disposable_directory(&self.path)?;
        let aside = scratch.join(digest.as_str());
        fs::rename(&directory, &aside).map_err(ImageError::write(&directory))?;
        if was_latest {
            self.point_to_next(name)?;
        }
        drop(lock);
        // A build that started in the meantime may be removing it as well.
        fs::remove_dir_all(&scratch)
            .or_else(ignore_not_found)
            .map_err(ImageError::write(&scratch))?;
        Ok(digest)
    }

    /// Moves a finished image into the store. The current build of its name stays until
    /// [`Store::promote`]. If another build has published the same image already, an intact one
    /// stays and `finished` is not used.
    pub(super) fn publish(
        &self,
        finished: &Path,
        name: &ImageName,
        digest: Digest,
    ) -> Result<Candidate, ImageError> {
        let _lock = self.lock()?;
        let target = self.directory(name, &digest);
        let parent = self.path.join(name.as_str());
        fs::create_dir_all(&parent).map_err(ImageError::write(&parent))?;
        let present = Image::read(name, digest.clone(), target.clone());
        let intact = present.is_ok_and(|image| self.verify(&image).is_ok());
        if !intact {
            // A damaged image is moved aside and removed with the build's directory.
            let aside = finished.with_extension("replaced");
            fs::rename(&target, &aside)
                .or_else(ignore_not_found)
                .map_err(ImageError::write(&target))?;
            fs::rename(finished, &target).map_err(ImageError::write(&target))?;
        }
        for directory in [&parent, &self.path] {
            let synced = File::open(directory).and_then(|directory| directory.sync_all());
            synced.map_err(ImageError::write(directory))?;
        }
        // Taken before the store's lock is released, so that no collection can remove it.
        let hold = Hold::take(&target).map_err(ImageError::read(&target))?;
        Ok(Candidate { image: Image::read(name, digest, target)?, _hold: hold })
    }

    /// Locks the store for changes of names, for as long as the value lives.
    pub(super) fn lock(&self) -> Result<Flock<File>, ImageError> {
        fs::create_dir_all(&self.path).map_err(ImageError::write(&self.path))?;
        let path = self.path.join(".lock");
        let mut options = File::options();
        options.create(true).truncate(false).write(true);
        let try_lock = || lock::try_exclusive(options.open(&path)?);
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            if let Some(lock) = try_lock().map_err(ImageError::write(&path))? {
                return Ok(lock);
            }
            if Instant::now() > deadline {
                return Err(ImageError::StoreBusy { store: self.path.clone() });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn directory(&self, name: &ImageName, digest: &Digest) -> PathBuf {
        self.path.join(name.as_str()).join(digest.as_str())
    }

    /// Returns the digests of a name's builds, sorted.
    fn digests(&self, name: &ImageName) -> Result<Vec<Digest>, ImageError> {
        let names = names_in(&self.path.join(name.as_str()))?;
        Ok(names.into_iter().filter_map(|name| Digest::try_from(name).ok()).collect())
    }
}

/// Returns the entries of a directory, sorted; empty if it does not exist. Names that are not UTF-8
/// do not belong to the store.
fn names_in(directory: &Path) -> Result<Vec<String>, ImageError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(ImageError::read(directory)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(ImageError::read(directory))?;
        names.extend(entry.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

fn ignore_not_found(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

#[cfg(test)]
pub(super) mod tests;

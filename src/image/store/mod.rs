//! Where images are kept: finding, listing, publishing and removing them.
//!
//! An image's directory is called by the digest of its manifest, is put there by one rename and
//! never changes afterwards, but for the signature of the manifest. Whatever else is in the store begins with a dot: builds under way
//! (`.building-*`) and the lock that orders the short steps that change names.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use super::error::ImageError;
use super::hash;
use super::manifest::{Manifest, PartName};
use super::name::{Digest, ImageName, Reference};

mod collect;
mod hold;
mod meaning;
mod signing;

pub use collect::{Build, Collection, Kept, Retention};
pub use hold::{Candidate, Hold};
pub(super) use signing::write_sealed;

/// The manifest's file name.
pub(super) const MANIFEST: &str = "manifest.json";

/// How long to wait for others that change names in the store; each takes milliseconds.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);

/// A directory of images.
#[derive(Debug, Clone)]
pub struct Store {
    path: PathBuf,
}

/// An image of a store. Its manifest is that of its digest; its parts are as built only after
/// [`Store::verify`] or [`Store::ensure_verified`].
#[derive(Debug, Clone)]
pub struct Image {
    /// What it is called.
    pub name: ImageName,
    /// The digest of its manifest, which stands for all of it.
    pub digest: Digest,
    /// Where it is.
    pub directory: PathBuf,
    /// What it is.
    pub manifest: Manifest,
}

/// What a store holds.
#[derive(Debug, Default)]
pub struct Listing {
    /// Every image, by name, the newest build of a name first; and whether its name alone means
    /// it.
    pub images: Vec<(Image, bool)>,
    /// What looks like an image and is none.
    pub broken: Vec<ImageError>,
}

impl Image {
    /// The path of a part.
    pub fn part(&self, part: PartName) -> PathBuf {
        self.directory.join(part.as_str())
    }

    /// The path of the uncompressed kernel.
    pub fn kernel(&self) -> PathBuf {
        self.part(PartName::Kernel)
    }

    /// The path of the initramfs.
    pub fn initramfs(&self) -> PathBuf {
        self.part(PartName::Initramfs)
    }

    /// The path of the root file system, raw ext4.
    pub fn rootfs(&self) -> PathBuf {
        self.part(PartName::Rootfs)
    }

    /// How messages call it.
    pub(super) fn shown(&self) -> String {
        format!("{}@{}", self.name, self.digest.short())
    }

    /// The image in a directory, if its manifest is the one that `digest` stands for.
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
    /// The store in a directory, which need not be there yet.
    pub fn open(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Everything in it.
    ///
    /// # Errors
    ///
    /// The directory can't be read. A broken image is no error but part of the answer.
    pub fn list(&self) -> Result<Listing, ImageError> {
        let mut listing = Listing::default();
        for entry in names_in(&self.path)? {
            let Ok(name) = entry.parse::<ImageName>() else { continue };
            let newest = self.newest(&name)?;
            let mut builds = Vec::new();
            for digest in self.digests(&name)? {
                let is_newest = newest.as_ref() == Some(&digest);
                match Image::read(&name, digest.clone(), self.directory(&name, &digest)) {
                    Ok(image) => builds.push((image, is_newest)),
                    Err(error) => listing.broken.push(error),
                }
            }
            builds.sort_by_key(|(image, newest)| {
                (!newest, std::cmp::Reverse(image.manifest.created))
            });
            listing.images.append(&mut builds);
        }
        Ok(listing)
    }

    /// The image that a reference means.
    ///
    /// # Errors
    ///
    /// There is none, more than one, or its manifest is not what it was when it was built.
    pub fn find(&self, reference: &Reference) -> Result<Image, ImageError> {
        let digest = self.resolve(reference)?;
        let directory = self.directory(&reference.name, &digest);
        Image::read(&reference.name, digest, directory)
    }

    /// The digest that a reference means, without a look at the image.
    fn resolve(&self, reference: &Reference) -> Result<Digest, ImageError> {
        let name = &reference.name;
        let mut matches = match &reference.digest_prefix {
            None => Vec::from_iter(self.newest(name)?),
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

    /// Removes an image, broken or not, at once for whoever looks for it. Who has its files open
    /// keeps them. If its name meant it, the name means what it meant before.
    ///
    /// # Errors
    ///
    /// There is no such image, or it can't be removed.
    pub fn remove(&self, reference: &Reference) -> Result<Digest, ImageError> {
        let lock = self.lock()?;
        let digest = self.resolve(reference)?;
        let (name, directory) = (&reference.name, self.directory(&reference.name, &digest));
        let meant = self.newest(name)?.as_ref() == Some(&digest);
        // In a directory that no build holds: should this stop half-way, the next build removes it.
        let doomed = super::build::doomed_directory(&self.path)?;
        let aside = doomed.join(digest.as_str());
        fs::rename(&directory, &aside).map_err(ImageError::write(&directory))?;
        if meant {
            self.repoint(name)?;
        }
        drop(lock);
        // A build that began in the meantime may be at it as well.
        fs::remove_dir_all(&doomed).or_else(absent_is_fine).map_err(ImageError::write(&doomed))?;
        Ok(digest)
    }

    /// Puts a finished image in its place; its name means what it meant until [`Store::adopt`]. The
    /// same image may be there already, from another build: then that one stays if it is whole,
    /// and `finished` is left.
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
        let whole = present.is_ok_and(|image| self.verify(&image).is_ok());
        if !whole {
            // What is there but not whole makes room, and goes with the build's directory.
            let aside = finished.with_extension("replaced");
            fs::rename(&target, &aside)
                .or_else(absent_is_fine)
                .map_err(ImageError::write(&target))?;
            fs::rename(finished, &target).map_err(ImageError::write(&target))?;
        }
        for directory in [&parent, &self.path] {
            let synced = File::open(directory).and_then(|directory| directory.sync_all());
            synced.map_err(ImageError::write(directory))?;
        }
        // Before the store's lock is let go: a collection comes too late for it.
        let hold = Hold::take(&target).map_err(ImageError::read(&target))?;
        Ok(Candidate { image: Image::read(name, digest, target)?, _hold: hold })
    }

    /// Orders those who change names in the store. Held for as long as the value lives.
    pub(super) fn lock(&self) -> Result<Flock<File>, ImageError> {
        fs::create_dir_all(&self.path).map_err(ImageError::write(&self.path))?;
        let path = self.path.join(".lock");
        let mut options = File::options();
        options.create(true).truncate(false).write(true);
        let mut file = options.open(&path).map_err(ImageError::write(&path))?;
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(lock),
                Err((_, errno)) if errno != nix::errno::Errno::EWOULDBLOCK => {
                    return Err(ImageError::write(path)(errno.into()));
                }
                Err(_) if Instant::now() > deadline => {
                    return Err(ImageError::StoreBusy { store: self.path.clone() });
                }
                Err((unlocked, _)) => file = unlocked,
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn directory(&self, name: &ImageName, digest: &Digest) -> PathBuf {
        self.path.join(name.as_str()).join(digest.as_str())
    }

    /// The digests of a name's builds, sorted.
    fn digests(&self, name: &ImageName) -> Result<Vec<Digest>, ImageError> {
        let names = names_in(&self.path.join(name.as_str()))?;
        Ok(names.into_iter().filter_map(|name| Digest::try_from(name).ok()).collect())
    }
}

/// What is in a directory, sorted; nothing if there is no such directory. Names that are not
/// UTF-8 are none of the store's.
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

fn absent_is_fine(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

#[cfg(test)]
pub(super) mod tests;

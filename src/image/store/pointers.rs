//! The current and the previous build of each name.
//!
//! Two symbolic links beside the builds of a name record them: `latest` is the current build,
//! `previous` the one before, for a rollback. Each is replaced by one rename, `previous` first: an
//! interruption between the two does not change what is booted.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::time::SystemTime;

use super::{Candidate, Image, MANIFEST, Store, ignore_not_found};
use crate::error::ImageError;
use crate::name::{Digest, ImageName, LATEST, PREVIOUS, Reference};

impl Store {
    /// Makes a build the current one of its name.
    ///
    /// # Errors
    ///
    /// The build does not exist, or its manifest has changed.
    pub fn point(&self, reference: &Reference) -> Result<Image, ImageError> {
        let _lock = self.lock()?;
        let image = self.find(reference)?;
        self.set_latest(&image.name, &image.digest)?;
        Ok(image)
    }

    /// Makes a published image the current build of its name.
    ///
    /// # Errors
    ///
    /// The links can't be changed.
    pub fn promote(&self, candidate: &Candidate) -> Result<Image, ImageError> {
        self.point(&Reference::exactly(&candidate.image.name, &candidate.image.digest))
    }

    /// Makes the previous build of a name current. A second rollback undoes the first.
    ///
    /// # Errors
    ///
    /// The name has no previous build, or that build was removed or has changed.
    pub fn rollback(&self, name: &ImageName) -> Result<Image, ImageError> {
        let _lock = self.lock()?;
        let plain = Reference { name: name.clone(), digest_prefix: None };
        // A name without a current build is unknown, whatever its previous one is.
        self.resolve(&plain)?;
        let Some(previous) = self.previous(name)? else {
            return Err(ImageError::NoPrevious { name: name.clone() });
        };
        let image = self.find(&Reference::exactly(name, &previous))?;
        self.set_latest(name, &previous)?;
        Ok(image)
    }

    /// Returns the current build of a name, if it exists.
    pub(super) fn latest(&self, name: &ImageName) -> Result<Option<Digest>, ImageError> {
        self.target(name, LATEST)
    }

    /// Returns the previous build of a name, if it exists.
    ///
    /// # Errors
    ///
    /// The link can't be read.
    pub fn previous(&self, name: &ImageName) -> Result<Option<Digest>, ImageError> {
        let latest = self.latest(name)?;
        Ok(self.target(name, PREVIOUS)?.filter(|previous| latest.as_ref() != Some(previous)))
    }

    /// Selects another current build after the current one was removed: the previous one, else the
    /// most recently published. Needs the store's lock.
    pub(super) fn point_to_next(&self, name: &ImageName) -> Result<(), ImageError> {
        if let Some(next) = self
            .previous(name)?
            .map_or_else(|| self.latest_published(name), |digest| Ok(Some(digest)))?
        {
            return self.link(name, LATEST, &next);
        }
        let parent = self.path().join(name.as_str());
        for link in [LATEST, PREVIOUS].map(|link| parent.join(link)) {
            fs::remove_file(&link).or_else(ignore_not_found).map_err(ImageError::write(link))?;
        }
        // Files that do not belong to the store stay.
        let _ = fs::remove_dir(&parent);
        Ok(())
    }

    /// Returns roughly when a build was published; its manifest never changes afterwards.
    pub(super) fn published(&self, name: &ImageName, digest: &Digest) -> SystemTime {
        let manifest = self.directory(name, digest).join(MANIFEST);
        let modified = fs::metadata(manifest).and_then(|metadata| metadata.modified());
        // A build without a manifest sorts last.
        modified.unwrap_or(SystemTime::UNIX_EPOCH)
    }

    fn latest_published(&self, name: &ImageName) -> Result<Option<Digest>, ImageError> {
        let builds = self.digests(name)?.into_iter();
        Ok(builds.max_by_key(|digest| self.published(name, digest)))
    }

    /// Makes a build current and records the one before. Needs the store's lock.
    fn set_latest(&self, name: &ImageName, digest: &Digest) -> Result<(), ImageError> {
        match self.latest(name)? {
            Some(latest) if latest == *digest => return Ok(()),
            Some(latest) => self.link(name, PREVIOUS, &latest)?,
            None => {}
        }
        self.link(name, LATEST, digest)
    }

    /// Points a link to a build, atomically.
    fn link(&self, name: &ImageName, link: &str, digest: &Digest) -> Result<(), ImageError> {
        let parent = self.path().join(name.as_str());
        let (new, link) = (parent.join(format!(".{link}")), parent.join(link));
        // Removes the remains of an interrupted change; the store's lock excludes others.
        fs::remove_file(&new).or_else(ignore_not_found).map_err(ImageError::write(&new))?;
        symlink(digest.as_str(), &new).map_err(ImageError::write(&new))?;
        fs::rename(&new, &link).map_err(ImageError::write(link))
    }

    /// Returns the build that a link points to, if it exists.
    fn target(&self, name: &ImageName, link: &str) -> Result<Option<Digest>, ImageError> {
        let link = self.path().join(name.as_str()).join(link);
        let target = match fs::read_link(&link) {
            Ok(target) => target,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(ImageError::read(link)(error)),
        };
        let digest = target.to_str().and_then(|target| Digest::try_from(target.to_owned()).ok());
        let Some(digest) = digest else { return Ok(None) };
        let directory = self.directory(name, &digest);
        match fs::metadata(&directory) {
            Ok(found) => Ok(found.is_dir().then_some(digest)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // A build that can't be read may be the current one and must not be collected.
            Err(error) => Err(ImageError::read(directory)(error)),
        }
    }
}

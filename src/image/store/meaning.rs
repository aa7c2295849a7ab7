//! Which build a name means, and which it meant before.
//!
//! Two symbolic links beside the builds of a name say so. `latest` is what the name means;
//! `previous` is what it meant before, to go back to. Each is changed by one rename, `previous`
//! first: whoever stops in between has changed nothing that anybody boots.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::time::SystemTime;

use super::{Candidate, Image, MANIFEST, Store, absent_is_fine};
use crate::image::error::ImageError;
use crate::image::name::{Digest, ImageName, LATEST, PREVIOUS, Reference};

impl Store {
    /// Lets a name mean a certain build of it.
    ///
    /// # Errors
    ///
    /// There is no such build, or it is not what was built.
    pub fn point(&self, reference: &Reference) -> Result<Image, ImageError> {
        let _lock = self.lock()?;
        let image = self.find(reference)?;
        self.let_mean(&image.name, &image.digest)?;
        Ok(image)
    }

    /// Lets the name of a finished image mean it.
    ///
    /// # Errors
    ///
    /// The links can't be changed.
    pub fn adopt(&self, candidate: &Candidate) -> Result<Image, ImageError> {
        self.point(&Reference::exactly(&candidate.image.name, &candidate.image.digest))
    }

    /// Lets a name mean the build that it meant before; done again, what it means now.
    ///
    /// # Errors
    ///
    /// It meant no other, or that one is not there any more, or not what was built.
    pub fn rollback(&self, name: &ImageName) -> Result<Image, ImageError> {
        let _lock = self.lock()?;
        let plain = Reference { name: name.clone(), digest_prefix: None };
        // A name that means nothing is unknown, whatever it meant.
        self.resolve(&plain)?;
        let Some(previous) = self.previous(name)? else {
            return Err(ImageError::NoPrevious { name: name.clone() });
        };
        let image = self.find(&Reference::exactly(name, &previous))?;
        self.let_mean(name, &previous)?;
        Ok(image)
    }

    /// The build that a name means, if it is there.
    pub(super) fn newest(&self, name: &ImageName) -> Result<Option<Digest>, ImageError> {
        self.target(name, LATEST)
    }

    /// The build that a name meant before the one that it means, if it is there.
    ///
    /// # Errors
    ///
    /// The link can't be read.
    pub fn previous(&self, name: &ImageName) -> Result<Option<Digest>, ImageError> {
        let newest = self.newest(name)?;
        Ok(self.target(name, PREVIOUS)?.filter(|previous| newest.as_ref() != Some(previous)))
    }

    /// Lets a name mean another build after the one that it meant was removed: the one before,
    /// else the one that was published last. Needs the store's lock.
    pub(super) fn repoint(&self, name: &ImageName) -> Result<(), ImageError> {
        if let Some(next) = self
            .previous(name)?
            .map_or_else(|| self.last_published(name), |digest| Ok(Some(digest)))?
        {
            return self.link(name, LATEST, &next);
        }
        let parent = self.path().join(name.as_str());
        for link in [LATEST, PREVIOUS].map(|link| parent.join(link)) {
            fs::remove_file(&link).or_else(absent_is_fine).map_err(ImageError::write(link))?;
        }
        // What else somebody put there stays.
        let _ = fs::remove_dir(&parent);
        Ok(())
    }

    /// When a build was published, or nearly so; its manifest never changes afterwards.
    pub(super) fn published(&self, name: &ImageName, digest: &Digest) -> SystemTime {
        let manifest = self.directory(name, digest).join(MANIFEST);
        let modified = fs::metadata(manifest).and_then(|metadata| metadata.modified());
        // One without a manifest is none that anybody wants back.
        modified.unwrap_or(SystemTime::UNIX_EPOCH)
    }

    fn last_published(&self, name: &ImageName) -> Result<Option<Digest>, ImageError> {
        let builds = self.digests(name)?.into_iter();
        Ok(builds.max_by_key(|digest| self.published(name, digest)))
    }

    /// Lets a name mean a build, and remembers what it meant. Needs the store's lock.
    fn let_mean(&self, name: &ImageName, digest: &Digest) -> Result<(), ImageError> {
        match self.newest(name)? {
            Some(newest) if newest == *digest => return Ok(()),
            Some(newest) => self.link(name, PREVIOUS, &newest)?,
            None => {}
        }
        self.link(name, LATEST, digest)
    }

    /// Lets a link point to a build, in one step.
    fn link(&self, name: &ImageName, link: &str, digest: &Digest) -> Result<(), ImageError> {
        let parent = self.path().join(name.as_str());
        let (new, link) = (parent.join(format!(".{link}")), parent.join(link));
        // A link that was left half-way is in the way; the store's lock keeps others out.
        fs::remove_file(&new).or_else(absent_is_fine).map_err(ImageError::write(&new))?;
        symlink(digest.as_str(), &new).map_err(ImageError::write(&new))?;
        fs::rename(&new, &link).map_err(ImageError::write(link))
    }

    /// The build that a link points to, if it is there.
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
            // One that can't be looked at may well be what is meant, and is not to be collected.
            Err(error) => Err(ImageError::read(directory)(error)),
        }
    }
}

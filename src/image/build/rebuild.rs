//! Builds an image again, to see whether its inputs give the same bytes.

use super::{Builder, agent};
use crate::image::diff::{self, Change};
use crate::image::error::ImageError;
use crate::image::files::{self, FileChange};
use crate::image::hash;
use crate::image::name::Digest;
use crate::image::store::{Image, Store};

/// An image that was built again.
#[derive(Debug)]
pub struct Rebuilt {
    /// Its digest: the same, if it is the same image.
    pub digest: Digest,
    /// What its manifest says otherwise: packages, parts, programs that made it.
    pub changes: Vec<Change>,
    /// The files of the root file system that differ.
    pub files: Vec<FileChange>,
}

impl Builder<'_> {
    /// Builds an image again, from the same recipe, agent and date, and compares. The store keeps
    /// nothing of it.
    ///
    /// # Errors
    ///
    /// The recipe or the agent is another ([`ImageError::OtherInput`]), or the build fails.
    pub fn rebuild(&self, image: &Image) -> Result<Rebuilt, ImageError> {
        self.check_inputs(image)?;
        self.in_workspace(|workspace, _, _| {
            let scratch = Store::open(workspace.work().join("store"));
            let date = Some(image.manifest.created);
            let again = Builder { store: &scratch, date, ..*self }.build()?;
            self.progress.step("comparing");
            Ok(Rebuilt {
                changes: diff::between(&image.manifest, &again.manifest),
                files: changed_files(image, &again)?,
                digest: again.digest,
            })
        })
    }

    /// What would make another image for certain is refused before anything is built.
    fn check_inputs(&self, image: &Image) -> Result<(), ImageError> {
        let inputs = &image.manifest.inputs;
        let agent = hash::of_bytes(&agent::read_agent(self.agent)?);
        let given = [
            (&inputs.recipe, &self.recipe.digest, self.recipe.path.as_path()),
            (&inputs.agent.sha256, &agent, self.agent),
        ];
        match given.into_iter().find(|(expected, found, _)| expected != found) {
            None => Ok(()),
            Some((expected, found, path)) => Err(ImageError::OtherInput {
                path: path.to_owned(),
                image: format!("{}@{}", image.name, image.digest.short()),
                expected: expected.clone(),
                found: found.clone(),
            }),
        }
    }
}

fn changed_files(image: &Image, again: &Image) -> Result<Vec<FileChange>, ImageError> {
    let digest = |image: &Image| image.manifest.parts.rootfs.sha256.clone();
    if digest(image) == digest(again) {
        return Ok(Vec::new());
    }
    files::between(&image.rootfs(), &again.rootfs())
}

//! Rebuilds an image, to check whether the same inputs give the same bytes.

use super::{Builder, agent};
use crate::diff::{self, ManifestChange};
use crate::error::ImageError;
use crate::files::{self, FileChange};
use crate::hash;
use crate::name::Digest;
use crate::store::{Image, Store};

/// The result of a rebuild.
#[derive(Debug)]
pub struct Rebuilt {
    /// The digest of the rebuilt image; equal if the image is identical.
    pub digest: Digest,
    /// The differences of the manifests: packages, parts, build tools.
    pub changes: Vec<ManifestChange>,
    /// The files of the root file system that differ.
    pub files: Vec<FileChange>,
}

impl Builder<'_> {
    /// Rebuilds an image from the same recipe, agent and date, and compares. The store is
    /// unchanged.
    ///
    /// # Errors
    ///
    /// The recipe or the agent differs ([`ImageError::InputMismatch`]), or the build fails.
    pub fn rebuild(&self, image: &Image) -> Result<Rebuilt, ImageError> {
        self.check_inputs(image)?;
        self.in_workspace(|workspace, _, _| {
            let scratch = Store::open(workspace.work().join("store"));
            let date = Some(image.manifest.created);
            let rebuilt = Builder { store: &scratch, date, ..*self }.build()?;
            self.progress.step("comparing");
            Ok(Rebuilt {
                changes: diff::between(&image.manifest, &rebuilt.manifest),
                files: changed_files(image, &rebuilt)?,
                digest: rebuilt.digest,
            })
        })
    }

    /// Rejects inputs that would certainly give another image.
    fn check_inputs(&self, image: &Image) -> Result<(), ImageError> {
        let inputs = &image.manifest.inputs;
        let agent = hash::of_bytes(&agent::read_agent(self.agent)?);
        let given = [
            (&inputs.recipe, &self.recipe.digest, self.recipe.path.as_path()),
            (&inputs.agent.sha256, &agent, self.agent),
        ];
        match given.into_iter().find(|(expected, found, _)| expected != found) {
            None => Ok(()),
            Some((expected, found, path)) => Err(ImageError::InputMismatch {
                path: path.to_owned(),
                image: format!("{}@{}", image.name, image.digest.short()),
                expected: expected.clone(),
                found: found.clone(),
            }),
        }
    }
}

fn changed_files(image: &Image, rebuilt: &Image) -> Result<Vec<FileChange>, ImageError> {
    let digest = |image: &Image| image.manifest.parts.rootfs.sha256.clone();
    if digest(image) == digest(rebuilt) {
        return Ok(Vec::new());
    }
    files::between(&image.rootfs(), &rebuilt.rootfs())
}

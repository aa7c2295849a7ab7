//! Gets what comes from elsewhere than the distribution, before anything long is begun.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::Build;
use super::archive::{self, Member, TarballError};
use super::layer::{Access, Layer};
use super::runner::{ActionsRunner, RunnerSource, Wanted};
use crate::image::download::{self, Downloader};
use crate::image::error::ImageError;
use crate::image::manifest;
use crate::image::recipe::{Content, Download};

/// What was fetched.
pub(super) struct Fetched<'c> {
    /// GitHub's runner.
    pub(super) runner: Option<ActionsRunner<'c>>,
    /// The downloads of the recipe, each with what was downloaded.
    pub(super) downloads: Vec<(&'c Download, PathBuf)>,
}

impl Build<'_> {
    pub(super) fn fetch<'c>(
        &self,
        wanted: Option<Wanted>,
        content: &'c Content,
    ) -> Result<Fetched<'c>, ImageError> {
        let tell = |line: &str| self.builder.progress.detail(line);
        let downloader = Downloader::new(self.builder.store, self.runner.deadline.at(), &tell)?;
        let mut downloads = Vec::new();
        for download in &content.downloads {
            self.step(&format!("fetching {} {}", download.name, download.version))?;
            let (url, sha256) = (download.url.as_str(), &download.sha256);
            let path = downloader.fetch(&download::Wanted { url, sha256, token: None })?;
            downloads.push((download, path));
        }
        let Some(wanted) = wanted else { return Ok(Fetched { runner: None, downloads }) };
        let path = match &wanted.source {
            RunnerSource::Archive(path) => path.clone(),
            RunnerSource::Release(release) => {
                self.step(&format!("fetching the runner {}", release.version))?;
                downloader.fetch(&download::Wanted {
                    url: &release.url,
                    sha256: &release.sha256,
                    token: release.token.as_ref(),
                })?
            }
        };
        Ok(Fetched { runner: wanted.open(path, content)?, downloads })
    }
}

/// Adds a download to the layer, as root's.
pub(super) fn add(
    download: &Download,
    path: &Path,
    layer: &mut Layer,
) -> Result<manifest::Download, ImageError> {
    let mut file = File::open(path).map_err(ImageError::read(path))?;
    let (to, access) = (download.path.as_str(), Access { owner: 0, mode: download.mode.0 });
    match &download.member {
        None => {
            let length = file.metadata().map_err(ImageError::read(path))?.len();
            layer.file(to, access, length, &mut file)?;
        }
        Some(member) => {
            let unfit =
                |source| ImageError::Tarball { path: download.url.to_string().into(), source };
            let (bytes, content) = member_of(file, member).map_err(unfit)?;
            layer.file(to, access, bytes, content.as_slice())?;
        }
    }
    Ok(manifest::Download {
        name: download.name.to_string(),
        version: download.version.to_string(),
        path: to.to_owned(),
        url: download.url.to_string(),
        sha256: download.sha256.clone(),
    })
}

/// The largest file that is taken out of an archive.
const MEMBER_LIMIT: u64 = 512 << 20;

/// One file of an archive.
fn member_of(file: File, wanted: &str) -> Result<(u64, Vec<u8>), TarballError> {
    let mut found = None;
    archive::read::<TarballError>(file, |path, member| {
        if let Member::File { bytes, content, .. } = member
            && path == wanted
        {
            if bytes > MEMBER_LIMIT {
                return Err(TarballError::TooLarge);
            }
            let mut whole = Vec::new();
            content.read_to_end(&mut whole)?;
            found = Some((bytes, whole));
        }
        Ok(())
    })?;
    found.ok_or_else(|| TarballError::Lacks(wanted.to_owned()))
}

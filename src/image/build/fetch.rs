//! Fetches content from outside the distribution, before any slow step.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::Build;
use super::archive::{self, Member, TarballError};
use super::layer::{Access, Layer};
use super::runner::{ActionsRunner, RunnerRequest, RunnerSource};
use crate::download::{self, Downloader};
use crate::error::ImageError;
use crate::manifest;
use crate::recipe::{DownloadSpec, RecipeContent};

/// The fetched content.
pub(super) struct Fetched<'c> {
    /// GitHub's runner.
    pub(super) runner: Option<ActionsRunner<'c>>,
    /// The downloads of the recipe, each with its file.
    pub(super) downloads: Vec<(&'c DownloadSpec, PathBuf)>,
}

impl Build<'_> {
    pub(super) fn fetch<'c>(
        &self,
        runner_request: Option<RunnerRequest>,
        content: &'c RecipeContent,
    ) -> Result<Fetched<'c>, ImageError> {
        let report = |line: &str| self.builder.progress.detail(line);
        let downloader = Downloader::new(self.builder.store, self.runner.deadline.at(), &report)?;
        let mut downloads = Vec::new();
        for download in &content.downloads {
            self.step(&format!("fetching {} {}", download.name, download.version))?;
            let (url, sha256) = (download.url.as_str(), &download.sha256);
            let path = downloader.fetch(&download::DownloadRequest { url, sha256, token: None })?;
            downloads.push((download, path));
        }
        let Some(runner_request) = runner_request else {
            return Ok(Fetched { runner: None, downloads });
        };
        let path = match &runner_request.source {
            RunnerSource::Archive(path) => path.clone(),
            RunnerSource::Release(release) => {
                self.step(&format!("fetching the runner {}", release.version))?;
                downloader.fetch(&download::DownloadRequest {
                    url: &release.url,
                    sha256: &release.sha256,
                    token: release.token.as_ref(),
                })?
            }
        };
        Ok(Fetched { runner: runner_request.open(path, content)?, downloads })
    }
}

/// Adds a download to the layer, owned by root.
pub(super) fn add(
    download: &DownloadSpec,
    path: &Path,
    layer: &mut Layer,
) -> Result<manifest::InstalledDownload, ImageError> {
    let mut file = File::open(path).map_err(ImageError::read(path))?;
    let (to, access) = (download.path.as_str(), Access { owner: 0, mode: download.mode.0 });
    match &download.member {
        None => {
            let length = file.metadata().map_err(ImageError::read(path))?.len();
            layer.file(to, access, length, &mut file)?;
        }
        Some(member) => {
            let tarball_error =
                |source| ImageError::Tarball { path: download.url.to_string().into(), source };
            let (bytes, content) = extract_member(file, member).map_err(tarball_error)?;
            layer.file(to, access, bytes, content.as_slice())?;
        }
    }
    Ok(manifest::InstalledDownload {
        name: download.name.to_string(),
        version: download.version.to_string(),
        path: to.to_owned(),
        url: download.url.to_string(),
        sha256: download.sha256.clone(),
    })
}

/// The largest file that is extracted from an archive, in bytes.
const MAX_MEMBER: u64 = 512 << 20;

/// Extracts one file of an archive.
fn extract_member(file: File, member_path: &str) -> Result<(u64, Vec<u8>), TarballError> {
    let mut found = None;
    archive::read::<TarballError>(file, |path, member| {
        if let Member::File { bytes, content, .. } = member
            && path == member_path
        {
            if bytes > MAX_MEMBER {
                return Err(TarballError::TooLarge);
            }
            let mut data = Vec::new();
            content.read_to_end(&mut data)?;
            found = Some((bytes, data));
        }
        Ok(())
    })?;
    found.ok_or_else(|| TarballError::MissingFile(member_path.to_owned()))
}

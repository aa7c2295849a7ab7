//! Asks GitHub for the newest runner that it gives an account.

use std::path::Path;

use crate::cli::config;
use crate::cli::report::Problem;
use crate::daemon::{self, DaemonError};
use crate::failure::Code;
use crate::github::RunnerDownload;
use crate::image::Digest;
use crate::image::build::{RunnerRelease, RunnerSource};

/// Where the newest runner is for the account of the settings in `file`.
pub(super) fn runner(file: &Path) -> Result<RunnerSource, Problem> {
    let settings = config::load(Some(file))?;
    let Some(github) = &settings.github else {
        let message = format!("{} has no [github] to ask for the newest runner", file.display());
        return Err(Problem::file(message, Code::BadConfiguration));
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime
        .map_err(|error| Problem::file(format!("no runtime: {error}"), Code::Unavailable))?;
    let download = runtime.block_on(async {
        let client = daemon::github_client(github).map_err(DaemonError::from)?;
        Ok::<_, Problem>(client.runner_download().await?)
    })?;
    release(download).map(RunnerSource::Release).map_err(|what| {
        Problem::file(format!("GitHub gives {} {what}", github.url()), Code::BadData)
    })
}

/// What a build needs to know of a download, if all of it is there.
fn release(download: Option<RunnerDownload>) -> Result<RunnerRelease, &'static str> {
    let download = download.ok_or("no runner for Linux on x64")?;
    let version = download.version.parse().map_err(|_| "a runner whose version is none")?;
    let digest = download.sha256.ok_or("a runner without its digest; download it yourself")?;
    let sha256 = Digest::try_from(digest.to_ascii_lowercase())
        .map_err(|_| "a runner whose digest is none")?;
    Ok(RunnerRelease { version, url: download.url, sha256, token: download.token })
}

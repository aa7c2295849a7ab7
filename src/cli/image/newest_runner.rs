//! Finds the newest runner that GitHub offers an account.

use std::path::Path;

use crate::config;
use crate::report::CliError;
use mayfly_failure::Code;
use mayfly_github::RunnerDownload;
use mayfly_github::forge::github_client;
use mayfly_image::Digest;
use mayfly_image::build::{RunnerRelease, RunnerSource};

/// Finds the newest runner for the account of the settings in `file`.
pub(super) fn find(file: &Path) -> Result<RunnerSource, CliError> {
    let settings = config::load(Some(file))?;
    let Some(github) = &settings.github else {
        let message =
            format!("can't find the newest runner: {} has no [github] table", file.display());
        return Err(CliError::file(message, Code::BadConfiguration));
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| {
        CliError::file(format!("can't start the async runtime: {error}"), Code::Unavailable)
    })?;
    let download = runtime.block_on(async {
        let client = github_client(github)?;
        Ok::<_, CliError>(client.runner_download().await?)
    })?;
    release(download).map(RunnerSource::Release).map_err(|reason| {
        CliError::file(
            format!("can't use the newest runner of {}: {reason}", github.url()),
            Code::BadData,
        )
    })
}

/// Converts a download into a release, or returns what is missing.
fn release(download: Option<RunnerDownload>) -> Result<RunnerRelease, &'static str> {
    let download = download.ok_or("GitHub offers no runner for Linux x64")?;
    let version = download.version.parse().map_err(|_| "its version is not valid")?;
    let digest = download
        .sha256
        .ok_or("GitHub gives no digest for it; download the runner and use --runner-archive")?;
    let sha256 =
        Digest::try_from(digest.to_ascii_lowercase()).map_err(|_| "its digest is not valid")?;
    Ok(RunnerRelease { version, url: download.url, sha256, token: download.token })
}

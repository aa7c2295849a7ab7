//! The runner archives that GitHub offers this account.

use secrecy::SecretString;
use serde::Deserialize;

use super::client::GitHubClient;
use super::error::CallError;
use super::wire::ApiCall;

/// A runner archive.
#[derive(Debug, Clone)]
pub struct RunnerDownload {
    /// The runner's version, from the archive's name.
    pub version: String,
    /// The archive's URL.
    pub url: String,
    /// Its SHA-256 in hexadecimal, if GitHub provides it.
    pub sha256: Option<String>,
    /// The download token, if the download needs one.
    pub token: Option<SecretString>,
}

#[derive(Deserialize)]
struct DownloadEntry {
    os: String,
    architecture: String,
    download_url: String,
    filename: String,
    temp_download_token: Option<SecretString>,
    sha256_checksum: Option<String>,
}

impl GitHubClient {
    /// Returns the newest x64 Linux runner that GitHub offers this account, if any. An account may
    /// get a release later than the public.
    pub async fn runner_download(&self) -> Result<Option<RunnerDownload>, CallError> {
        let path = format!("{}/actions/runners/downloads", self.0.target.path());
        let entries: Vec<DownloadEntry> =
            self.read(&ApiCall::get(path).needs(self.runner_permission())).await?;
        Ok(entries.into_iter().find_map(for_this_machine))
    }
}

fn for_this_machine(entry: DownloadEntry) -> Option<RunnerDownload> {
    if entry.os != "linux" || entry.architecture != "x64" {
        return None;
    }
    let name = entry.filename.strip_prefix("actions-runner-linux-x64-")?;
    Some(RunnerDownload {
        version: name.strip_suffix(".tar.gz")?.to_owned(),
        url: entry.download_url,
        sha256: entry.sha256_checksum,
        token: entry.temp_download_token,
    })
}

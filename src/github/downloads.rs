//! The runner's archives that GitHub gives the account.

use secrecy::SecretString;
use serde::Deserialize;

use super::client::Client;
use super::error::CallError;
use super::wire::Ask;

/// An archive of the runner.
#[derive(Debug, Clone)]
pub struct RunnerDownload {
    /// The runner's version, from the archive's name.
    pub version: String,
    /// Where it is.
    pub url: String,
    /// Its SHA-256 in hexadecimal digits, where GitHub tells it.
    pub sha256: Option<String>,
    /// What the download needs, if it needs anything.
    pub token: Option<SecretString>,
}

#[derive(Deserialize)]
struct Listed {
    os: String,
    architecture: String,
    download_url: String,
    filename: String,
    temp_download_token: Option<SecretString>,
    sha256_checksum: Option<String>,
}

impl Client {
    /// The newest runner for 64-bit x86 that GitHub gives this account, if it gives any. A release
    /// may come to an account later than to the public.
    pub async fn runner_download(&self) -> Result<Option<RunnerDownload>, CallError> {
        let path = format!("{}/actions/runners/downloads", self.0.target.path());
        let listed: Vec<Listed> = self.read(&Ask::get(path).needs(self.runner_right())).await?;
        Ok(listed.into_iter().find_map(for_this_machine))
    }
}

fn for_this_machine(listed: Listed) -> Option<RunnerDownload> {
    if listed.os != "linux" || listed.architecture != "x64" {
        return None;
    }
    let name = listed.filename.strip_prefix("actions-runner-linux-x64-")?;
    Some(RunnerDownload {
        version: name.strip_suffix(".tar.gz")?.to_owned(),
        url: listed.download_url,
        sha256: listed.sha256_checksum,
        token: listed.temp_download_token,
    })
}

//! The runners of a scope: creation with a JIT configuration, lookup, deletion.

use secrecy::SecretString;
use serde::Deserialize;
use serde_json::json;

use super::classify::next_page;
use super::client::{GitHubClient, MAX_PAGES};
use super::error::CallError;
use super::wire::{ApiCall, read};

/// A newly created runner with its JIT configuration.
#[derive(Debug)]
pub struct JitRunner {
    /// GitHub's ID of the runner.
    pub runner_id: u64,
    /// The JIT configuration in base64, which starts the runner once.
    pub jit_config: SecretString,
}

/// A registered runner as GitHub lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitHubRunner {
    /// GitHub's ID of the runner.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Whether it is connected. A single `false` proves nothing.
    pub online: bool,
    /// Whether it has a job.
    pub busy: bool,
    /// Its labels.
    pub labels: Vec<String>,
}

/// The result of a request to delete a runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeletionOutcome {
    /// The runner was deleted.
    Deleted,
    /// The runner no longer existed.
    Gone,
    /// The runner has a job (422) and was not deleted.
    Busy,
}

impl GitHubClient {
    /// Creates a runner and returns its JIT configuration. `name` must be unique, new and recorded
    /// before the call; `group` is a runner group's name (`None`: the default one, the only one of
    /// a repository); `work_folder` is relative to the runner's directory (`_work`).
    ///
    /// Not idempotent: after [`CallError::Ambiguous`] look the name up with
    /// [`GitHubClient::runner_by_name`], delete that runner, and use another name.
    pub async fn create_jit_runner(
        &self,
        name: &str,
        group: Option<&str>,
        labels: &[String],
        work_folder: &str,
    ) -> Result<JitRunner, CallError> {
        #[derive(Deserialize)]
        struct Created {
            runner: CreatedRunner,
            encoded_jit_config: SecretString,
        }
        #[derive(Deserialize)]
        struct CreatedRunner {
            id: u64,
        }
        let body = json!({
            "name": name,
            "runner_group_id": self.group(group).await?,
            "labels": labels,
            "work_folder": work_folder,
        });
        let path = format!("{}/actions/runners/generate-jitconfig", self.0.target.path());
        let call = ApiCall::post(path, body).needs(self.runner_permission());
        match self.read::<Created>(&call).await {
            Ok(created) => Ok(JitRunner {
                runner_id: created.runner.id,
                jit_config: created.encoded_jit_config,
            }),
            Err(CallError::Refused { call, status: 409, .. }) => Err(CallError::NameTaken { call }),
            Err(error @ (CallError::NotFound { .. } | CallError::Refused { .. })) => {
                // The group's ID may have changed; the next attempt looks it up again.
                self.forget_groups().await;
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the runner with exactly that name.
    pub async fn runner_by_name(&self, name: &str) -> Result<Option<GitHubRunner>, CallError> {
        let found = self.list(&format!("&name={}", escaped(name))).await?;
        Ok(found.into_iter().find(|runner| runner.name == name))
    }

    /// Returns the runner with that ID; `None` if GitHub has none.
    pub async fn runner(&self, id: u64) -> Result<Option<GitHubRunner>, CallError> {
        let path = format!("{}/actions/runners/{id}", self.0.target.path());
        match self.read::<RawRunner>(&ApiCall::get(path).needs(self.runner_permission())).await {
            Ok(runner) => Ok(Some(runner.into())),
            Err(CallError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lists all runners of the scope.
    pub async fn runners(&self) -> Result<Vec<GitHubRunner>, CallError> {
        self.list("").await
    }

    /// Deletes a runner. Succeeds if it is already gone.
    pub async fn delete_runner(&self, id: u64) -> Result<DeletionOutcome, CallError> {
        let path = format!("{}/actions/runners/{id}", self.0.target.path());
        match self.call(&ApiCall::delete(path).needs(self.runner_permission())).await {
            Ok(_) => Ok(DeletionOutcome::Deleted),
            Err(CallError::NotFound { .. }) => Ok(DeletionOutcome::Gone),
            Err(CallError::Refused { status: 422, .. }) => Ok(DeletionOutcome::Busy),
            Err(error) => Err(error),
        }
    }

    async fn list(&self, filter: &str) -> Result<Vec<GitHubRunner>, CallError> {
        let first = format!("{}/actions/runners?per_page=100{filter}", self.0.target.path());
        let call = ApiCall::get(&*first).name();
        let mut runners = Vec::new();
        let mut next = Some(first);
        for _ in 0..MAX_PAGES {
            let Some(path) = next.take() else { break };
            let response = self.call(&ApiCall::get(path).needs(self.runner_permission())).await?;
            next = next_page(&response.headers).filter(|page| self.0.wire.is_api_url(page));
            let page: Runners = read(&response, &call)?;
            runners.extend(page.runners.into_iter().map(GitHubRunner::from));
        }
        Ok(runners)
    }
}

#[derive(Deserialize)]
struct Runners {
    runners: Vec<RawRunner>,
}

#[derive(Deserialize)]
struct RawRunner {
    id: u64,
    name: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    busy: bool,
    #[serde(default)]
    labels: Vec<RawLabel>,
}

#[derive(Deserialize)]
struct RawLabel {
    name: String,
}

impl From<RawRunner> for GitHubRunner {
    fn from(raw: RawRunner) -> Self {
        Self {
            id: raw.id,
            name: raw.name,
            online: raw.status == "online",
            busy: raw.busy,
            labels: raw.labels.into_iter().map(|label| label.name).collect(),
        }
    }
}

/// Percent-encodes a query value (RFC 3986: all but unreserved characters).
pub(super) fn escaped(text: &str) -> String {
    text.bytes().fold(String::new(), |mut escaped, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push('%');
            data_encoding::HEXUPPER.encode_append(&[byte], &mut escaped);
        }
        escaped
    })
}

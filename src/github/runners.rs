//! The runners of a scope: made by JIT configuration, looked up, deleted.

use secrecy::SecretString;
use serde::Deserialize;
use serde_json::json;

use super::classify::next_page;
use super::client::{Client, MOST_PAGES};
use super::error::CallError;
use super::wire::{Ask, read};

/// A runner that was just made.
#[derive(Debug)]
pub struct Minted {
    /// Its number.
    pub runner_id: u64,
    /// What starts it, once; base64.
    pub jit_config: SecretString,
}

/// A runner as GitHub knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runner {
    /// Its number.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Whether it is connected. One reading of `false` proves nothing.
    pub online: bool,
    /// Whether it has a job.
    pub busy: bool,
    /// Its labels.
    pub labels: Vec<String>,
}

/// What became of a runner that was to be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// It was deleted.
    Deleted,
    /// It was not there any more.
    Gone,
    /// It has a job (422), and stays.
    Busy,
}

impl Client {
    /// Makes a runner and answers what starts it. `name` is to be unique, new and recorded before
    /// the call; `group` is a runner group's name (`None`: the default one; a repository has no
    /// other); `work_folder` is relative to the runner's directory (`_work`).
    ///
    /// Not idempotent: after [`CallError::Ambiguous`] look for the name with
    /// [`Client::runner_by_name`], delete it, and take another name.
    pub async fn mint(
        &self,
        name: &str,
        group: Option<&str>,
        labels: &[String],
        work_folder: &str,
    ) -> Result<Minted, CallError> {
        #[derive(Deserialize)]
        struct Answered {
            runner: Numbered,
            encoded_jit_config: SecretString,
        }
        #[derive(Deserialize)]
        struct Numbered {
            id: u64,
        }
        let body = json!({
            "name": name,
            "runner_group_id": self.group(group).await?,
            "labels": labels,
            "work_folder": work_folder,
        });
        let path = format!("{}/actions/runners/generate-jitconfig", self.0.target.path());
        let ask = Ask::post(path, body).needs(self.runner_right());
        match self.read::<Answered>(&ask).await {
            Ok(made) => {
                Ok(Minted { runner_id: made.runner.id, jit_config: made.encoded_jit_config })
            }
            Err(CallError::Refused { call, status: 409, .. }) => Err(CallError::NameTaken { call }),
            Err(error @ (CallError::NotFound { .. } | CallError::Refused { .. })) => {
                // The group may be another one by now; the next try looks it up.
                self.forget_groups().await;
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// The runner of exactly that name.
    pub async fn runner_by_name(&self, name: &str) -> Result<Option<Runner>, CallError> {
        let found = self.list(&format!("&name={}", escaped(name))).await?;
        Ok(found.into_iter().find(|runner| runner.name == name))
    }

    /// The runner of that number; `None` if GitHub has none.
    pub async fn runner(&self, id: u64) -> Result<Option<Runner>, CallError> {
        let path = format!("{}/actions/runners/{id}", self.0.target.path());
        match self.read::<RawRunner>(&Ask::get(path).needs(self.runner_right())).await {
            Ok(runner) => Ok(Some(runner.into())),
            Err(CallError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All runners of the scope.
    pub async fn runners(&self) -> Result<Vec<Runner>, CallError> {
        self.list("").await
    }

    /// Deletes a runner; that it is gone already is well.
    pub async fn delete_runner(&self, id: u64) -> Result<Removal, CallError> {
        let path = format!("{}/actions/runners/{id}", self.0.target.path());
        match self.ask(&Ask::delete(path).needs(self.runner_right())).await {
            Ok(_) => Ok(Removal::Deleted),
            Err(CallError::NotFound { .. }) => Ok(Removal::Gone),
            Err(CallError::Refused { status: 422, .. }) => Ok(Removal::Busy),
            Err(error) => Err(error),
        }
    }

    async fn list(&self, filter: &str) -> Result<Vec<Runner>, CallError> {
        let first = format!("{}/actions/runners?per_page=100{filter}", self.0.target.path());
        let call = Ask::get(&*first).name();
        let mut runners = Vec::new();
        let mut next = Some(first);
        for _ in 0..MOST_PAGES {
            let Some(path) = next.take() else { break };
            let answer = self.ask(&Ask::get(path).needs(self.runner_right())).await?;
            next = next_page(&answer.headers).filter(|page| self.0.wire.is_ours(page));
            let page: Runners = read(&answer, &call)?;
            runners.extend(page.runners.into_iter().map(Runner::from));
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

impl From<RawRunner> for Runner {
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

/// A value for a query, percent-encoded (RFC 3986: all but unreserved characters).
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

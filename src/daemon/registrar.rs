//! How the microVMs of a pool become runners: through GitHub's REST API, or through the scale set
//! that the pool has.

use std::time::Duration;

use crate::config;
use crate::github::{
    self, CallError, Client, Credentials, Hook, Minted, Removal, Repository, Settings, SetupError,
    scale_set,
};

/// Where a runner's files are made, relative to its directory.
const WORK_FOLDER: &str = "_work";

/// GitHub, as the settings name it.
#[derive(Clone)]
pub(super) struct GitHub {
    pub(super) client: Client,
    pub(super) sets: scale_set::Client,
    /// What is polled.
    pub(super) repositories: Vec<Repository>,
}

/// Whom a pool registers with.
#[derive(Clone)]
pub(super) enum Registrar {
    /// The scope itself.
    Scope(Client),
    /// The pool's own scale set, by its number.
    ScaleSet(scale_set::Client, u64),
}

/// The settings of GitHub can't be used.
#[derive(Debug, thiserror::Error)]
pub enum GitHubError {
    /// An address is none.
    #[error("github.url or github.api of the settings")]
    Address(#[from] github::TargetError),
    /// The credentials are none.
    #[error(transparent)]
    Setup(#[from] SetupError),
}

impl GitHub {
    pub(super) fn new(settings: &config::GitHub) -> Result<Self, GitHubError> {
        let repositories = settings.repositories.iter().map(|repository| Repository {
            owner: repository.owner.clone(),
            name: repository.name.clone(),
        });
        let repositories = repositories.collect();
        let client = github_client(settings)?;
        Ok(Self { sets: scale_set::Client::new(&client), client, repositories })
    }
}

/// A client for the account of the settings. To be called within a tokio runtime.
///
/// # Errors
///
/// An address or the credentials are none.
pub fn github_client(settings: &config::GitHub) -> Result<Client, GitHubError> {
    let mut client = Settings::new(settings.url().parse()?, credentials(settings));
    if !client.target.is_hosted() {
        // The advice is for GitHub's own service; others have the limits that they set.
        client.mutation_gap = Duration::ZERO;
    }
    client.api = Some(settings.api.parse()?);
    client.hook = settings.webhook.as_ref().map(|webhook| match webhook.hook {
        Some(number) => Hook::Id(number),
        None => Hook::App,
    });
    if matches!((&client.hook, &client.credentials), (Some(Hook::App), Credentials::Token(_))) {
        // A hook whose number is not known can't be asked for what was missed; polls reconcile.
        client.hook = None;
    }
    Ok(Client::new(&client)?)
}

fn credentials(settings: &config::GitHub) -> Credentials {
    match &settings.credentials {
        config::Credentials::Token(token) => Credentials::Token(token.value.clone()),
        config::Credentials::App(app) => Credentials::App {
            id: app.issuer.clone(),
            private_key: app.private_key.value.clone(),
            installation: app.installation,
        },
    }
}

impl Registrar {
    pub(super) async fn mint(&self, name: &str, pool: &config::Pool) -> Result<Minted, CallError> {
        let group = pool.runner_group.as_deref();
        match self {
            Self::Scope(client) => client.mint(name, group, &pool.labels, WORK_FOLDER).await,
            Self::ScaleSet(client, set) => client.mint(*set, name, WORK_FOLDER).await,
        }
    }

    /// The number of the runner of that name.
    async fn find(&self, name: &str) -> Result<Option<u64>, CallError> {
        match self {
            Self::Scope(client) => Ok(client.runner_by_name(name).await?.map(|runner| runner.id)),
            Self::ScaleSet(client, _) => {
                Ok(client.runner_by_name(name).await?.map(|agent| agent.id))
            }
        }
    }

    /// Deletes a runner by its number or, where that never came back, by its name.
    pub(super) async fn remove(
        &self,
        name: &str,
        number: Option<u64>,
    ) -> Result<Removal, CallError> {
        let number = match number {
            Some(number) => number,
            None => match self.find(name).await? {
                Some(number) => number,
                None => return Ok(Removal::Gone),
            },
        };
        match self {
            Self::Scope(client) => client.delete_runner(number).await,
            Self::ScaleSet(client, _) => client.delete_runner(number).await,
        }
    }
}

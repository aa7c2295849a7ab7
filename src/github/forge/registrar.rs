//! Registrars: create and delete a pool's runners, through the REST API or the pool's scale set.

use crate::scale_set::ScaleSetClient;
use crate::{CallError, DeletionOutcome, GitHubClient, JitRunner};

/// The runner's work folder, relative to its directory.
const WORK_FOLDER: &str = "_work";

/// The registrar of a pool's runners.
#[derive(Clone)]
pub(super) enum Registrar {
    /// Registers with the scope, through the REST API.
    Scope(GitHubClient),
    /// Registers with the pool's own scale set, by its ID.
    ScaleSet(ScaleSetClient, u64),
}

impl Registrar {
    pub(super) async fn create_jit_runner(
        &self,
        name: &str,
        pool: &mayfly_config::PoolConfig,
    ) -> Result<JitRunner, CallError> {
        let group = pool.runner_group.as_deref();
        match self {
            Self::Scope(client) => {
                client.create_jit_runner(name, group, &pool.labels, WORK_FOLDER).await
            }
            Self::ScaleSet(client, set) => client.create_jit_runner(*set, name, WORK_FOLDER).await,
        }
    }

    /// Returns the ID of the runner with that name.
    async fn find_id(&self, name: &str) -> Result<Option<u64>, CallError> {
        match self {
            Self::Scope(client) => Ok(client.runner_by_name(name).await?.map(|runner| runner.id)),
            Self::ScaleSet(client, _) => {
                Ok(client.runner_by_name(name).await?.map(|runner| runner.id))
            }
        }
    }

    /// Deletes a runner by its ID or, if the ID never arrived, by its name.
    pub(super) async fn remove(
        &self,
        name: &str,
        id: Option<u64>,
    ) -> Result<DeletionOutcome, CallError> {
        let id = match id {
            Some(id) => id,
            None => match self.find_id(name).await? {
                Some(id) => id,
                None => return Ok(DeletionOutcome::Gone),
            },
        };
        match self {
            Self::Scope(client) => client.delete_runner(id).await,
            Self::ScaleSet(client, _) => client.delete_runner(id).await,
        }
    }
}

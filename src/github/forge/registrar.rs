//! How the microVMs of a pool become runners: through GitHub's REST API, or through the scale set
//! that the pool has.

use crate::config;
use crate::github::{CallError, Client, Minted, Removal, scale_set};

/// Where a runner's files are made, relative to its directory.
const WORK_FOLDER: &str = "_work";

/// Whom a pool registers with.
#[derive(Clone)]
pub(super) enum Registrar {
    /// The scope itself.
    Scope(Client),
    /// The pool's own scale set, by its number.
    ScaleSet(scale_set::Client, u64),
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

//! Runner groups: their IDs by name.

use serde::Deserialize;

use super::classify::next_page;
use super::client::{GitHubClient, MAX_PAGES};
use super::error::CallError;
use super::wire::{ApiCall, read};
use mayfly_config::github::Scope;

/// The ID of a repository's only group.
const REPOSITORY_GROUP: u64 = 1;

#[derive(Deserialize)]
struct Groups {
    runner_groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    id: u64,
    name: String,
    #[serde(default)]
    default: bool,
}

impl GitHubClient {
    /// Returns the ID of the group with that name; `None` is the default group. IDs are cached.
    pub(super) async fn group(&self, name: Option<&str>) -> Result<u64, CallError> {
        if let Scope::Repository(_) = self.0.target.scope {
            return Ok(REPOSITORY_GROUP);
        }
        let key = name.map(str::to_lowercase);
        let mut known = self.0.groups.lock().await;
        if let Some(id) = known.get(&key) {
            return Ok(*id);
        }
        let first = format!("{}/actions/runner-groups?per_page=100", self.0.target.path());
        let call = ApiCall::get(&*first).name();
        let mut next = Some(first);
        for _ in 0..MAX_PAGES {
            let Some(path) = next.take() else { break };
            let response = self.call(&ApiCall::get(path).needs(self.runner_permission())).await?;
            next = next_page(&response.headers).filter(|page| self.0.wire.is_api_url(page));
            for group in read::<Groups>(&response, &call)?.runner_groups {
                if group.default {
                    known.insert(None, group.id);
                }
                known.insert(Some(group.name.to_lowercase()), group.id);
            }
        }
        known.get(&key).copied().ok_or_else(|| CallError::NotFound {
            call,
            message: format!("unknown runner group {:?}", name.unwrap_or("(default)")),
            needs: Some("a runner group with that name"),
        })
    }

    /// Clears the cached IDs: a group may be new, or may have been deleted and created again.
    pub(super) async fn forget_groups(&self) {
        self.0.groups.lock().await.clear();
    }
}

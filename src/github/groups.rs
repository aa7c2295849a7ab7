//! Runner groups: their numbers, by name.

use serde::Deserialize;

use super::classify::next_page;
use super::client::{Client, MOST_PAGES};
use super::error::CallError;
use super::target::Scope;
use super::wire::{Ask, read};

/// The only group of a repository.
const OF_REPOSITORIES: u64 = 1;

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

impl Client {
    /// The number of the group of that name; `None` is the default one. Remembered once found.
    pub(super) async fn group(&self, name: Option<&str>) -> Result<u64, CallError> {
        if let Scope::Repository(_) = self.0.target.scope {
            return Ok(OF_REPOSITORIES);
        }
        let key = name.map(str::to_lowercase);
        let mut known = self.0.groups.lock().await;
        if let Some(id) = known.get(&key) {
            return Ok(*id);
        }
        let first = format!("{}/actions/runner-groups?per_page=100", self.0.target.path());
        let call = Ask::get(&*first).name();
        let mut next = Some(first);
        for _ in 0..MOST_PAGES {
            let Some(path) = next.take() else { break };
            let answer = self.ask(&Ask::get(path).needs(self.runner_right())).await?;
            next = next_page(&answer.headers).filter(|page| self.0.wire.is_ours(page));
            for group in read::<Groups>(&answer, &call)?.runner_groups {
                if group.default {
                    known.insert(None, group.id);
                }
                known.insert(Some(group.name.to_lowercase()), group.id);
            }
        }
        known.get(&key).copied().ok_or_else(|| CallError::NotFound {
            call,
            message: format!("there is no runner group {:?}", name.unwrap_or("(default)")),
            needs: Some("a runner group of that name"),
        })
    }

    /// Forgets the groups' numbers: one was deleted and made again, or is new.
    pub(super) async fn forget_groups(&self) {
        self.0.groups.lock().await.clear();
    }
}

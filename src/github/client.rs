//! The client: one call with its credentials, its deadline and its place in the budget.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;

use super::auth::Authority;
use super::budget::Rate;
use super::error::{CallError, SetupError};
use super::poll::Cache;
use super::settings::{Hook, Settings};
use super::target::{Scope, Target};
use super::transport::{Answer, Transport};
use super::wire::{Ask, Wire, read};

/// The most pages that are read of one list: a runner group has 10,000 runners at most.
pub(super) const MOST_PAGES: usize = 100;

/// Calls GitHub as one App or person, for one scope. Cheap to clone; clones share tokens, caches
/// and budget. Every call has a deadline; each answers with a [`CallError`] that says whether it
/// may have had an effect.
#[derive(Clone)]
pub struct Client(pub(super) Arc<Shared>);

pub(super) struct Shared {
    pub(super) wire: Wire,
    pub(super) authority: Authority,
    pub(super) target: Target,
    pub(super) hook: Option<Hook>,
    /// The numbers of runner groups by lower-cased name; the default one is `None`.
    pub(super) groups: Mutex<HashMap<Option<String>, u64>>,
    pub(super) cache: Mutex<Cache>,
}

/// What a check found.
#[derive(Debug, Clone)]
pub struct Checked {
    /// The runners that there are in the scope.
    pub runners: u64,
    /// The App's installation, for an App.
    pub installation: Option<u64>,
    /// The rate limit, where there is one.
    pub rate: Option<Rate>,
}

impl Client {
    /// A client; opens no connection yet. To be called within a tokio runtime.
    pub fn new(settings: &Settings) -> Result<Self, SetupError> {
        let base = settings.api.clone().unwrap_or_else(|| settings.target.api());
        let transport = Transport::new(&settings.proxies)?;
        Ok(Self(Arc::new(Shared {
            wire: Wire::new(transport, base.as_str().to_owned(), settings.mutation_gap),
            authority: Authority::new(settings)?,
            target: settings.target.clone(),
            hook: settings.hook,
            groups: Mutex::default(),
            cache: Mutex::default(),
        })))
    }

    /// Whether the credentials may read the scope's runners.
    pub async fn check(&self) -> Result<Checked, CallError> {
        #[derive(Deserialize)]
        struct Count {
            total_count: u64,
        }
        let path = format!("{}/actions/runners?per_page=1", self.0.target.path());
        let count: Count = self.read(&Ask::get(path).needs(self.runner_right())).await?;
        Ok(Checked {
            runners: count.total_count,
            installation: self.0.authority.installation().await,
            rate: self.rate(),
        })
    }

    /// The rate limit as GitHub last told it.
    pub fn rate(&self) -> Option<Rate> {
        self.0.wire.budget().rate(SystemTime::now())
    }

    /// How long to wait between two polls that cost `calls` calls each: `base`, longer as the
    /// rate limit shrinks.
    pub fn poll_interval(&self, base: Duration, calls: u64) -> Duration {
        self.0.wire.budget().poll_interval(base, calls, SystemTime::now())
    }

    /// The scope that this client is for.
    pub fn target(&self) -> &Target {
        &self.0.target
    }

    /// The right that calls about runners need.
    pub(super) fn runner_right(&self) -> &'static str {
        match self.0.target.scope {
            Scope::Organisation(_) => {
                "organisation permission Self-hosted runners: write (App, fine-grained token) or \
                 scope admin:org (classic token)"
            }
            Scope::Repository(_) => {
                "repository permission Administration: write (App, fine-grained token) or scope \
                 repo (classic token)"
            }
            Scope::Enterprise(_) => "scope manage_runners:enterprise (classic token)",
        }
    }

    /// Sends a call; once more, with new credentials, if it is refused for the old ones (401:
    /// it had no effect).
    pub(super) async fn ask(&self, ask: &Ask) -> Result<Answer, CallError> {
        let Shared { wire, authority, .. } = &*self.0;
        let header = authority.header(wire).await?;
        match wire.ask(ask, &header).await {
            Err(error @ CallError::Unauthorized { .. }) => {
                match authority.renewed(wire, &header).await? {
                    Some(renewed) => wire.ask(ask, &renewed).await,
                    None => Err(error),
                }
            }
            end => end,
        }
    }

    /// Sends a call and reads its JSON.
    pub(super) async fn read<T: DeserializeOwned>(&self, ask: &Ask) -> Result<T, CallError> {
        read(&self.ask(ask).await?, &ask.name())
    }
}

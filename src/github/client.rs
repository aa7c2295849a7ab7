//! The client: sends one call with its credentials, deadline and rate budget.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;

use super::auth::Authorizer;
use super::budget::RateLimit;
use super::error::{CallError, SetupError};
use super::poll::Cache;
use super::settings::{GitHubSettings, Hook};
use super::transport::{Response, Transport};
use super::wire::{ApiCall, Wire, read};
use mayfly_config::github::{Scope, Target};

/// The maximum number of pages to read of one list: a runner group has at most 10,000 runners.
pub(super) const MAX_PAGES: usize = 100;

/// A client of the GitHub API, for one scope, as one App or user. Cheap to clone; clones share
/// tokens, caches and the rate budget. Every call has a deadline; a failed call returns a
/// [`CallError`] that says whether it may have taken effect.
#[derive(Clone)]
pub struct GitHubClient(pub(super) Arc<ClientInner>);

pub(super) struct ClientInner {
    pub(super) wire: Wire,
    pub(super) authorizer: Authorizer,
    pub(super) target: Target,
    pub(super) hook: Option<Hook>,
    /// The IDs of runner groups by lowercase name; `None` is the default group.
    pub(super) groups: Mutex<HashMap<Option<String>, u64>>,
    pub(super) cache: Mutex<Cache>,
}

/// The result of [`GitHubClient::check`].
#[derive(Debug, Clone)]
pub struct CredentialCheck {
    /// The number of runners in the scope.
    pub runners: u64,
    /// The installation's ID, if the credentials are an App's.
    pub installation: Option<u64>,
    /// The rate limit, if GitHub reports one.
    pub rate: Option<RateLimit>,
}

impl GitHubClient {
    /// Creates a client; opens no connection yet. Must be called within a Tokio runtime.
    pub fn new(settings: &GitHubSettings) -> Result<Self, SetupError> {
        let base = settings.api.clone().unwrap_or_else(|| settings.target.api());
        let transport = Transport::new(&settings.proxies)?;
        Ok(Self(Arc::new(ClientInner {
            wire: Wire::new(transport, base.as_str().to_owned(), settings.mutation_gap),
            authorizer: Authorizer::new(settings)?,
            target: settings.target.clone(),
            hook: settings.hook,
            groups: Mutex::default(),
            cache: Mutex::default(),
        })))
    }

    /// Checks that the credentials may read the scope's runners.
    pub async fn check(&self) -> Result<CredentialCheck, CallError> {
        #[derive(Deserialize)]
        struct Count {
            total_count: u64,
        }
        let path = format!("{}/actions/runners?per_page=1", self.0.target.path());
        let count: Count = self.read(&ApiCall::get(path).needs(self.runner_permission())).await?;
        Ok(CredentialCheck {
            runners: count.total_count,
            installation: self.0.authorizer.installation().await,
            rate: self.rate(),
        })
    }

    /// Returns the rate limit that GitHub last reported.
    pub fn rate(&self) -> Option<RateLimit> {
        self.0.wire.budget().rate(SystemTime::now())
    }

    /// Returns how long to wait between two polls of `calls` calls each: `base`, or longer when the
    /// rate limit runs low.
    pub fn poll_interval(&self, base: Duration, calls: u64) -> Duration {
        self.0.wire.budget().poll_interval(base, calls, SystemTime::now())
    }

    /// Returns the target that this client is for.
    pub fn target(&self) -> &Target {
        &self.0.target
    }

    /// Returns the permission that calls about runners need.
    pub(super) fn runner_permission(&self) -> &'static str {
        match self.0.target.scope {
            Scope::Organization(_) => {
                "organization permission Self-hosted runners: write (App, fine-grained token) or \
                 scope admin:org (classic token)"
            }
            Scope::Repository(_) => {
                "repository permission Administration: write (App, fine-grained token) or scope \
                 repo (classic token)"
            }
            Scope::Enterprise(_) => "scope manage_runners:enterprise (classic token)",
        }
    }

    /// Sends a call; resends it once with renewed credentials if GitHub rejects the old ones (401:
    /// the call had no effect).
    pub(super) async fn call(&self, call: &ApiCall) -> Result<Response, CallError> {
        let ClientInner { wire, authorizer, .. } = &*self.0;
        let header = authorizer.header(wire).await?;
        match wire.call(call, &header).await {
            Err(error @ CallError::Unauthorized { .. }) => {
                match authorizer.renew(wire, &header).await? {
                    Some(renewed) => wire.call(call, &renewed).await,
                    None => Err(error),
                }
            }
            result => result,
        }
    }

    /// Sends a call and parses the JSON of its response.
    pub(super) async fn read<T: DeserializeOwned>(&self, call: &ApiCall) -> Result<T, CallError> {
        read(&self.call(call).await?, &call.name())
    }
}

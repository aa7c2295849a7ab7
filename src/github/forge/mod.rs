//! GitHub as a [`Forge`]: what the settings and the pools make of the calls of this folder's parent.
//!
//! Runners register with the scope itself, or with the scale set that their pool has. Jobs are heard
//! of from deliveries of a webhook ([`hook`]), from polls ([`polling`]) and from the sessions of
//! scale sets ([`scale_sets`]); each source is a task that only says what it heard.

mod hook;
mod polling;
mod registrar;
mod scale_sets;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::labels::{Match, compare};
use super::{
    CallError, Client, Credentials, Hook, Repository, Settings, SetupError, TargetError, scale_set,
};
use crate::api::{server, webhook};
use crate::config::{self, Pool, PoolName, Trigger};
use crate::failure::{Code, Failure, chain, contained};
use crate::forge::{Forge, ForgeError, Job, Promise, Registered, Removal, Runner, Said, Wanted};
use registrar::Registrar;
use scale_sets::Sets;

/// GitHub, as the settings name it.
pub struct GitHub {
    client: Client,
    sets: scale_set::Client,
    /// What is polled, and how often; never where no pool wants it.
    repositories: Vec<Repository>,
    poll: Duration,
    /// Where deliveries come in, until they are listened for.
    hook: Mutex<Option<(TcpListener, webhook::Verify)>>,
    /// Who holds the sessions of scale sets, for people at GitHub.
    owner: String,
    /// Whom pools register with that found out for themselves.
    registrars: Mutex<HashMap<PoolName, Registrar>>,
}

/// The settings of GitHub can't be used.
#[derive(Debug, thiserror::Error)]
pub enum GitHubError {
    /// An address is none.
    #[error("github.url or github.api of the settings")]
    Address(#[from] TargetError),
    /// The credentials are none.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// Deliveries can't be listened for.
    #[error("can't listen at {0}")]
    Listen(SocketAddr, #[source] std::io::Error),
}

impl Failure for GitHubError {
    fn code(&self) -> Code {
        match self {
            Self::Address(_) => Code::BadConfiguration,
            Self::Setup(error) => error.code(),
            Self::Listen(..) => Code::Unavailable,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Setup(error) => error.hint(),
            Self::Address(_) | Self::Listen(..) => None,
        }
    }
}

impl GitHub {
    /// As settings and pools want it. Binds the address that deliveries come to, where a pool wants
    /// them. `owner` is who holds the sessions of scale sets, for people at GitHub.
    ///
    /// # Errors
    ///
    /// An address or the credentials are none, or the address can't be listened at.
    pub async fn open(
        settings: &config::GitHub,
        pools: &[Pool],
        owner: &str,
    ) -> Result<Self, GitHubError> {
        let has = |trigger| pools.iter().any(|pool| pool.trigger == trigger);
        let hooked = settings.webhook.as_ref().filter(|_| has(Trigger::Webhook));
        let hook = match hooked {
            Some(hook) => Some(hook::bind(hook).await?),
            None => None,
        };
        let polls = has(Trigger::Poll) || has(Trigger::Webhook) || has(Trigger::Auto);
        let usual = if hook.is_some() { polling::RECONCILE } else { polling::POLL };
        let repositories = settings.repositories.iter().filter(|_| polls);
        let repositories = repositories.map(|repository| Repository {
            owner: repository.owner.clone(),
            name: repository.name.clone(),
        });
        let client = github_client(settings)?;
        Ok(Self {
            repositories: repositories.collect(),
            poll: settings.poll.unwrap_or(usual),
            sets: scale_set::Client::new(&client),
            client,
            hook: Mutex::new(hook),
            owner: owner.to_owned(),
            registrars: Mutex::default(),
        })
    }

    /// Whom a pool registers with, once that is known.
    fn registrar(&self, pool: &Pool) -> Option<Registrar> {
        match pool.trigger {
            Trigger::None => None,
            Trigger::ScaleSet | Trigger::Auto => self.found(pool.name.as_str()),
            Trigger::Webhook | Trigger::Poll | Trigger::Always => {
                Some(Registrar::Scope(self.client.clone()))
            }
        }
    }

    fn found(&self, pool: &str) -> Option<Registrar> {
        let found = self.registrars.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = found.iter().filter(|(name, _)| name.as_str() == pool);
        found.next().map(|(_, registrar)| registrar.clone())
    }

    /// A pool found out whom it registers with.
    fn find(&self, pool: &PoolName, registrar: Registrar) {
        let mut found = self.registrars.lock().unwrap_or_else(PoisonError::into_inner);
        found.insert(pool.clone(), registrar);
    }

    async fn listen(self: Arc<Self>, mut wanted: watch::Receiver<Wanted>, to: mpsc::Sender<Said>) {
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        let hook = self.hook.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((listener, verify)) = hook {
            let (sender, deliveries) = mpsc::channel(webhook::CAPACITY);
            tasks.spawn(webhook::serve(listener, verify, sender, stop.clone()));
            tasks.spawn(hook::deliveries(deliveries, to.clone()));
            tasks.spawn(hook::redeliver(self.client.clone(), wanted.clone(), stop.clone()));
        }
        if !self.repositories.is_empty() {
            tasks.spawn(polling::poll(self.clone(), to.clone(), stop.clone()));
        }
        let mut sets = Sets::default();
        loop {
            scale_sets::hold(&self, &mut wanted, &mut sets, &mut tasks, &to);
            tokio::select! {
                changed = wanted.changed() => if changed.is_err() { break },
                Some(ended) = tasks.join_next() => contained(ended),
            }
        }
        stop.cancel();
        drop(sets);
        while let Some(ended) = tasks.join_next().await {
            contained(ended);
        }
    }
}

impl Forge for GitHub {
    fn register<'a>(
        &'a self,
        name: &'a str,
        pool: &'a Pool,
    ) -> Promise<'a, Result<Registered, ForgeError>> {
        Box::pin(async move {
            let unknown = || ForgeError::Unreachable("its registration is being set up".to_owned());
            let registrar = self.registrar(pool).ok_or_else(unknown)?;
            let minted = registrar.mint(name, pool).await?;
            Ok(Registered { number: minted.runner_id, start: minted.jit_config })
        })
    }

    fn deregister<'a>(
        &'a self,
        name: &'a str,
        pool: Option<&'a str>,
        number: Option<u64>,
    ) -> Promise<'a, Result<Removal, ForgeError>> {
        // Where the pool is gone, or never found a set of its own, the scope knows the runner.
        let registrar = pool.and_then(|pool| self.found(pool));
        let registrar = registrar.unwrap_or_else(|| Registrar::Scope(self.client.clone()));
        Box::pin(async move {
            Ok(match registrar.remove(name, number).await? {
                super::Removal::Deleted | super::Removal::Gone => Removal::Gone,
                super::Removal::Busy => Removal::Busy,
            })
        })
    }

    fn runners(&self) -> Promise<'_, Result<Vec<Runner>, ForgeError>> {
        Box::pin(async move {
            let runners = self.client.runners().await?.into_iter();
            let runner = |runner: super::Runner| Runner {
                number: runner.id,
                name: runner.name,
                busy: runner.busy,
            };
            Ok(runners.map(runner).collect())
        })
    }

    fn names(&self) -> Promise<'_, Result<Option<Vec<String>>, ForgeError>> {
        Box::pin(async move { Ok(self.client.names().await?) })
    }

    fn listen(
        self: Arc<Self>,
        wanted: watch::Receiver<Wanted>,
        to: mpsc::Sender<Said>,
    ) -> Promise<'static, ()> {
        Box::pin(self.listen(wanted, to))
    }

    fn serves(&self, job: &[String], pool: &[String]) -> bool {
        compare(job, pool) == Match::Served
    }

    fn confirms(&self) -> bool {
        !self.repositories.is_empty()
    }
}

impl From<CallError> for ForgeError {
    fn from(error: CallError) -> Self {
        let why = chain(&error);
        match error {
            CallError::NotSent { .. } => Self::Unreachable(why),
            CallError::Ambiguous { .. } => Self::Ambiguous(why),
            CallError::Unauthorized { .. } => Self::Unauthorized(why),
            CallError::Refused { .. } | CallError::NotFound { .. } => Self::Refused(why),
            CallError::NameTaken { .. } => Self::NameTaken(why),
            CallError::RateLimited { until, .. } => Self::RateLimited { why, until },
        }
    }
}

impl From<super::Job> for Job {
    fn from(job: super::Job) -> Self {
        Self {
            id: job.id,
            run_id: job.run_id,
            attempt: job.attempt,
            repository: job.repository,
            name: job.name,
            labels: job.labels,
            runner: job.runner_name,
            conclusion: job.conclusion,
            since: job.started_at.or(job.created_at),
        }
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

/// Listens at an address of the settings.
async fn bind(address: SocketAddr) -> Result<TcpListener, GitHubError> {
    server::bind_tcp(address).await.map_err(|error| GitHubError::Listen(address, error))
}

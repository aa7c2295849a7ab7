//! GitHub as a [`Forge`]: maps settings and pools to the calls of the parent module.
//!
//! Runners register with the scope itself or with the scale set of their pool. Events of jobs come
//! from webhook deliveries ([`hook`]), from polls ([`poller`]) and from scale set sessions
//! ([`scale_sets`]); each source is a task that only reports what it receives.

mod hook;
mod poller;
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

use super::labels::{LabelMatch, compare};
use super::scale_set::ScaleSetClient;
use super::{CallError, Credentials, GitHubClient, GitHubSettings, Hook, SetupError};
use mayfly_api::{server, webhook};
use mayfly_config::github::Repository;
use mayfly_config::{PoolConfig, PoolName, Settings, Trigger};
use mayfly_failure::{Code, Failure, chain};
use mayfly_forge::{
    BoxFuture, Forge, ForgeDriver, ForgeError, ForgeEvent, ForgeSetupError, ListenRequest,
    NewRunner, RemoteJob, RemoteRunner, RemovalOutcome,
};
use mayfly_telemetry::report_panic;
use registrar::Registrar;
use scale_sets::ScaleSetTasks;

/// The GitHub implementation of [`Forge`].
pub struct GitHubForge {
    client: GitHubClient,
    scale_sets: ScaleSetClient,
    /// The repositories to poll; empty if no pool needs polling.
    repositories: Vec<Repository>,
    poll_interval: Duration,
    /// The webhook's listener, until [`Forge::listen`] takes it.
    hook: Mutex<Option<(TcpListener, webhook::Verify)>>,
    /// The owner name of scale set sessions, shown to people at GitHub.
    session_owner: String,
    /// The registrars of pools that discovered theirs.
    registrars: Mutex<HashMap<PoolName, Registrar>>,
}

/// An error in GitHub's settings.
#[derive(Debug, thiserror::Error)]
pub enum GitHubError {
    /// The credentials are invalid.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The webhook's address can't be bound.
    #[error("can't listen on {0}")]
    Listen(SocketAddr, #[source] std::io::Error),
}

impl Failure for GitHubError {
    fn code(&self) -> Code {
        match self {
            Self::Setup(error) => error.code(),
            Self::Listen(..) => Code::Unavailable,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Setup(error) => error.hint(),
            Self::Listen(..) => None,
        }
    }
}

/// Opens GitHub as the forge of the settings.
#[derive(Debug, Clone, Copy)]
pub struct GitHubDriver;

impl ForgeDriver for GitHubDriver {
    fn check(&self, settings: &Settings) -> Result<(), ForgeSetupError> {
        let client = settings.github.as_ref().map(github_client).transpose();
        client.map(drop).map_err(|error| ForgeSetupError::new(&error))
    }

    fn open<'a>(
        &'a self,
        settings: &'a Settings,
        daemon: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<dyn Forge>>, ForgeSetupError>> {
        Box::pin(async move {
            let Some(github) = &settings.github else { return Ok(None) };
            let forge = GitHubForge::open(github, &settings.pools, daemon).await;
            let forge = forge.map_err(|error| ForgeSetupError::new(&error))?;
            Ok(Some(Arc::new(forge) as Arc<dyn Forge>))
        })
    }
}

impl GitHubForge {
    /// Creates the forge from the settings and pools. Binds the webhook's address if a pool uses
    /// it. `session_owner` is the owner name of scale set sessions, shown to people at GitHub.
    ///
    /// # Errors
    ///
    /// The credentials are invalid, or the webhook's address can't be bound.
    async fn open(
        settings: &mayfly_config::GitHubConfig,
        pools: &[PoolConfig],
        session_owner: &str,
    ) -> Result<Self, GitHubError> {
        let has = |trigger| pools.iter().any(|pool| pool.trigger == trigger);
        let hooked = settings.webhook.as_ref().filter(|_| has(Trigger::Webhook));
        let hook = match hooked {
            Some(hook) => Some(hook::bind(hook).await?),
            None => None,
        };
        let polls = has(Trigger::Poll) || has(Trigger::Webhook) || has(Trigger::Auto);
        let default =
            if hook.is_some() { poller::RECONCILE_INTERVAL } else { poller::POLL_INTERVAL };
        let repositories = settings.repositories.iter().filter(|_| polls).cloned();
        let client = github_client(settings)?;
        Ok(Self {
            repositories: repositories.collect(),
            poll_interval: settings.poll.unwrap_or(default),
            scale_sets: ScaleSetClient::new(&client),
            client,
            hook: Mutex::new(hook),
            session_owner: session_owner.to_owned(),
            registrars: Mutex::default(),
        })
    }

    /// Returns the registrar of a pool, once known.
    fn registrar(&self, pool: &PoolConfig) -> Option<Registrar> {
        match pool.trigger {
            Trigger::None => None,
            Trigger::ScaleSet | Trigger::Auto => self.known_registrar(pool.name.as_str()),
            Trigger::Webhook | Trigger::Poll | Trigger::Always => {
                Some(Registrar::Scope(self.client.clone()))
            }
        }
    }

    fn known_registrar(&self, pool: &str) -> Option<Registrar> {
        let registrars = self.registrars.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = registrars.iter().filter(|(name, _)| name.as_str() == pool);
        found.next().map(|(_, registrar)| registrar.clone())
    }

    /// Sets the registrar that a pool discovered.
    fn set_registrar(&self, pool: &PoolName, registrar: Registrar) {
        let mut registrars = self.registrars.lock().unwrap_or_else(PoisonError::into_inner);
        registrars.insert(pool.clone(), registrar);
    }

    async fn run_tasks(
        self: Arc<Self>,
        mut request: watch::Receiver<ListenRequest>,
        events: mpsc::Sender<ForgeEvent>,
    ) {
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        let hook = self.hook.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((listener, verify)) = hook {
            let (sender, deliveries) = mpsc::channel(webhook::CAPACITY);
            tasks.spawn(webhook::serve(listener, verify, sender, stop.clone()));
            tasks.spawn(hook::forward_deliveries(deliveries, events.clone()));
            tasks.spawn(hook::redeliver(self.client.clone(), request.clone(), stop.clone()));
        }
        if !self.repositories.is_empty() {
            tasks.spawn(poller::poll(self.clone(), events.clone(), stop.clone()));
        }
        let mut sets = ScaleSetTasks::default();
        loop {
            scale_sets::reconcile(&self, &mut request, &mut sets, &mut tasks, &events);
            tokio::select! {
                changed = request.changed() => if changed.is_err() { break },
                Some(ended) = tasks.join_next() => report_panic(ended),
            }
        }
        stop.cancel();
        drop(sets);
        while let Some(ended) = tasks.join_next().await {
            report_panic(ended);
        }
    }
}

impl Forge for GitHubForge {
    fn register<'a>(
        &'a self,
        name: &'a str,
        pool: &'a PoolConfig,
    ) -> BoxFuture<'a, Result<NewRunner, ForgeError>> {
        Box::pin(async move {
            let not_ready = || {
                ForgeError::Unreachable("the pool's registration is still being set up".to_owned())
            };
            let registrar = self.registrar(pool).ok_or_else(not_ready)?;
            let created = registrar.create_jit_runner(name, pool).await?;
            Ok(NewRunner { id: created.runner_id, start_config: created.jit_config })
        })
    }

    fn deregister<'a>(
        &'a self,
        name: &'a str,
        pool: Option<&'a str>,
        id: Option<u64>,
    ) -> BoxFuture<'a, Result<RemovalOutcome, ForgeError>> {
        // If the pool is gone, or never found its own set, the runner belongs to the scope.
        let registrar = pool.and_then(|pool| self.known_registrar(pool));
        let registrar = registrar.unwrap_or_else(|| Registrar::Scope(self.client.clone()));
        Box::pin(async move {
            Ok(match registrar.remove(name, id).await? {
                super::DeletionOutcome::Deleted | super::DeletionOutcome::Gone => {
                    RemovalOutcome::Gone
                }
                super::DeletionOutcome::Busy => RemovalOutcome::Busy,
            })
        })
    }

    fn runners(&self) -> BoxFuture<'_, Result<Vec<RemoteRunner>, ForgeError>> {
        Box::pin(async move {
            let runners = self.client.runners().await?.into_iter();
            let runner = |runner: super::GitHubRunner| RemoteRunner {
                id: runner.id,
                name: runner.name,
                busy: runner.busy,
            };
            Ok(runners.map(runner).collect())
        })
    }

    fn runner_domains(&self) -> BoxFuture<'_, Result<Option<Vec<String>>, ForgeError>> {
        Box::pin(async move { Ok(self.client.runner_domains().await?) })
    }

    fn listen(
        self: Arc<Self>,
        request: watch::Receiver<ListenRequest>,
        events: mpsc::Sender<ForgeEvent>,
    ) -> BoxFuture<'static, ()> {
        Box::pin(self.run_tasks(request, events))
    }

    fn serves(&self, job: &[String], pool: &[String]) -> bool {
        compare(job, pool) == LabelMatch::Served
    }

    fn relists_waiting_jobs(&self) -> bool {
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

impl From<super::WorkflowJob> for RemoteJob {
    fn from(job: super::WorkflowJob) -> Self {
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

/// Creates a client from the settings. Must be called within a Tokio runtime.
///
/// # Errors
///
/// The credentials are invalid.
pub fn github_client(settings: &mayfly_config::GitHubConfig) -> Result<GitHubClient, GitHubError> {
    let mut client = GitHubSettings::new(settings.target.clone(), credentials(settings));
    if !client.target.is_hosted() {
        // The recommendation is for GitHub's own service; other servers set their own limits.
        client.mutation_gap = Duration::ZERO;
    }
    client.api = Some(settings.api.clone());
    client.hook = settings.webhook.as_ref().map(|webhook| match webhook.hook {
        Some(number) => Hook::Id(number),
        None => Hook::App,
    });
    if matches!((&client.hook, &client.credentials), (Some(Hook::App), Credentials::Token(_))) {
        // Without the hook's ID, missed deliveries can't be requested; polls reconcile.
        client.hook = None;
    }
    Ok(GitHubClient::new(&client)?)
}

fn credentials(settings: &mayfly_config::GitHubConfig) -> Credentials {
    match &settings.credentials {
        mayfly_config::GitHubCredentials::Token(token) => Credentials::Token(token.value.clone()),
        mayfly_config::GitHubCredentials::App(app) => Credentials::App {
            id: app.issuer.clone(),
            private_key: app.private_key.value.clone(),
            installation: app.installation,
        },
    }
}

/// Binds an address of the settings.
async fn bind(address: SocketAddr) -> Result<TcpListener, GitHubError> {
    server::bind_tcp(address).await.map_err(|error| GitHubError::Listen(address, error))
}

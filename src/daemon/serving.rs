//! From settings to a running daemon, its loop, and its end.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;

use secrecy::SecretString;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::answering::give;
use super::clock::Clock;
use super::demand::{self, Demand};
use super::error::DaemonError;
use super::happening::Happening;
use super::manager::Manager;
use super::millis::Millis;
use super::observing::Observer;
use super::pools::Pool;
use super::readiness::Heard;
use super::registrar::{GitHub, Registrar};
use super::registrations::Removals;
use super::scale_sets::Sets;
use super::triggers;
use super::world::World;
use crate::api::types::Problem;
use crate::api::{Call, call, server, status, webhook};
use crate::config::{Access, Settings, StatusPage, Trigger};
use crate::failure;
use crate::github;
use crate::host::state::StateDirectory;
use crate::ledger::Ledger;
use crate::machine::accelerator::{self, Accelerator, Facts};
use crate::telemetry;

/// What the tasks tell the loop waits here; a task that finds it full waits, too.
const HAPPENINGS: usize = 1024;
/// What is taken in before the next decision.
const AT_ONCE: usize = 256;
/// How long tasks may take to end with the daemon.
const GRACE: std::time::Duration = std::time::Duration::from_secs(5);

/// Reads the settings again.
pub type Reread = Box<dyn FnMut() -> Result<Settings, Problem> + Send>;

/// What the status page is made of.
fn pages(world: &World, calls: mpsc::Sender<Call>, changed: watch::Receiver<u64>) -> status::Pages {
    let metrics = telemetry::install();
    let metrics = Arc::new(move || metrics.render());
    status::Pages::new(calls, changed, Some(metrics), world.cancel.clone())
}

/// Serves until it is drained or told to end. Jobs that still run then go on, and a later daemon
/// takes them back.
pub async fn serve(
    settings: Settings,
    state: StateDirectory,
    mut reread: Reread,
) -> Result<(), DaemonError> {
    check_accelerator(&settings)?;
    let mut signals = Signals::take()?;
    let (happenings, mut heard) = mpsc::channel(HAPPENINGS);
    let (calls, mut asked) = mpsc::channel(call::CAPACITY);
    let (changes, changed) = watch::channel(0);
    let mut world = World::open(settings, state, happenings, changes)?;
    world.adopt()?;
    let pages = pages(&world, calls.clone(), changed);
    world.listen(calls, &pages).await?;
    world.show(pages).await?;
    world.begin_triggers().await?;
    tracing::info!(pools = world.pools.len(), "serving");
    let (mut manager, mut pulses) = (Manager::new(), Manager::pulses());
    manager.serving(&world);
    loop {
        let wake = world.round()?;
        if world.draining.is_some() {
            manager.ending();
        }
        if world.is_drained() {
            break;
        }
        let wake = wake.map_or_else(far, |wake| world.clock.instant(wake).into());
        tokio::select! {
            Some(happening) = heard.recv() => {
                world.hear(happening)?;
                for _ in 1..AT_ONCE {
                    let Ok(happening) = heard.try_recv() else { break };
                    world.hear(happening)?;
                }
            }
            Some(call) = asked.recv() => match call {
                Call::Reload { answer } => {
                    let read = |world: &mut World| world.reload(&mut reread);
                    give(answer, manager.while_reading(&mut world, read)?);
                }
                call => world.answer(call)?,
            },
            () = tokio::time::sleep_until(wake) => {}
            _ = pulses.tick() => manager.pulse(&world),
            Some(ended) = world.tasks.join_next() => contained(ended),
            signal = signals.next() => match signal {
                Wish::Drain if world.draining.is_none() => _ = world.drain(),
                // Asked to drain twice, or not to wait at all.
                Wish::Drain | Wish::HandOver => break,
                Wish::Reload => match manager
                    .while_reading(&mut world, |world| world.reload(&mut reread))?
                {
                    Ok(report) => tracing::info!(applied = ?report.applied,
                        needs_restart = ?report.needs_restart, "settings read again"),
                    Err(problem) => tracing::error!("the settings stay as they are: {problem}"),
                },
            },
        }
    }
    manager.ending();
    // What was heard and not recorded is not acknowledged.
    drop(heard);
    world.close().await;
    Ok(())
}

/// Says that a task panicked, where it did: a mistake in Mayfly, which concerns that task alone.
fn contained(ended: Result<(), tokio::task::JoinError>) {
    let Err(error) = ended else { return };
    if error.is_panic() {
        let cause = failure::panic_text(&*error.into_panic());
        telemetry::metrics::PANICS.add([], 1);
        tracing::error!(cause, "a task of the daemon panicked, which is a mistake in Mayfly");
    }
}

/// How long GitHub keeps a job queued.
const QUEUED: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

/// How much is believed for how long: where nothing polls, nothing confirms that a job waits, and
/// it is believed for as long as GitHub keeps it.
fn belief(github: Option<&GitHub>) -> demand::Settings {
    let usual = demand::Settings::default();
    match github {
        Some(github) if github.repositories.is_empty() => {
            demand::Settings { expiry: QUEUED, ..usual }
        }
        _ => usual,
    }
}

fn far() -> tokio::time::Instant {
    tokio::time::Instant::now() + std::time::Duration::from_secs(3600)
}

/// `serve` runs other people's code: emulation must be allowed in so many words.
fn check_accelerator(settings: &Settings) -> Result<(), DaemonError> {
    let (chosen, why) = accelerator::choose(settings.host.accelerator, &Facts::gather())?;
    if chosen == Accelerator::Tcg {
        let why = why.map_or_else(|| "it is set to tcg".to_owned(), |why| why.to_string());
        if !settings.host.allow_emulation {
            return Err(DaemonError::Emulation(why));
        }
        tracing::warn!("microVMs are emulated, which is slow and no isolation boundary: {why}");
    }
    Ok(())
}

impl World {
    fn open(
        settings: Settings,
        state: StateDirectory,
        happenings: mpsc::Sender<Happening>,
        changes: watch::Sender<u64>,
    ) -> Result<Self, DaemonError> {
        let mut ledger = Ledger::open(&state.ledger())?;
        let instance = ledger.instance()?;
        let (observer, exporter) = Observer::new(&settings.telemetry, &ledger, &instance)?;
        let logs = state.logs();
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&logs);
        made.map_err(|error| DaemonError::Directory(logs, error))?;
        let github = settings.github.as_ref().map(GitHub::new).transpose()?;
        let pools = settings.pools.iter().map(|pool| {
            let registrar = match (pool.trigger, &github) {
                (Trigger::None | Trigger::ScaleSet | Trigger::Auto, _) | (_, None) => None,
                (_, Some(github)) => Some(Registrar::Scope(github.client.clone())),
            };
            Pool::new(pool.clone(), registrar)
        });
        let program = std::env::current_exe().map_err(DaemonError::Executable)?;
        let (cancel, mut tasks) = (CancellationToken::new(), JoinSet::new());
        if let Some(exporter) = exporter {
            tasks.spawn(exporter.run(cancel.clone()));
        }
        Ok(Self {
            pools: pools.collect(),
            program,
            ledger,
            clock: Clock::start(),
            microvms: std::collections::BTreeMap::new(),
            queue: std::collections::VecDeque::new(),
            demand: Demand::new(belief(github.as_ref())),
            next_list: github.as_ref().map(|_| Millis(0)),
            github,
            prefix: format!("mayfly-{instance}-"),
            removals: Removals::default(),
            next_forgetting: Millis(0),
            log_bytes: 0,
            missed: Vec::new(),
            blockers: Vec::new(),
            draining: None,
            sets: Sets::new(),
            github_heard: Heard::default(),
            changed: true,
            changes,
            happenings,
            tasks,
            cancel,
            keys: 0,
            socket: None,
            observer,
            settings,
            state,
        })
    }

    /// Opens the API.
    async fn listen(
        &mut self,
        calls: mpsc::Sender<Call>,
        pages: &status::Pages,
    ) -> Result<(), DaemonError> {
        let api = &self.settings.host.api;
        let path = api.socket(self.state.root());
        let (socket, file) = server::bind(&path, api.mode)
            .map_err(|error| DaemonError::Socket(path.clone(), error))?;
        self.socket = Some(file);
        let serving = server::serve(socket, calls.clone(), pages.clone(), self.cancel.clone());
        self.tasks.spawn(serving);
        if let Some((address, token)) = &api.tcp {
            let listener = server::bind_tcp(*address)
                .await
                .map_err(|error| DaemonError::Listen(*address, error))?;
            let token = token.value.clone();
            self.tasks.spawn(server::serve_tcp(listener, token, calls, self.cancel.clone()));
            tracing::info!(%address, "the API can be read here");
        }
        tracing::info!(socket = %path.display(), "the API is here");
        Ok(())
    }

    /// Opens the status page, where the settings want it.
    async fn show(&mut self, pages: status::Pages) -> Result<(), DaemonError> {
        let Some(StatusPage { listen, access }) = &self.settings.status else { return Ok(()) };
        let listener =
            status::bind(*listen).await.map_err(|error| DaemonError::Listen(*listen, error))?;
        let access = match access {
            Access::Host => status::Access::Host,
            Access::Token(token) => status::Access::token(token.value.clone()),
            Access::Anyone => status::Access::Anyone,
        };
        self.tasks.spawn(status::serve(listener, access, pages));
        tracing::info!("the status page is here: http://{listen}/");
        Ok(())
    }

    /// Begins to listen for GitHub's jobs, as the pools want it.
    async fn begin_triggers(&mut self) -> Result<(), DaemonError> {
        let Some(github) = self.github.clone() else { return Ok(()) };
        let has = |trigger| self.pools.iter().any(|pool| pool.settings.trigger == trigger);
        let hooked = self.settings.github.as_ref().and_then(|github| github.webhook.clone());
        let hooked = hooked.filter(|_| has(Trigger::Webhook));
        let polls = has(Trigger::Poll) || has(Trigger::Webhook) || has(Trigger::Auto);
        if let Some(hook) = &hooked {
            let listener = server::bind_tcp(hook.listen)
                .await
                .map_err(|error| DaemonError::Listen(hook.listen, error))?;
            let secret: SecretString = hook.secret.value.clone();
            let verify: webhook::Verify =
                Arc::new(move |body, signature| github::webhook::verify(&secret, body, signature));
            let (to, from) = mpsc::channel(webhook::CAPACITY);
            self.tasks.spawn(webhook::serve(listener, verify, to, self.cancel.clone()));
            self.tasks.spawn(triggers::deliveries(from, self.happenings.clone()));
            self.tasks.spawn(triggers::redeliver(github.client.clone(), self.cancel.clone()));
            tracing::info!(listen = %hook.listen, "webhooks are taken here");
        }
        if polls && !github.repositories.is_empty() {
            let usual = if hooked.is_some() { triggers::RECONCILE } else { triggers::POLL };
            let every = self.settings.github.as_ref().and_then(|github| github.poll);
            let every = every.unwrap_or(usual);
            let (to, cancel) = (self.happenings.clone(), self.cancel.clone());
            self.tasks.spawn(triggers::poll(github.clone(), self.clock, every, to, cancel));
        }
        self.hold_sets();
        Ok(())
    }

    /// Ends everything but the microVMs.
    async fn close(mut self) {
        let left = self.running();
        if left > 0 {
            tracing::warn!(jobs = left, "jobs still run; the next daemon takes them back");
        }
        self.tell_left();
        self.cancel.cancel();
        drop(self.socket.take());
        // Those that follow shepherds end with the way to them.
        self.microvms.clear();
        let ended = async {
            while let Some(ended) = self.tasks.join_next().await {
                contained(ended);
            }
        };
        if tokio::time::timeout(GRACE, ended).await.is_err() {
            self.tasks.abort_all();
        }
        tracing::info!("ended");
    }
}

/// What a signal asks for.
enum Wish {
    Drain,
    /// The next daemon is about to start.
    HandOver,
    Reload,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    user: Signal,
}

impl Signals {
    fn take() -> Result<Self, DaemonError> {
        let take = |kind| signal(kind).map_err(DaemonError::Signals);
        Ok(Self {
            terminate: take(SignalKind::terminate())?,
            interrupt: take(SignalKind::interrupt())?,
            hang_up: take(SignalKind::hangup())?,
            user: take(SignalKind::user_defined2())?,
        })
    }

    async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.terminate.recv() => Wish::Drain,
            _ = self.interrupt.recv() => Wish::Drain,
            _ = self.hang_up.recv() => Wish::Reload,
            _ = self.user.recv() => Wish::HandOver,
        }
    }
}

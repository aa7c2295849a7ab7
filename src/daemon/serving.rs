//! From settings to a running daemon, its loop, and its end.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::answering::give;
use super::clock::Clock;
use super::error::DaemonError;
use super::fleet::Processes;
use super::manager::Manager;
use super::running::{Daemon, Inbox, prefix};
use crate::api::types::Problem;
use crate::api::{Call, call, server, status};
use crate::config::{Access, Settings, StatusPage};
use crate::forge::Forge;
use crate::github::forge::GitHub;
use crate::host::state::StateDirectory;
use crate::ledger::Ledger;
use crate::machine::accelerator::{self, Accelerator, Facts};
use crate::telemetry;

/// Reads the settings again.
pub type Reread = Box<dyn FnMut() -> Result<Settings, Problem> + Send>;

/// Serves until it is drained or told to end. Jobs that still run then go on, and a later daemon
/// takes them back.
pub async fn serve(
    settings: Settings,
    state: StateDirectory,
    mut reread: Reread,
) -> Result<(), DaemonError> {
    check_accelerator(&settings)?;
    let mut signals = Signals::take()?;
    let (calls, mut asked) = mpsc::channel(call::CAPACITY);
    let (mut daemon, mut inbox) = open(settings, state).await?;
    // Before shepherds are attached to: these could take all descriptors. Who calls waits for the loop.
    let doors = daemon.open_doors(calls).await?;
    daemon.adopt()?;
    tracing::info!(pools = daemon.pools.iter().count(), "serving");
    let (mut manager, mut pulses) = (Manager::new(), Manager::pulses());
    manager.serving(&daemon);
    loop {
        let wake = daemon.round()?;
        if daemon.is_draining() {
            manager.ending();
        }
        if daemon.is_drained() {
            break;
        }
        tokio::select! {
            woken = daemon.next(&mut inbox, wake) => daemon.take(woken, &mut inbox)?,
            Some(call) = asked.recv() => match call {
                Call::Reload { answer } => {
                    let read = |daemon: &mut Daemon| daemon.reload(&mut reread);
                    give(answer, manager.while_reading(&mut daemon, read)?);
                }
                call => daemon.answer(call)?,
            },
            _ = pulses.tick() => manager.pulse(&daemon),
            signal = signals.next() => match signal {
                Wish::Drain if !daemon.is_draining() => _ = daemon.drain(),
                // As a service manager does, after it said that the host shuts down.
                Wish::Drain if daemon.ends_jobs() => {}
                Wish::ShutDown => daemon.shut_down()?,
                // Asked to drain twice, or not to wait at all.
                Wish::Drain | Wish::HandOver => break,
                Wish::Reload => match manager
                    .while_reading(&mut daemon, |daemon| daemon.reload(&mut reread))?
                {
                    Ok(report) => tracing::info!(applied = report.applied.join(", "),
                        needs_restart = report.needs_restart.join(", "), "settings read again"),
                    Err(problem) => tracing::error!("the settings stay as they are: {problem}"),
                },
            },
        }
    }
    manager.ending();
    drop(doors);
    daemon.close(inbox).await;
    Ok(())
}

/// A daemon with the real drivers of its seams: this host's processes, and GitHub.
async fn open(settings: Settings, state: StateDirectory) -> Result<(Daemon, Inbox), DaemonError> {
    let mut ledger = Ledger::open(&state.ledger())?;
    let logs = state.logs();
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&logs);
    made.map_err(|error| DaemonError::Directory(logs, error))?;
    let forge = match &settings.github {
        Some(github) => {
            let prefix = prefix(&ledger.instance()?);
            let owner = prefix.trim_end_matches('-');
            let github = GitHub::open(github, &settings.pools, owner).await?;
            Some(Arc::new(github) as Arc<dyn Forge>)
        }
        None => None,
    };
    let program = std::env::current_exe().map_err(DaemonError::Executable)?;
    let shepherds = Arc::new(Processes::new(program, state.clone()));
    Daemon::compose(settings, state, ledger, Clock::start(), forge, shepherds)
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

impl Daemon {
    /// Opens the API and, where the settings want it, the status page. The API's socket is there as
    /// long as what is returned.
    async fn open_doors(
        &mut self,
        calls: mpsc::Sender<Call>,
    ) -> Result<server::SocketFile, DaemonError> {
        let metrics = telemetry::install();
        let metrics = Arc::new(move || metrics.render());
        let end = self.tasks.end();
        let pages =
            status::Pages::new(calls.clone(), self.views.watch(), Some(metrics), end.clone());
        let api = &self.settings.host.api;
        let path = api.socket(self.state.root());
        let (socket, file) = server::bind(&path, api.mode)
            .map_err(|error| DaemonError::Socket(path.clone(), error))?;
        self.tasks.spawn(server::serve(socket, calls.clone(), pages.clone(), end.clone()));
        if let Some((address, token)) = &api.tcp {
            let listener = server::bind_tcp(*address)
                .await
                .map_err(|error| DaemonError::Listen(*address, error))?;
            self.tasks.spawn(server::serve_tcp(listener, token.value.clone(), calls, end));
            tracing::info!(%address, "the API can be read here");
        }
        tracing::info!(socket = %path.display(), "the API is here");
        self.show(pages).await?;
        Ok(file)
    }

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
}

/// What a signal asks for.
enum Wish {
    Drain,
    /// The host shuts down.
    ShutDown,
    /// The next daemon is about to start.
    HandOver,
    Reload,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    shut_down: Signal,
    user: Signal,
}

impl Signals {
    fn take() -> Result<Self, DaemonError> {
        let take = |kind| signal(kind).map_err(DaemonError::Signals);
        Ok(Self {
            terminate: take(SignalKind::terminate())?,
            interrupt: take(SignalKind::interrupt())?,
            hang_up: take(SignalKind::hangup())?,
            shut_down: take(SignalKind::user_defined1())?,
            user: take(SignalKind::user_defined2())?,
        })
    }

    async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.terminate.recv() => Wish::Drain,
            _ = self.interrupt.recv() => Wish::Drain,
            _ = self.hang_up.recv() => Wish::Reload,
            _ = self.shut_down.recv() => Wish::ShutDown,
            _ = self.user.recv() => Wish::HandOver,
        }
    }
}

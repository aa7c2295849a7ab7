//! Starts the daemon from its settings, runs its loop, and ends it.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::clock::Clock;
use super::error::DaemonError;
use super::event_loop::{Daemon, Inbox, prefix};
use super::fleet::ShepherdProcesses;
use super::requests::respond;
use super::service_manager::ServiceManager;
use mayfly_api::types::ApiError;
use mayfly_api::{Call, call, server, status};
use mayfly_config::{Settings, StatusAccess, StatusConfig};
use mayfly_forge::ForgeDriver;
use mayfly_host::state::StateDirectory;
use mayfly_ledger::Ledger;
use mayfly_machine::accelerator::{self, Accelerator, KvmStatus};

/// A function that reads the settings again.
pub type ReloadSettings = Box<dyn FnMut() -> Result<Settings, ApiError> + Send>;

/// Serves until the daemon is drained or told to end. Jobs that still run then continue, and a
/// later daemon adopts them.
pub async fn serve(
    settings: Settings,
    state: StateDirectory,
    mut reload_settings: ReloadSettings,
    driver: &dyn ForgeDriver,
) -> Result<(), DaemonError> {
    check_accelerator(&settings)?;
    let mut signals = Signals::install()?;
    let (calls, mut requests) = mpsc::channel(call::CAPACITY);
    let (mut daemon, mut inbox) = open_daemon(settings, state, driver).await?;
    // Before attaching to shepherds, which could use up all descriptors. Clients wait for the loop.
    let socket_file = daemon.open_listeners(calls).await?;
    daemon.adopt()?;
    tracing::info!(pools = daemon.pools.iter().count(), "serving");
    let (mut manager, mut watchdog) = (ServiceManager::new(), ServiceManager::watchdog_interval());
    manager.notify_ready(&daemon);
    loop {
        let wake = daemon.decide_and_act()?;
        if daemon.is_draining() {
            manager.notify_stopping();
        }
        if daemon.is_drained() {
            break;
        }
        tokio::select! {
            reason = daemon.next_wake(&mut inbox, wake) => daemon.handle(reason, &mut inbox)?,
            Some(call) = requests.recv() => match call {
                Call::Reload { responder } => {
                    let read = |daemon: &mut Daemon| daemon.reload(&mut reload_settings, driver);
                    respond(responder, manager.reload_with(&mut daemon, read)?);
                }
                call => daemon.handle_call(call)?,
            },
            _ = watchdog.tick() => manager.notify_watchdog(&daemon),
            signal = signals.next() => match signal {
                SignalRequest::Drain if !daemon.is_draining() => _ = daemon.start_drain(),
                // A service manager stops the daemon after it announced the shutdown of the host.
                SignalRequest::Drain if daemon.is_ending_jobs() => {}
                SignalRequest::ShutDown => daemon.shut_down()?,
                // A second drain request, or a handover, does not wait.
                SignalRequest::Drain | SignalRequest::HandOver => break,
                SignalRequest::Reload => match manager
                    .reload_with(&mut daemon, |daemon| daemon.reload(&mut reload_settings, driver))?
                {
                    Ok(report) => tracing::info!(applied = report.applied.join(", "),
                        needs_restart = report.needs_restart.join(", "), "settings reloaded"),
                    Err(error) => tracing::error!(
                        "can't reload the settings, keeping the current ones: {error}"
                    ),
                },
            },
        }
    }
    manager.notify_stopping();
    drop(socket_file);
    daemon.close(inbox).await;
    Ok(())
}

/// Opens a daemon with its real drivers: this host's processes, and the forge.
async fn open_daemon(
    settings: Settings,
    state: StateDirectory,
    driver: &dyn ForgeDriver,
) -> Result<(Daemon, Inbox), DaemonError> {
    let mut ledger = Ledger::open(&state.ledger())?;
    let logs = state.logs();
    let created = DirBuilder::new().recursive(true).mode(0o700).create(&logs);
    created.map_err(|error| DaemonError::Directory(logs, error))?;
    let prefix = prefix(&ledger.instance()?);
    let forge = driver.open(&settings, prefix.trim_end_matches('-')).await?;
    let program = std::env::current_exe().map_err(DaemonError::Executable)?;
    let shepherds = Arc::new(ShepherdProcesses::new(program, state.clone()));
    Daemon::compose(settings, state, ledger, Clock::start(), forge, shepherds)
}

/// Refuses emulation unless the settings allow it: `serve` runs other people's code.
fn check_accelerator(settings: &Settings) -> Result<(), DaemonError> {
    let (chosen, why) = accelerator::choose(settings.host.accelerator, &KvmStatus::read())?;
    if chosen == Accelerator::Tcg {
        let why =
            why.map_or_else(|| "the accelerator is set to tcg".to_owned(), |why| why.to_string());
        if !settings.host.allow_emulation {
            return Err(DaemonError::Emulation(why));
        }
        tracing::warn!("microVMs are emulated, which is slow and does not isolate jobs: {why}");
    }
    Ok(())
}

impl Daemon {
    /// Opens the API and, if configured, the status page. The API's socket file exists until the
    /// returned value is dropped.
    async fn open_listeners(
        &mut self,
        calls: mpsc::Sender<Call>,
    ) -> Result<server::SocketFile, DaemonError> {
        let metrics = mayfly_telemetry::install();
        let metrics = Arc::new(move || metrics.render());
        let end = self.tasks.cancellation_token();
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
            tracing::info!(%address, "the read-only API listens on this address");
        }
        tracing::info!(socket = %path.display(), "the API listens on this socket");
        self.serve_status_page(pages).await?;
        Ok(file)
    }

    async fn serve_status_page(&mut self, pages: status::Pages) -> Result<(), DaemonError> {
        let Some(StatusConfig { listen, access }) = &self.settings.status else { return Ok(()) };
        let listener =
            status::bind(*listen).await.map_err(|error| DaemonError::Listen(*listen, error))?;
        let access = match access {
            StatusAccess::LocalHost => status::Access::Host,
            StatusAccess::Token(token) => status::Access::token(token.value.clone()),
            StatusAccess::Anyone => status::Access::Anyone,
        };
        self.tasks.spawn(status::serve(listener, access, pages));
        tracing::info!("the status page is at http://{listen}/");
        Ok(())
    }
}

/// The request that a signal stands for.
enum SignalRequest {
    Drain,
    /// The host is shutting down.
    ShutDown,
    /// The next daemon is about to start and adopts the microVMs.
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
    fn install() -> Result<Self, DaemonError> {
        let take = |kind| signal(kind).map_err(DaemonError::Signals);
        Ok(Self {
            terminate: take(SignalKind::terminate())?,
            interrupt: take(SignalKind::interrupt())?,
            hang_up: take(SignalKind::hangup())?,
            shut_down: take(SignalKind::user_defined1())?,
            user: take(SignalKind::user_defined2())?,
        })
    }

    async fn next(&mut self) -> SignalRequest {
        tokio::select! {
            _ = self.terminate.recv() => SignalRequest::Drain,
            _ = self.interrupt.recv() => SignalRequest::Drain,
            _ = self.hang_up.recv() => SignalRequest::Reload,
            _ = self.shut_down.recv() => SignalRequest::ShutDown,
            _ = self.user.recv() => SignalRequest::HandOver,
        }
    }
}

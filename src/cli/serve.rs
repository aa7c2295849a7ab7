//! `mayfly serve`: the daemon.

use std::path::PathBuf;
use std::process::ExitCode;

use super::report::Problem;
use super::trust::TrustArguments;
use super::{config, open_state, telemetry};
use crate::api::types as api;
use crate::config::{Environment, Settings};
use crate::daemon;
use crate::failure::{Code, chain};
use crate::host::state::StateDirectory;
use crate::telemetry::log;

/// Run jobs of GitHub Actions, and local ones, each in a microVM of its own.
///
/// Boots microVMs ahead and registers a runner only when a job waits for it. On SIGTERM it takes no
/// more jobs and ends when the running ones have ended, or at `host.drain`; on SIGUSR2 it ends at
/// once, for another to take over; on SIGHUP it reads its settings again. Killed at any moment, it
/// takes the living microVMs back when it is started again.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ServeArguments {
    /// The settings file
    #[arg(long, env = "MAYFLY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    trust: TrustArguments,
    /// How the log is written [default: the journal where stderr leads there, else text];
    /// `MAYFLY_LOG` says what is in it
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<log::Format>,
}

const EXAMPLES: &str = "\
Examples:
  mayfly serve --config /etc/mayfly/mayfly.toml
  GITHUB_REPOSITORY=acme/site GITHUB_TOKEN=… mayfly serve
  MAYFLY_LOG=debug mayfly serve --log-format json

Settings: `mayfly config check`, `mayfly config show`.";

pub(super) fn run(
    arguments: ServeArguments,
    state_directory: Option<PathBuf>,
) -> Result<ExitCode, Problem> {
    let (settings, state) = prepare(&arguments, state_directory)?;
    let refused = |error: std::io::Error| {
        Problem::file(format!("can't wait for events: {error}"), Code::Internal)
    };
    // Hashing, reading and calls to GitHub are few; the loop is one task.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(refused)?;
    let reread = move || {
        let environment = Environment::of_process().map_err(|error| unreadable(&error))?;
        Settings::load(arguments.config.as_deref(), &environment)
            .map(|settings| trusting(settings, &arguments.trust))
            .map_err(|error| unreadable(&error))
    };
    runtime.block_on(daemon::serve(settings, state, Box::new(reread)))?;
    Ok(ExitCode::SUCCESS)
}

/// The keys of the command line count beside those of the settings.
fn trusting(mut settings: Settings, arguments: &TrustArguments) -> Settings {
    settings.host.image_keys = settings.host.image_keys.and(arguments.trust().keys());
    settings
}

fn unreadable(error: &(dyn std::error::Error + 'static)) -> api::Problem {
    let problem = api::Problem::new(api::ProblemKind::BadSettings, chain(error));
    problem.hint("`mayfly config check` says what is wrong; the settings in effect stay")
}

/// Sets up the log, reads the settings and opens the state directory: the command line's, else
/// that of the settings, else the default one.
fn prepare(
    arguments: &ServeArguments,
    state_directory: Option<PathBuf>,
) -> Result<(Settings, StateDirectory), Problem> {
    telemetry::start(arguments.log_format)?;
    let settings = config::load(arguments.config.as_deref())?;
    let settings = trusting(settings, &arguments.trust);
    let chosen = state_directory.or_else(|| settings.host.state_directory.clone());
    let state = open_state(chosen)?;
    Ok((settings, state))
}

//! `mayfly serve`: runs the daemon.

use std::path::PathBuf;
use std::process::ExitCode;

use super::report::CliError;
use super::telemetry::LogFormatArgument;
use super::trust::TrustArguments;
use super::{config, open_state, telemetry};
use mayfly_api::types as api;
use mayfly_config::{Environment, Settings};
use mayfly_failure::{Code, chain};
use mayfly_github::forge::GitHubDriver;
use mayfly_host::state::StateDirectory;

/// Run the daemon: jobs of GitHub Actions and local jobs, each in its own microVM.
///
/// Boots microVMs in advance and registers a runner only when a job waits. On SIGTERM, takes no
/// more jobs and exits when the running jobs have ended, at the latest after `host.drain`. On
/// SIGUSR2, exits at once and leaves its microVMs to the next daemon. On SIGHUP, reloads its
/// settings. After a crash, the next start adopts the running microVMs.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ServeArguments {
    /// Settings file
    #[arg(long, env = "MAYFLY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    trust: TrustArguments,
    /// Format of the log [default: the journal if stderr leads there, else text]; `MAYFLY_LOG`
    /// selects what is logged
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormatArgument>,
}

const EXAMPLES: &str = "\
Examples:
  mayfly serve --config /etc/mayfly/mayfly.toml
  GITHUB_REPOSITORY=acme/site GITHUB_TOKEN=… mayfly serve
  MAYFLY_LOG=debug mayfly serve --log-format json

To check the settings: `mayfly config check`, `mayfly config show`.";

pub(super) fn run(
    arguments: ServeArguments,
    state_directory: Option<PathBuf>,
) -> Result<ExitCode, CliError> {
    let (settings, state) = prepare(&arguments, state_directory)?;
    let runtime_error = |error: std::io::Error| {
        CliError::file(format!("can't start the async runtime: {error}"), Code::Internal)
    };
    // The main loop is one task. Hashing, reading and calls to GitHub are rare.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(runtime_error)?;
    let reload = move || {
        let environment = Environment::of_process().map_err(|error| settings_error(&error))?;
        Settings::load(arguments.config.as_deref(), &environment)
            .map(|settings| with_image_keys(settings, &arguments.trust))
            .map_err(|error| settings_error(&error))
    };
    runtime.block_on(mayfly_daemon::serve(settings, state, Box::new(reload), &GitHubDriver))?;
    Ok(ExitCode::SUCCESS)
}

/// Adds the image keys of the command line to those of the settings.
fn with_image_keys(mut settings: Settings, arguments: &TrustArguments) -> Settings {
    settings.host.image_keys = settings.host.image_keys.and(arguments.trust().keys());
    settings
}

fn settings_error(error: &(dyn std::error::Error + 'static)) -> api::ApiError {
    let error = api::ApiError::new(api::ApiErrorKind::BadSettings, chain(error));
    error.hint("`mayfly config check` shows what is wrong; the daemon keeps its current settings")
}

/// Sets up the log, reads the settings and opens the state directory: the one of the command line,
/// else of the settings, else the default.
fn prepare(
    arguments: &ServeArguments,
    state_directory: Option<PathBuf>,
) -> Result<(Settings, StateDirectory), CliError> {
    telemetry::start(arguments.log_format)?;
    let settings = config::load(arguments.config.as_deref())?;
    let settings = with_image_keys(settings, &arguments.trust);
    let chosen = state_directory.or_else(|| settings.host.state_directory.clone());
    let state = open_state(chosen)?;
    Ok((settings, state))
}

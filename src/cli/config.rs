//! `mayfly config`: checks the settings and shows what is in effect.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::examples;
use super::output;
use super::report::{self, CliError};
use mayfly_config::{ConfigError, Environment, Settings};

/// The subcommands of `mayfly config`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum ConfigCommand {
    /// Check the settings
    ///
    /// Reads the file, the variables and the secrets that they name, like `mayfly serve`, and
    /// changes nothing. Exits with 78 and the first error if the settings are not valid.
    #[command(after_help = examples::CONFIG_CHECK)]
    Check {
        #[command(flatten)]
        file: FileArguments,
    },
    /// Print the settings in effect, including defaults; secrets are hidden
    #[command(after_help = examples::CONFIG_SHOW)]
    Show {
        #[command(flatten)]
        file: FileArguments,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// The argument for the settings file.
#[derive(Debug, clap::Args)]
pub(super) struct FileArguments {
    /// Settings file
    #[arg(long, env = "MAYFLY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Loads the settings in the environment of this process. Prints warnings to stderr.
pub(super) fn load(file: Option<&Path>) -> Result<Settings, CliError> {
    let environment = Environment::of_process().map_err(ConfigError::Host)?;
    let settings = Settings::load(file, &environment)?;
    settings.warnings.iter().for_each(|warning| report::warning(warning));
    Ok(settings)
}

pub(super) fn run(command: &ConfigCommand) -> Result<ExitCode, CliError> {
    match command {
        ConfigCommand::Check { file } => {
            let settings = load(file.config.as_deref())?;
            let jobs = settings.github.as_ref().map_or_else(
                || "local jobs only".to_owned(),
                |github| format!("jobs of {}", github.url()),
            );
            let pools = settings.pools.len();
            output::stdout().line(format_args!("valid: {pools} pools, {jobs}"))?;
        }
        ConfigCommand::Show { file, json } => {
            let settings = load(file.config.as_deref())?;
            let mut out = output::stdout();
            if *json {
                out.line(format_args!("{:#}", settings.show()))?;
            } else {
                settings.lines().iter().try_for_each(|line| out.line(line))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

//! `mayfly config`: whether settings are good, and what is in effect.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::examples;
use super::output;
use super::report::{self, Problem};
use crate::config::{ConfigError, Environment, Settings};

/// The verbs of `mayfly config`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Verb {
    /// Say whether the settings are good, and what is wrong where they are not
    ///
    /// Reads the file, the variables and the secrets that they name, as `mayfly serve` would, and
    /// changes nothing. Exit code 78 where they can't be used.
    #[command(after_help = examples::CONFIG_CHECK)]
    Check {
        #[command(flatten)]
        file: FileArguments,
    },
    /// Print the settings in effect, defaults among them; secrets are hidden
    #[command(after_help = examples::CONFIG_SHOW)]
    Show {
        #[command(flatten)]
        file: FileArguments,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Which file.
#[derive(Debug, clap::Args)]
pub(super) struct FileArguments {
    /// The settings file
    #[arg(long, env = "MAYFLY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// The settings of a file in the environment of this process; warnings go to stderr.
pub(super) fn load(file: Option<&Path>) -> Result<Settings, Problem> {
    let environment = Environment::of_process().map_err(ConfigError::Host)?;
    let settings = Settings::load(file, &environment)?;
    settings.warnings.iter().for_each(|warning| report::warning(warning));
    Ok(settings)
}

pub(super) fn run(verb: &Verb) -> Result<ExitCode, Problem> {
    match verb {
        Verb::Check { file } => {
            let settings = load(file.config.as_deref())?;
            let jobs = settings.github.as_ref().map_or_else(
                || "local jobs only".to_owned(),
                |github| format!("jobs of {}", github.url()),
            );
            let pools = settings.pools.len();
            output::stdout().line(format_args!("good: {pools} pools, {jobs}"))?;
        }
        Verb::Show { file, json } => {
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

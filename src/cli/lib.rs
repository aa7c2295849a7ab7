//! The command line: one file per subcommand.
//!
//! A subcommand turns its arguments into calls to other crates and prints the result, for a person
//! or, with `--json`, for a program. It makes no decisions. No other crate prints. Data goes to
//! stdout, messages go to stderr; both use `output`. Only `mayfly` uses this crate.

mod audit;
mod config;
mod daemon;
mod doctor;
mod egress;
mod examples;
mod image;
mod microvm;
mod once;
mod output;
mod ps;
#[cfg(test)]
mod reference;
mod report;
mod run;
mod serve;
mod shell;
mod table;
mod telemetry;
mod trust;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use mayfly_host::state::{self, StateDirectory};
use report::CliError;

/// A fresh microVM for every job, destroyed afterwards.
#[derive(Debug, Parser)]
#[command(name = "mayfly", version, disable_help_subcommand = true, after_help = EXAMPLES)]
struct Arguments {
    /// Directory of images, running microVMs and black boxes
    /// [default: `/var/lib/mayfly` as root, else `$XDG_STATE_HOME/mayfly`]
    #[arg(long, global = true, value_name = "DIR", env = state::VARIABLE)]
    state_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: RootCommand,
}

const EXAMPLES: &str = "\
Examples:
  mayfly doctor                             check this host
  mayfly image build images/base/image.toml
  mayfly run -- uname -a                    run a command in a microVM
  mayfly run -it -- bash                    open a shell in a microVM
  mayfly serve --config mayfly.toml         run jobs of GitHub Actions, and local jobs
  mayfly submit --pool ci --wait -- make    run a job in the daemon's pool ci
  mayfly explain 7                          show why job 7 waits, or how long its steps took

The commands from submit to reload connect to the daemon's socket, which is in the state directory
or set with --socket. Settings, exit codes and the API: docs/reference/.";

// The other help texts are in the files of the subcommands.
#[derive(Debug, Subcommand)]
enum RootCommand {
    Run(Box<run::RunArguments>),
    Once(Box<once::OnceArguments>),
    Serve(serve::ServeArguments),
    /// The commands that call the daemon.
    #[command(flatten)]
    Daemon(daemon::DaemonCommand),
    /// List the running microVMs
    #[command(after_help = examples::PS)]
    Ps(ps::PsArguments),
    /// Build, inspect, verify and remove images
    #[command(after_help = examples::IMAGE)]
    Image(image::ImageArguments),
    /// Show and test egress policies
    #[command(subcommand, after_help = examples::EGRESS)]
    Egress(egress::EgressCommand),
    /// Check and show the daemon's settings
    #[command(subcommand, after_help = examples::CONFIG)]
    Config(config::ConfigCommand),
    /// Verify and show the daemon's audit log
    #[command(subcommand, after_help = examples::AUDIT)]
    Audit(audit::AuditCommand),
    /// Check this host and show how to fix what is missing
    #[command(after_help = examples::DOCTOR)]
    Doctor(doctor::DoctorArguments),
    /// The process of a shepherd; started by other commands only
    #[command(hide = true)]
    Shepherd,
    #[command(hide = true)]
    Completions(shell::CompletionsArguments),
    #[command(hide = true)]
    Man(shell::ManArguments),
}

/// Parses the command line and runs the subcommand.
pub fn main() -> ExitCode {
    let requested_at = mayfly_shepherd::plan::monotonic();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return report::usage(&error),
    };
    let Arguments { state_dir, command } = arguments;
    let open = || open_state(state_dir.clone());
    let open_read_only = || open_state_read_only(state_dir.clone());
    if !matches!(command, RootCommand::Shepherd) {
        // A shepherd inherits the limit from the process that starts it.
        mayfly_host::descriptors::raise_limit();
    }
    let result = match command {
        RootCommand::Shepherd => return mayfly_shepherd::process::run(),
        RootCommand::Run(arguments) => {
            open().and_then(|state| run::run(&arguments, &state, requested_at))
        }
        RootCommand::Once(arguments) => {
            open().and_then(|state| once::run(&arguments, &state, requested_at))
        }
        RootCommand::Ps(arguments) => {
            open_read_only().and_then(|state| ps::run(&arguments, &state))
        }
        RootCommand::Image(arguments) => open().and_then(|state| image::run(arguments, &state)),
        RootCommand::Egress(command) => run_egress(&command),
        RootCommand::Serve(arguments) => serve::run(arguments, state_dir),
        RootCommand::Audit(command) => {
            open_read_only().and_then(|state| audit::run(&command, &state))
        }
        RootCommand::Daemon(command) => daemon::run(&command, state_dir.as_deref()),
        RootCommand::Config(command) => config::run(&command),
        RootCommand::Doctor(arguments) => doctor::run(&arguments, open),
        RootCommand::Completions(arguments) => {
            shell::completions(&arguments, &Arguments::command())
        }
        RootCommand::Man(arguments) => shell::man(&arguments, Arguments::command()),
    };
    result.unwrap_or_else(|error| report::error(&error))
}

fn run_egress(command: &egress::EgressCommand) -> Result<ExitCode, CliError> {
    let passes = egress::run(command, output::stdout())?;
    Ok(if passes { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Opens the state directory for commands that change nothing.
fn open_state_read_only(chosen: Option<PathBuf>) -> Result<StateDirectory, CliError> {
    let path = chosen.map_or_else(StateDirectory::default_path, Ok)?;
    // A missing state directory counts as empty.
    if matches!(path.try_exists(), Ok(false)) {
        return Ok(StateDirectory::open(&path)?);
    }
    Ok(StateDirectory::existing(&path)?)
}

fn open_state(chosen: Option<PathBuf>) -> Result<StateDirectory, CliError> {
    let path = chosen.map_or_else(StateDirectory::default_path, Ok)?;
    Ok(StateDirectory::open(&path)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Command;

    #[test]
    fn the_definitions_are_consistent() {
        Arguments::command().debug_assert();
    }

    /// Panics unless a command and its visible arguments have help texts.
    fn assert_has_help(command: &Command, path: &str) {
        assert!(command.get_about().is_some(), "{path} has no description");
        for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
            let id = argument.get_id();
            assert!(argument.get_help().is_some(), "{path}: {id} has no help text");
        }
        for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
            assert_has_help(subcommand, &format!("{path} {}", subcommand.get_name()));
        }
    }

    /// Panics unless a command and its subcommands have examples.
    fn assert_has_examples(command: &Command, path: &str) {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let shown = help.starts_with("Examples:\n") && help.contains(path);
        assert!(shown, "`{path} --help` has no examples");
        for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
            assert_has_examples(subcommand, &format!("{path} {}", subcommand.get_name()));
        }
    }

    #[test]
    fn every_command_and_option_has_help_and_every_command_has_examples() {
        let mut command = Arguments::command();
        command.build();
        assert_has_help(&command, "mayfly");
        assert_has_examples(&command, "mayfly");
    }
}

//! The command line: a file per verb.
//!
//! Talks to a person (or, with `--json`, to a program) and decides nothing: a verb turns its
//! arguments into a call of the folders below and shows what comes back. The only place that
//! prints, by `output`. Data goes to stdout, everything said about it to stderr.

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

use crate::host::state::{self, StateDirectory};
use report::Problem;

/// A fresh microVM for every job, destroyed afterwards.
#[derive(Debug, Parser)]
#[command(name = "mayfly", version, disable_help_subcommand = true, after_help = EXAMPLES)]
struct Arguments {
    /// Where images, living microVMs and black boxes are kept
    /// [default: `/var/lib/mayfly` as root, else `$XDG_STATE_HOME/mayfly`]
    #[arg(long, global = true, value_name = "DIR", env = state::VARIABLE)]
    state_dir: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
  mayfly doctor                             what this host lacks, and what to do about it
  mayfly image build images/base/image.toml
  mayfly run -- uname -a                    a command in a microVM of its own
  mayfly run -it -- bash                    a shell in one
  mayfly serve --config mayfly.toml         the daemon: jobs of GitHub Actions, and local ones
  mayfly submit --pool ci --wait -- make    a job for the daemon's pool of that name
  mayfly explain 7                          why job 7 waits, or how long its steps took

The daemon's verbs (submit to reload) find it by its socket in the state directory, or by
--socket. Settings, exit codes and the API: docs/reference/.";

// What has no words here has them in its own file.
#[derive(Debug, Subcommand)]
enum Verb {
    Run(Box<run::RunArguments>),
    Once(Box<once::OnceArguments>),
    Serve(serve::ServeArguments),
    /// What the daemon is asked.
    #[command(flatten)]
    Daemon(daemon::Verb),
    /// List the living microVMs
    #[command(after_help = examples::PS)]
    Ps(ps::PsArguments),
    /// Build, show, check and remove images
    #[command(after_help = examples::IMAGE)]
    Image(image::ImageArguments),
    /// Show and explain egress policies
    #[command(subcommand, after_help = examples::EGRESS)]
    Egress(egress::Verb),
    /// Check and show the daemon's settings
    #[command(subcommand, after_help = examples::CONFIG)]
    Config(config::Verb),
    /// Verify and show the audit log of the daemon
    #[command(subcommand, after_help = examples::AUDIT)]
    Audit(audit::Verb),
    /// Check what this host offers, and say what to do about what it lacks
    #[command(after_help = examples::DOCTOR)]
    Doctor(doctor::DoctorArguments),
    /// A shepherd's process; started by the other verbs only
    #[command(hide = true)]
    Shepherd,
    #[command(hide = true)]
    Completions(shell::CompletionsArguments),
    #[command(hide = true)]
    Man(shell::ManArguments),
}

/// What `main` calls.
pub fn main() -> ExitCode {
    let asked = crate::shepherd::plan::monotonic();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return report::usage(&error),
    };
    let Arguments { state_dir, verb } = arguments;
    let open = || open_state(state_dir.clone());
    let look = || look_at_state(state_dir.clone());
    if !matches!(verb, Verb::Shepherd) {
        // A shepherd inherits what whoever started it has.
        crate::host::descriptors::raise();
    }
    let result = match verb {
        Verb::Shepherd => return crate::shepherd::process::run(),
        Verb::Run(arguments) => open().and_then(|state| run::run(&arguments, &state, asked)),
        Verb::Once(arguments) => open().and_then(|state| once::run(&arguments, &state, asked)),
        Verb::Ps(arguments) => look().and_then(|state| ps::run(&arguments, &state)),
        Verb::Image(arguments) => open().and_then(|state| image::run(arguments, &state)),
        Verb::Egress(verb) => egress_verb(&verb),
        Verb::Serve(arguments) => serve::run(arguments, state_dir),
        Verb::Audit(verb) => look().and_then(|state| audit::run(&verb, &state)),
        Verb::Daemon(verb) => daemon::run(&verb, state_dir.as_deref()),
        Verb::Config(verb) => config::run(&verb),
        Verb::Doctor(arguments) => doctor::run(&arguments, open),
        Verb::Completions(arguments) => shell::completions(&arguments, &Arguments::command()),
        Verb::Man(arguments) => shell::man(&arguments, Arguments::command()),
    };
    result.unwrap_or_else(|problem| report::problem(&problem))
}

fn egress_verb(verb: &egress::Verb) -> Result<ExitCode, Problem> {
    let passes = egress::run(verb, output::stdout())?;
    Ok(if passes { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The state directory for verbs that change nothing.
fn look_at_state(chosen: Option<PathBuf>) -> Result<StateDirectory, Problem> {
    let path = chosen.map_or_else(StateDirectory::default_path, Ok)?;
    // Where there is none yet, nothing is in it.
    if matches!(path.try_exists(), Ok(false)) {
        return Ok(StateDirectory::open(&path)?);
    }
    Ok(StateDirectory::existing(&path)?)
}

fn open_state(chosen: Option<PathBuf>) -> Result<StateDirectory, Problem> {
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

    /// Fails unless whatever a person sees of a command is explained.
    fn assert_explained(command: &Command, path: &str) {
        assert!(command.get_about().is_some(), "{path} says nothing of itself");
        for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
            let id = argument.get_id();
            assert!(argument.get_help().is_some(), "{path}: {id} is not explained");
        }
        for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
            assert_explained(verb, &format!("{path} {}", verb.get_name()));
        }
    }

    /// Fails unless a command, and each below it, shows how it is called.
    fn assert_exemplified(command: &Command, path: &str) {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let shown = help.starts_with("Examples:\n") && help.contains(path);
        assert!(shown, "`{path} --help` has no examples");
        for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
            assert_exemplified(verb, &format!("{path} {}", verb.get_name()));
        }
    }

    #[test]
    fn every_verb_and_option_is_explained_and_every_verb_has_examples() {
        let mut command = Arguments::command();
        command.build();
        assert_explained(&command, "mayfly");
        assert_exemplified(&command, "mayfly");
    }
}

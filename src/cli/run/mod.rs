//! `mayfly run -- CMD`: runs one command in one throwaway microVM. Contains the front end of all
//! commands that run one microVM.

mod arguments;
mod copy;
mod front_end;
mod job;
mod progress;
mod terminal;
mod timings;

use std::process::ExitCode;

use super::report::CliError;
pub(super) use arguments::{CopyOut, RunArguments};
pub(super) use front_end::{MicrovmTask, run_task};
use mayfly_host::state::StateDirectory;

/// Runs one command in one microVM.
pub(super) fn run(
    arguments: &RunArguments,
    state: &StateDirectory,
    requested_at: u64,
) -> Result<ExitCode, CliError> {
    let plan = arguments.microvm.plan("open", state, requested_at)?;
    let program = arguments.command.first().map(|name| name.to_string_lossy().into_owned());
    let task = MicrovmTask {
        plan,
        job: job::job(arguments),
        program: program.unwrap_or_default(),
        microvm: &arguments.microvm,
        copy_out: &arguments.copy_out,
        must_copy: true,
        runner: None,
        github: None,
    };
    run_task(&task, state)
}

//! `mayfly run -- CMD`: one command in one throwaway microVM; and the front end of every verb that
//! has one microVM of its own.

mod arguments;
mod copy;
mod front;
mod job;
mod progress;
mod terminal;
mod timings;

use std::process::ExitCode;

use super::report::Problem;
use crate::host::state::StateDirectory;
pub(super) use arguments::{CopyOut, RunArguments};
pub(super) use front::{Errand, carry_out};

/// Runs one command in one microVM.
pub(super) fn run(
    arguments: &RunArguments,
    state: &StateDirectory,
    asked: u64,
) -> Result<ExitCode, Problem> {
    let plan = arguments.microvm.plan("open", state, asked)?;
    let command = arguments.command.first().map(|name| name.to_string_lossy().into_owned());
    let errand = Errand {
        plan,
        job: job::job(arguments),
        command: command.unwrap_or_default(),
        microvm: &arguments.microvm,
        copy_out: &arguments.copy_out,
        must_copy: true,
        runner: None,
        judge_egress: |_| None,
    };
    carry_out(&errand, state)
}

//! The agent's binary. The implementation is in the library.

use std::process::ExitCode;

use mayfly_guest::error::StepError;
use mayfly_guest::power::{self, EndMode};

// Threads of the agent rely on it: nothing runs on beside one that has panicked.
#[cfg(not(any(debug_assertions, panic = "abort")))]
compile_error!(
    "build the agent with `cargo build --profile guest`, so that a panic ends the microVM"
);

fn main() -> ExitCode {
    if std::process::id() != 1 {
        power::log_error(&StepError::new("start", "it must run as PID 1 of a microVM"));
        return ExitCode::FAILURE;
    }
    let mode = mayfly_guest::run().unwrap_or_else(|error| {
        power::log_error(&error);
        EndMode::Reset
    });
    power::end(mode)
}

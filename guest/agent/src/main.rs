//! PID 1. Everything is in the library.

use std::process::ExitCode;

use mayfly_guest::error::StepError;
use mayfly_guest::power::{self, Ending};

fn main() -> ExitCode {
    if std::process::id() != 1 {
        power::say(&StepError::new("start", "this is the first process of a microVM, or nothing"));
        return ExitCode::FAILURE;
    }
    let ending = mayfly_guest::run().unwrap_or_else(|error| {
        power::say(&error);
        Ending::Reset
    });
    power::end(ending)
}

//! The entry point of the program.

use std::process::ExitCode;

fn main() -> ExitCode {
    mayfly_cli::main()
}

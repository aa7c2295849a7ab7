//! Runs the program that simulates compromised processes (`tests/injector`).

use std::path::Path;
use std::process::Command;

use nix::unistd::Pid;

/// Makes all attempts in the processes of a microVM that `front` started. `state` is the state
/// directory as `front` sees it. Fails if an outcome differs from the security page.
#[track_caller]
pub(crate) fn inject(setting: &str, front: Pid, state: &Path, parameters: &[String]) {
    // Built with the tests, beside the program.
    let program = Path::new(env!("CARGO_BIN_EXE_mayfly")).with_file_name("mayfly-injector");
    let mut command = Command::new(program);
    let output =
        command.arg(setting).arg(front.to_string()).arg(state).args(parameters).output().unwrap();
    let results = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let unexpected: Vec<_> = results.lines().filter(|line| line.contains("<--")).collect();
    assert!(output.status.success(), "{unexpected:#?}\n{stderr}");
    assert!(results.lines().count() > 300, "{results}");
}

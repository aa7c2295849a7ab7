//! The program that plays processes which were taken over (`tests/injector`).

use std::path::Path;
use std::process::Command;

use nix::unistd::Pid;

/// Tries everything in the processes of a microVM that `front` has started, whose state directory is
/// `state` where it is. Fails where anything is otherwise than the security page says.
#[track_caller]
pub(crate) fn inject(setting: &str, front: Pid, state: &Path, given: &[String]) {
    // Built with the tests, beside the program.
    let program = Path::new(env!("CARGO_BIN_EXE_mayfly")).with_file_name("mayfly-injector");
    let mut command = Command::new(program);
    let output =
        command.arg(setting).arg(front.to_string()).arg(state).args(given).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    let odd: Vec<_> = said.lines().filter(|line| line.contains("<--")).collect();
    assert!(output.status.success(), "{odd:#?}\n{complaint}");
    assert!(said.lines().count() > 300, "{said}");
}

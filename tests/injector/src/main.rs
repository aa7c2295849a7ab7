//! Plays a taken-over process: makes system calls inside one that runs, by `ptrace(2)`, under that
//! process's own rights, root directory and filters, and compares what comes of them with what the
//! security page says.
//!
//! ```text
//! mayfly-injector PROCESS PID KEY=VALUE…   tries everything; exit code 1 where anything is otherwise
//! mayfly-injector table                    the table of the security page
//! ```
//!
//! PROCESS is `qemu`, `vsock` or `shepherd`, PID its number as this process sees it. The keys name
//! what differs between hosts; [`attempts::KEYS`] lists them. Takes root.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for tests")]

mod attempts;
mod inject;

use std::collections::BTreeMap;
use std::process::ExitCode;

use attempts::{KEYS, PROCESSES};
use inject::Tracee;

/// What differs between hosts, by key.
type Given = BTreeMap<String, String>;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match words.as_slice() {
        [table] if table == "table" => {
            print!("{}", attempts::table());
            Ok(true)
        }
        [process, pid, given @ ..] => run(process, pid, given),
        _ => Err("mayfly-injector PROCESS PID KEY=VALUE…".to_owned()),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether everything was as it should be.
fn run(process: &str, pid: &str, given: &[String]) -> Result<bool, String> {
    let column = PROCESSES.iter().position(|(name, _)| *name == process);
    let column = column.ok_or_else(|| format!("{process} is no process that is known"))?;
    let pid: i32 = pid.parse().map_err(|_| format!("{pid} is no process id"))?;
    let given: Given = given
        .iter()
        .map(|word| word.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned())))
        .collect::<Option<_>>()
        .ok_or("what is given is KEY=VALUE")?;
    if let Some(missing) = KEYS.iter().find(|key| !given.contains_key(**key)) {
        return Err(format!("{missing}=VALUE is missing"));
    }
    let failed = |error: std::io::Error| format!("can't work in {process} ({pid}): {error}");
    let mut tracee = Tracee::seize(pid).map_err(failed)?;
    let mut good = true;
    for attempt in attempts::tried_in(process) {
        let result = attempt.how.try_in(&mut tracee, &given).map_err(failed)?;
        let (found, expected) = (attempt.how.outcome(result), attempt.expected(column));
        let differs = if found == expected { "" } else { "  <-- expected otherwise" };
        println!("{process}\t{}\t{found:?} ({result}){differs}", attempt.what);
        good &= found == expected;
    }
    tracee.release().map_err(failed)?;
    Ok(good)
}

//! Simulates compromised processes of a microVM: makes system calls in forks of the running
//! processes with `ptrace(2)`, under their own credentials, root directories, and filters, and
//! compares the outcomes with the table of the security page.
//!
//! ```text
//! mayfly-injector SETTING FRONT STATE image=PATH [KEY=VALUE…]   makes all attempts; exits with 1
//!                                                               if an outcome differs
//! mayfly-injector table                                         prints the security page's table
//! ```
//!
//! SETTING is one of [`rows::SETTINGS`]. FRONT is the process id of `mayfly run` or of the daemon,
//! as seen from here. STATE is its state directory, as it sees it. Each KEY=VALUE replaces the
//! default location of a target ([`targets`]). Must run as root and without a seccomp filter.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for tests")]

mod attempt;
mod inject;
mod microvm;
mod rows;
mod targets;

use std::collections::BTreeMap;
use std::io;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use inject::TracedProcess;
use microvm::Microvm;
use rows::{PROCESSES, SETTINGS};
use targets::TargetThread;

/// The values that differ between hosts, by key.
type Parameters = BTreeMap<String, String>;

/// The time that a microVM may take to start under load.
const START_TIMEOUT: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let result = match words.as_slice() {
        [table] if table == "table" => {
            print!("{}", rows::table());
            Ok(true)
        }
        [setting, front, state, parameters @ ..] if SETTINGS.contains(&setting.as_str()) => {
            run(setting, front, state, parameters)
        }
        _ => Err("usage: mayfly-injector SETTING FRONT STATE image=PATH [KEY=VALUE…]".to_owned()),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// Returns whether all outcomes are as expected.
fn run(setting: &str, front: &str, state: &str, parameters: &[String]) -> Result<bool, String> {
    let front = front.parse().map_err(|_| format!("{front} is not a process id"))?;
    let front = Pid::from_raw(front);
    let mut parameters: Parameters = parameters
        .iter()
        .map(|word| word.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned())))
        .collect::<Option<_>>()
        .ok_or("parameters must have the form KEY=VALUE")?;
    parameters.insert("front".to_owned(), front.to_string());
    let since = Instant::now();
    let microvm = loop {
        match Microvm::find_below(front) {
            Some(microvm) => break microvm,
            None if since.elapsed() > START_TIMEOUT => {
                return Err(format!("process {front} has no microVM"));
            }
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    let failed = |error: io::Error| format!("can't prepare the targets: {error}");
    let targets = TargetThread::start(front, state.into(), &microvm.id, parameters);
    let targets = targets.map_err(failed)?;
    let as_expected = try_all(setting, &microvm, &targets.parameters);
    targets.stop().map_err(failed)?;
    as_expected
}

fn try_all(setting: &str, microvm: &Microvm, parameters: &Parameters) -> Result<bool, String> {
    let mut as_expected = true;
    for (name, _) in PROCESSES {
        let pid = microvm.process(name);
        let failed = |action: &str, error| format!("can't {action} {name} ({pid}): {error}");
        let mut process = TracedProcess::seize(pid).map_err(|error| failed("attach to", error))?;
        for attempt in rows::ALL {
            if let Some(reason) = attempt.method.skip_reason(parameters) {
                println!("{name}\t{}\tnot tried: {reason}", attempt.what);
                continue;
            }
            let outcome = attempt.method.run(&mut process, parameters);
            let failed = |error| failed(&format!("try {:?} in", attempt.what), error);
            let (outcome, result) = outcome.map_err(failed)?;
            let expected = attempt.expected(name, setting);
            let mark = if outcome == expected { "" } else { "  <-- unexpected" };
            println!("{name}\t{}\t{outcome:?} ({result}){mark}", attempt.what);
            as_expected &= outcome == expected;
        }
        process.release().map_err(|error| failed("detach from", error))?;
    }
    Ok(as_expected)
}

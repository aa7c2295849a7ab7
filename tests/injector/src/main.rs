//! Plays processes of a microVM that were taken over: makes system calls in forks of those that run,
//! by `ptrace(2)`, under their own rights, root directories and filters, and compares what comes of
//! them with what the security page says.
//!
//! ```text
//! mayfly-injector SETTING FRONT STATE image=PATH [KEY=VALUE…]   tries everything; exit code 1
//!                                                               where anything is otherwise
//! mayfly-injector table                                         the table of the security page
//! ```
//!
//! SETTING is one of [`rows::SETTINGS`], FRONT the process id of `mayfly run` or of the daemon, as it is here; STATE its state
//! directory, as it is there. What stands elsewhere than there is told by its key ([`targets`]).
//! Takes root, and that nobody has put a filter on this program.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for tests")]

mod attempt;
mod found;
mod inject;
mod rows;
mod targets;

use std::collections::BTreeMap;
use std::io;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use found::Found;
use inject::Process;
use rows::{PROCESSES, SETTINGS};
use targets::There;

/// What differs between hosts, by key.
type Given = BTreeMap<String, String>;

/// How long a microVM may take to be there, under load.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match words.as_slice() {
        [table] if table == "table" => {
            print!("{}", rows::table());
            Ok(true)
        }
        [setting, front, state, given @ ..] if SETTINGS.contains(&setting.as_str()) => {
            run(setting, front, state, given)
        }
        _ => Err("mayfly-injector SETTING FRONT STATE image=PATH [KEY=VALUE…]".to_owned()),
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
fn run(setting: &str, front: &str, state: &str, given: &[String]) -> Result<bool, String> {
    let front = front.parse().map_err(|_| format!("{front} is no process id"))?;
    let front = Pid::from_raw(front);
    let mut given: Given = given
        .iter()
        .map(|word| word.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned())))
        .collect::<Option<_>>()
        .ok_or("what is given is KEY=VALUE")?;
    given.insert("front".to_owned(), front.to_string());
    let since = Instant::now();
    let found = loop {
        match Found::below(front) {
            Some(found) => break found,
            None if since.elapsed() > PATIENCE => return Err(format!("no microVM below {front}")),
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    let failed = |error: io::Error| format!("can't make what is aimed at: {error}");
    let there = There::enter(front, state.into(), &found.id, given).map_err(failed)?;
    let good = try_all(setting, &found, &there.given);
    there.leave().map_err(failed)?;
    good
}

fn try_all(setting: &str, found: &Found, given: &Given) -> Result<bool, String> {
    let mut good = true;
    for (name, _) in PROCESSES {
        let pid = found.process(name);
        let failed = |what: &str, error| format!("can't try {what} in {name} ({pid}): {error}");
        let mut process = Process::seize(pid).map_err(|error| failed("anything", error))?;
        for attempt in rows::ALL {
            if let Some(lacking) = attempt.how.lacks(given) {
                println!("{name}\t{}\tnot tried: {lacking}", attempt.what);
                continue;
            }
            let outcome = attempt.how.outcome(&mut process, given);
            let (outcome, result) = outcome.map_err(|error| failed(attempt.what, error))?;
            let expected = attempt.expected(name, setting);
            let differs = if outcome == expected { "" } else { "  <-- expected otherwise" };
            println!("{name}\t{}\t{outcome:?} ({result}){differs}", attempt.what);
            good &= outcome == expected;
        }
        process.release().map_err(|error| failed("to let it go", error))?;
    }
    Ok(good)
}

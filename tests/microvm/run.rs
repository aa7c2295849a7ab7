//! The guarantees of `mayfly run` for a command: its arguments, its environment, and its end.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::{Host, TIMEOUT};

#[test]
fn outputs_are_separate_and_the_status_is_the_commands() {
    let host = Host::new();
    let ending = host.shell("echo out; echo err >&2; exit 7");
    ending.assert_code(7).assert_output("out\n");
    assert_eq!(ending.stderr, "err\n", "Mayfly added output of its own");
    host.assert_clean();
}

#[test]
fn user_directory_and_variables_are_as_requested() {
    let host = Host::new();
    let script = "id -un; pwd; echo \"$A|$B|$FROM_HERE|$HOME\"; cat /proc/1/cmdline | tr -d '\\0'";
    let run = ["--user", "root", "--workdir", "/usr/lib", "--env", "A=1=2", "-e", "B="];
    let rest = ["--env", "FROM_HERE", "--", "sh", "-c", script];
    let mut command = host.command(run.iter().chain(&rest));
    command.env("FROM_HERE", "there").env("NOT_NAMED", "secret");
    let ending = crate::support::Running::start(&mut command).finish(TIMEOUT);
    ending.assert_code(0).assert_output("root\n/usr/lib\n1=2||there|/root\n/init");

    let ending = host.shell("id -un; id -u; pwd; hostname; env | sort");
    let text = ending.assert_code(0).text();
    assert!(text.starts_with("runner\n1001\n/home/runner\nm-"), "{text}");
    assert!(!text.contains("secret"), "only specified variables are passed: {text}");
}

#[test]
fn arguments_and_variables_are_any_bytes_and_many() {
    let host = Host::new();
    let long = "x".repeat(64 * 1024);
    let odd = OsString::from_vec((1..=255).collect());
    let mut variable = OsString::from("ODD=");
    variable.push(&odd);
    let script = "printf %s \"$1\" | wc -c; printf %s \"$2\"; printf %s \"$ODD\"";
    let arguments = ["--env".into(), variable, "--".into(), "sh".into(), "-c".into()];
    let rest = [script.into(), "sh".into(), long.into(), odd.clone()];
    let ending = host.run(arguments.iter().chain(&rest));
    ending.assert_code(0);
    let odd = odd.into_vec();
    assert_eq!(ending.stdout, [b"65536\n".as_slice(), &odd, &odd].concat(), "{ending:?}");
}

#[test]
fn more_arguments_than_a_message_holds_are_rejected_with_a_hint() {
    let host = Host::new();
    // Each as long as the host's kernel allows for one argument.
    let long = "x".repeat(127 * 1024);
    let words = ["--", "true"].into_iter().chain(std::iter::repeat_n(long.as_str(), 9));
    let ending = host.run(words);
    ending
        .assert_code(64)
        .assert_stderr_has("exceed the limit of one message")
        .assert_stderr_has("pass large data in a file");
    host.assert_no_process();
}

#[test]
fn a_signal_is_128_and_its_number() {
    let host = Host::new();
    host.shell("kill -TERM $$").assert_code(128 + 15);
    host.assert_clean();
}

#[test]
fn a_missing_command_is_127() {
    let host = Host::new();
    host.run(["--", "no-such-command"])
        .assert_code(127)
        .assert_stderr_has("command \"no-such-command\" not found in the image");
    host.assert_clean();
}

#[test]
fn a_command_that_cant_be_executed_is_126() {
    let host = Host::new();
    host.run(["--", "/etc/passwd"])
        .assert_code(126)
        .assert_stderr_has("can't execute \"/etc/passwd\"");
    host.assert_clean();
}

#[test]
fn an_unknown_user_or_directory_is_named() {
    let host = Host::new();
    let ending = host.run(["--user", "nobody-known", "--", "true"]);
    ending.assert_code(66).assert_stderr_has("user \"nobody-known\" not found in the image");
    let ending = host.run(["--workdir", "/not/there", "--", "true"]);
    ending.assert_code(66).assert_stderr_has("/not/there: No such file or directory");
    host.assert_clean();
}

#[test]
fn a_command_that_takes_too_long_is_ended_with_124() {
    let host = Host::new();
    let ending =
        host.run(["--json", "--timeout", "1s", "--", "sh", "-c", "echo begun; sleep 1000"]);
    ending.assert_output("begun\n").assert_stderr_has("the job did not end within 1s");
    ending.assert_stderr_has("use a longer --timeout");
    ending.assert_failed(&host, "job_deadline", 124);
}

#[test]
fn an_interrupt_reaches_the_command() {
    let host = Host::new();
    let script = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.05; done";
    let mut running = host.start(["--", "sh", "-c", script]);
    running.wait_for_output("ready");
    running.signal(Signal::SIGINT);
    running.finish(TIMEOUT).assert_code(9).assert_output("ready\ncaught\n");
    host.assert_clean();
}

#[test]
fn a_second_interrupt_ends_the_microvm() {
    let host = Host::new();
    let script = "trap 'echo caught' INT; echo ready; while :; do sleep 0.05; done";
    let mut running = host.start(["--json", "--", "sh", "-c", script]);
    running.wait_for_output("ready");
    running.signal(Signal::SIGINT);
    running.wait_for_output("caught");
    running.signal(Signal::SIGINT);
    let ending = running.finish(TIMEOUT);
    ending.assert_stderr_has("ended on request").assert_failed(&host, "ended", 130);
}

#[test]
fn an_interrupt_before_the_command_runs_ends_the_microvm() {
    let host = Host::new();
    let mut running = host.start(["--json", "--", "true"]);
    running.wait_for_phase("booting");
    running.signal(Signal::SIGINT);
    running.finish(TIMEOUT).assert_failed(&host, "ended", 130);
}

#[test]
fn events_are_json_lines_and_timings_a_table() {
    const PHASES: [&str; 8] =
        ["planned", "prepared", "booting", "ready", "claimed", "running", "finished", "destroyed"];
    let host = Host::new();
    let ending = host.run(["--json", "--timings", "--", "sh", "-c", "exit 3"]);
    ending.assert_code(3).assert_output("");
    assert_eq!(ending.phases(), PHASES, "{ending:?}");
    let events = ending.events();
    let last = events.last().unwrap();
    assert_eq!(last["happened"]["ended"]["job"]["status"]["Code"], 3, "{ending:?}");
    let times: Vec<f64> =
        events.iter().map(|event| event["elapsed_ms"].as_f64().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
    let names: Vec<_> = events.iter().map(|event| event["microvm"].as_str().unwrap()).collect();
    assert!(names.iter().all(|name| name.starts_with("m-") && *name == names[0]), "{names:?}");
    assert!(
        events.iter().any(|event| event.pointer("/happened/greeted/kernel").is_some()),
        "{ending:?}"
    );
    let rest: Vec<&str> = ending.stderr.lines().filter(|line| !line.starts_with('{')).collect();
    let words: Vec<&str> = rest.iter().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(words[0], "PHASE", "{ending:?}");
    assert_eq!(words[1..], PHASES, "{ending:?}");
}

#[test]
fn ps_lists_only_running_microvms() {
    let host = Host::new();
    let list = |arguments: &[&str]| {
        crate::support::Running::start(&mut host.mayfly(arguments)).finish(Duration::from_secs(10))
    };
    assert_eq!(list(&["ps"]).assert_code(0).text().lines().count(), 1, "a heading");
    let mut running = host.start(["--json", "--memory", "256M", "--", "sleep", "1000"]);
    running.wait_for_phase("running");
    let text = list(&["ps"]).assert_code(0).text();
    let row: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[1..5], ["running", "1", "256", "MiB"], "{text}");
    let json = list(&["ps", "--json"]).assert_code(0).text();
    let entries: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(entries[0]["id"], row[0], "{json}");
    assert_eq!(entries[0]["phase"], "running", "{json}");
    assert_eq!(entries[0]["memory"], 256 << 20, "{json}");
    let shepherd = crate::support::processes::shepherd(running.pid()).unwrap();
    assert_eq!(entries[0]["pid"], shepherd.as_raw(), "{json}");
    running.signal(Signal::SIGINT);
    running.signal(Signal::SIGTERM);
    running.finish(TIMEOUT);
    assert_eq!(list(&["ps", "--json"]).assert_code(0).text(), "[]\n", "a black box is not alive");
}

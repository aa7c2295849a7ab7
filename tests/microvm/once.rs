//! `mayfly once`: a runner, and the visibility of its configuration. The runner is a fake with the
//! process interface of the real one.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::support::{CommandOutput, Host, Running, TIMEOUT, until};

/// A configuration that no other test or process uses.
const SECRET: &str = "c3VyZWx5IG5vYm9keSBlbHNlIGhhcyB0aGlzIHRleHQ=";

/// Prints its environment, then waits for a signal or exits with `$STATUS`.
const RUNNER: &str = r#"#!/bin/sh
[ "$*" = run ] || exit 64
printf 'configuration %s\n' "$ACTIONS_RUNNER_INPUT_JITCONFIG"
echo "user $(id -un) in $(pwd)"
for file in /proc/cmdline /proc/[0-9]*/cmdline; do tr '\0' ' ' < $file; echo; done
printf '\n√ Connected to GitHub\n\n'
mkdir -p _diag && echo log > _diag/Runner_1-utc.log
echo '2026-01-02 03:04:05Z: Listening for Jobs'
[ -z "$STATUS" ] || exit "$STATUS"
end() { echo Exiting...; }
if [ -n "$JOB" ]; then
  echo "2026-01-02 03:04:06Z: Running job: $JOB"
  end() { echo Exiting...; echo "2026-01-02 03:04:07Z: Job $JOB completed with result: Canceled"; }
  [ "$JOB" != deaf ] || trap '' INT
fi
[ "$JOB" = deaf ] || trap 'end; exit 0' INT
# As on .NET 10, where this is the end without a word.
trap 'exit 143' TERM
while :; do sleep 0.05; done
"#;

/// Returns the command `mayfly once` with the fake runner copied in.
fn once(host: &Host, arguments: &[&str]) -> Command {
    let bin = host.root().join("runner/bin");
    if !bin.is_dir() {
        fs::create_dir_all(&bin).unwrap();
        fs::write(bin.join("Runner.Listener"), RUNNER).unwrap();
        fs::set_permissions(bin.join("Runner.Listener"), Permissions::from_mode(0o755)).unwrap();
    }
    let runner = bin.parent().unwrap().display().to_string();
    let copy = format!("{runner}:/home/runner/actions-runner");
    host.mayfly(["once", "--json", "--memory", "256M", "--copy-in", &copy].iter().chain(arguments))
}

fn marks(ending: &CommandOutput) -> Vec<String> {
    let marks = ending.events().into_iter();
    marks.filter_map(|event| Some(event["happened"].get("runner")?.to_string())).collect()
}

/// Checks that no file in a directory contains the secret. Does not follow links: the image is
/// elsewhere.
fn assert_not_in(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        let (path, kind) = entry.map(|entry| (entry.path(), entry.file_type().unwrap())).unwrap();
        if kind.is_dir() {
            assert_not_in(&path);
        } else if kind.is_file() {
            let bytes = fs::read(&path).unwrap();
            assert!(!has_secret(&bytes), "the secret is in {}", path.display());
        }
    }
}

/// Returns the processes with the secret in their arguments or environment.
fn processes_that_show_it() -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap() {
        let path = entry.unwrap().path();
        for file in ["cmdline", "environ"].map(|name| path.join(name)) {
            // Other processes may exit meanwhile.
            if fs::read(&file).is_ok_and(|bytes| has_secret(&bytes)) {
                found.push(file.display().to_string());
            }
        }
    }
    found
}

fn has_secret(bytes: &[u8]) -> bool {
    bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes())
}

#[test]
fn the_configuration_is_only_in_the_environment_of_the_runner() {
    let host = Host::new();
    let mut holder = Command::new("sleep").arg("60").env("HELD", SECRET).spawn().unwrap();
    let seen = processes_that_show_it();
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(seen.len(), 1, "the search finds what is there: {seen:?}");

    let diag = host.root().join("diag");
    let mut command = once(&host, &["--diag", diag.to_str().unwrap()]);
    command.env("ACTIONS_RUNNER_INPUT_JITCONFIG", SECRET);
    let mut running = Running::start(&mut command);
    running.wait_for_output("Listening for Jobs");
    assert_eq!(processes_that_show_it(), Vec::<String>::new());
    assert_eq!(host.microvms().len(), 1);
    assert_not_in(&host.state());
    running.signal(Signal::SIGTERM);
    let ending = running.finish(TIMEOUT);
    let text = ending.assert_code(0).text();
    assert!(text.starts_with(&format!("configuration {SECRET}\n")), "{text}");
    assert!(text.contains("user runner in /home/runner/actions-runner\n"), "{text}");
    assert!(text.ends_with("Listening for Jobs\nExiting...\n"), "{text}");
    // Only the runner's own line contains it, not the kernel's or another process's arguments.
    assert_eq!(text.matches(SECRET).count(), 1, "{text}");
    assert!(!ending.stderr.contains(SECRET), "{ending:?}");
    assert_eq!(marks(&ending), ["\"connected\"", "\"listening\""]);
    assert_eq!(fs::read_to_string(diag.join("Runner_1-utc.log")).unwrap(), "log\n");
    assert_not_in(host.root().join("state").as_path());
    host.assert_clean();
}

#[test]
fn the_exit_status_is_the_runners_and_explained() {
    let host = Host::new();
    let file = host.root().join("jit");
    fs::write(&file, format!("{SECRET}\n")).unwrap();
    let path = file.display().to_string();
    let mut command = once(&host, &["-e", "STATUS=5", "--jitconfig-file", &path]);
    let ending = Running::start(&mut command).finish(TIMEOUT);
    ending.assert_code(5).assert_stderr_has("another runner uses this runner's session");
    assert!(ending.text().starts_with(&format!("configuration {SECRET}\n")), "{ending:?}");
    let mut command = once(&host, &["-e", "STATUS=0", "--jitconfig-file", "-"]);
    let input = fs::File::open(&file).unwrap();
    let ending = Running::start_with(&mut command, input).finish(TIMEOUT);
    assert!(ending.assert_code(0).text().starts_with(&format!("configuration {SECRET}\n")));
    host.assert_clean();
}

/// Returns the reasons for which the runner was interrupted, from the events.
fn interrupted(ending: &CommandOutput) -> Vec<String> {
    let events = ending.events().into_iter();
    let interrupted = events.filter_map(|event| {
        Some(event["happened"].get("interrupted")?["why"].as_str()?.to_owned())
    });
    interrupted.collect()
}

#[test]
fn a_runner_with_a_job_is_interrupted_before_its_deadline() {
    let host = Host::new();
    let mut command = once(&host, &["-e", "JOB=build", "--timeout", "5s"]);
    command.env("ACTIONS_RUNNER_INPUT_JITCONFIG", SECRET);
    let ending = Running::start(&mut command).finish(TIMEOUT);
    let text = ending.assert_code(124).text();
    assert!(text.ends_with("Job build completed with result: Canceled\n"), "{text}");
    assert_eq!(interrupted(&ending), ["the job did not end within 5s"]);
    assert_eq!(
        marks(&ending).last().unwrap(),
        r#"{"completed":{"job":"build","result":"canceled"}}"#
    );
    host.assert_no_process();
}

#[test]
fn a_runner_that_ignores_the_first_signal_ends_with_the_second() {
    let host = Host::new();
    let mut command = once(&host, &["-e", "JOB=deaf"]);
    command.env("ACTIONS_RUNNER_INPUT_JITCONFIG", SECRET);
    let mut running = Running::start(&mut command);
    running.wait_for_output("Running job: deaf");
    running.signal(Signal::SIGTERM);
    let has_interrupted =
        || running.stderr().contains("mayfly once received SIGTERM").then_some(());
    until("the interrupt", TIMEOUT, has_interrupted);
    running.signal(Signal::SIGTERM);
    let ending = running.finish(TIMEOUT);
    ending.assert_code(143);
    assert_eq!(interrupted(&ending), ["mayfly once received SIGTERM"]);
    host.assert_no_process();
}

#[test]
fn nothing_is_started_without_a_configuration() {
    let host = Host::new();
    let ending = Running::start(&mut once(&host, &[])).finish(TIMEOUT);
    ending
        .assert_code(64)
        .assert_stderr_has("set ACTIONS_RUNNER_INPUT_JITCONFIG or use --jitconfig-file");
    let mut command = once(&host, &[]);
    command.env("ACTIONS_RUNNER_INPUT_JITCONFIG", "{a secret that is not encoded}");
    let ending = Running::start(&mut command).finish(TIMEOUT);
    ending.assert_code(65).assert_stderr_has("base64");
    assert!(!ending.stderr.contains("a secret"), "{ending:?}");
    let mut command = once(&host, &["--jitconfig-file", "/not/there"]);
    Running::start(&mut command).finish(TIMEOUT).assert_code(66).assert_stderr_has("No such file");
    // Also Base64 above the limit: a truncated one would be another configuration.
    let large = host.root().join("large");
    fs::write(&large, "A".repeat(256 * 1024 + 1)).unwrap();
    let mut command = once(&host, &["--jitconfig-file", large.to_str().unwrap()]);
    Running::start(&mut command).finish(TIMEOUT).assert_code(66).assert_stderr_has("too large");
    assert_eq!(ending.phases(), [""; 0]);
}

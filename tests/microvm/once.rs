//! `mayfly once`: a runner, and where its configuration is to be seen. The runner is a stand-in that
//! keeps the contract of the real one's process.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::support::{Ending, Host, PATIENCE, Running, until};

/// A configuration as no other test and no other process has one.
const SECRET: &str = "c3VyZWx5IG5vYm9keSBlbHNlIGhhcyB0aGlzIHRleHQ=";

/// Says what it sees, then waits to be told to end or ends with `$STATUS`.
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

/// `mayfly once` with a runner of ours copied in.
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

fn marks(ending: &Ending) -> Vec<String> {
    let marks = ending.events().into_iter();
    marks.filter_map(|event| Some(event["happened"].get("runner")?.to_string())).collect()
}

/// Fails if a file of a directory has the secret. Links are not followed: the image is elsewhere.
fn assert_not_in(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        let (path, kind) = entry.map(|entry| (entry.path(), entry.file_type().unwrap())).unwrap();
        if kind.is_dir() {
            assert_not_in(&path);
        } else if kind.is_file() {
            let bytes = fs::read(&path).unwrap();
            assert!(!has_secret(&bytes), "it is in {}", path.display());
        }
    }
}

/// The processes that show the secret in their arguments or environment.
fn processes_that_show_it() -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap() {
        let path = entry.unwrap().path();
        for file in ["cmdline", "environ"].map(|name| path.join(name)) {
            // Others may end while they are looked at.
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
fn the_configuration_is_in_the_environment_of_the_runner_and_nowhere_else() {
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
    let ending = running.finish(PATIENCE);
    let text = ending.assert_code(0).text();
    assert!(text.starts_with(&format!("configuration {SECRET}\n")), "{text}");
    assert!(text.contains("user runner in /home/runner/actions-runner\n"), "{text}");
    assert!(text.ends_with("Listening for Jobs\nExiting...\n"), "{text}");
    // The runner's own line is the only one: the kernel's and all processes' arguments have not.
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
    let ending = Running::start(&mut command).finish(PATIENCE);
    ending.assert_code(5).assert_says("another runner has this runner's session");
    assert!(ending.text().starts_with(&format!("configuration {SECRET}\n")), "{ending:?}");
    let mut command = once(&host, &["-e", "STATUS=0", "--jitconfig-file", "-"]);
    let input = fs::File::open(&file).unwrap();
    let ending = Running::start_with(&mut command, input).finish(PATIENCE);
    assert!(ending.assert_code(0).text().starts_with(&format!("configuration {SECRET}\n")));
    host.assert_clean();
}

/// Why the runner was interrupted, by the events.
fn interrupted(ending: &Ending) -> Vec<String> {
    let events = ending.events().into_iter();
    let interrupted = events.filter_map(|event| {
        Some(event["happened"].get("interrupted")?["why"].as_str()?.to_owned())
    });
    interrupted.collect()
}

#[test]
fn a_runner_with_a_job_is_told_before_its_deadline_ends_it() {
    let host = Host::new();
    let mut command = once(&host, &["-e", "JOB=build", "--timeout", "5s"]);
    command.env("ACTIONS_RUNNER_INPUT_JITCONFIG", SECRET);
    let ending = Running::start(&mut command).finish(PATIENCE);
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
fn a_runner_that_hears_nothing_ends_with_the_second_signal() {
    let host = Host::new();
    let mut command = once(&host, &["-e", "JOB=deaf"]);
    command.env("ACTIONS_RUNNER_INPUT_JITCONFIG", SECRET);
    let mut running = Running::start(&mut command);
    running.wait_for_output("Running job: deaf");
    running.signal(Signal::SIGTERM);
    let told = || running.stderr().contains("mayfly once got SIGTERM").then_some(());
    until("the interrupt", PATIENCE, told);
    running.signal(Signal::SIGTERM);
    let ending = running.finish(PATIENCE);
    ending.assert_code(143);
    assert_eq!(interrupted(&ending), ["mayfly once got SIGTERM"]);
    host.assert_no_process();
}

#[test]
fn without_a_configuration_nothing_is_started() {
    let host = Host::new();
    let ending = Running::start(&mut once(&host, &[])).finish(PATIENCE);
    ending.assert_code(64).assert_says("ACTIONS_RUNNER_INPUT_JITCONFIG nor --jitconfig-file");
    let mut command = once(&host, &[]);
    command.env("ACTIONS_RUNNER_INPUT_JITCONFIG", "{a secret that is not encoded}");
    let ending = Running::start(&mut command).finish(PATIENCE);
    ending.assert_code(65).assert_says("base64");
    assert!(!ending.stderr.contains("a secret"), "{ending:?}");
    let mut command = once(&host, &["--jitconfig-file", "/not/there"]);
    Running::start(&mut command).finish(PATIENCE).assert_code(66).assert_says("No such file");
    assert_eq!(ending.phases(), [""; 0]);
}

//! Shepherds and guests that are stopped for longer than the heartbeat timeout.

use std::path::Path;
use std::time::Duration;

use mayfly_protocol::message::JobExit;
use mayfly_shepherd::event::{JobOutcome, Phase};
use mayfly_shepherd::plan::ShepherdCommand;
use mayfly_shepherd::{ShepherdHandle, record};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{FrontEnd, Task, found, log, outcome, runtime, wait_for, wait_for_no_process};
use crate::support::image::TestImage;
use crate::support::{Host, TIMEOUT, until};

/// Short for a test, but still many heartbeats.
const SILENCE: Duration = Duration::from_secs(12);

fn pid(directory: &Path) -> Pid {
    let text = std::fs::read_to_string(directory.join("microvm.json")).unwrap();
    let summary: record::MicrovmSummary = serde_json::from_str(&text).unwrap();
    Pid::from_raw(i32::try_from(summary.pid).unwrap())
}

/// Returns the process id of the microVM's QEMU.
fn qemu(directory: &Path) -> Pid {
    let name = directory.file_name().unwrap().to_str().unwrap();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let entry = entry.unwrap();
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let text = String::from_utf8_lossy(&arguments);
        if text.contains("qemu-system") && text.contains(name) {
            return Pid::from_raw(number);
        }
    }
    panic!("{name} has no QEMU");
}

#[test]
fn a_long_stopped_shepherd_does_not_end_its_healthy_job() {
    let host = Host::new();
    let script = "echo begun; sleep 4; echo done";
    let task = Task { silence: SILENCE, ..Task::new(&host) }.with_job(script);
    let front_end = FrontEnd::start(&host, &task);
    let directory = wait_for(&host, Phase::Running);
    until("output", TIMEOUT, || (log(&directory) == "begun\n").then_some(()));
    let shepherd = pid(&directory);
    kill(shepherd, Signal::SIGSTOP).unwrap();
    // Its front end may keep running; a stopped shepherd has not ended.
    runtime().block_on(async {
        let error = ShepherdHandle::attach(&directory).await.err().unwrap();
        assert!(matches!(error, mayfly_shepherd::AttachError::Silent), "{error}");
    });
    assert_eq!(record::liveness(&directory).unwrap(), record::Liveness::Alive);
    std::thread::sleep(SILENCE);
    kill(shepherd, Signal::SIGCONT).unwrap();
    let found = until("the end", TIMEOUT, || found(&host).filter(|found| !found.is_alive));
    let status = JobExit::Code(0);
    assert_eq!(
        *outcome(&found.events),
        JobOutcome::Job { status, not_copied: Vec::new(), oom_kills: 0 }
    );
    assert_eq!(log(&directory), "begun\ndone\n");
    front_end.kill();
}

#[test]
fn a_silent_guest_is_ended_while_its_shepherd_runs() {
    let host = Host::new();
    let task = Task { silence: SILENCE, ..Task::new(&host) }.with_job("echo begun; sleep 1000");
    let front_end = FrontEnd::start(&host, &task);
    let directory = wait_for(&host, Phase::Running);
    until("output", TIMEOUT, || (log(&directory) == "begun\n").then_some(()));
    kill(qemu(&directory), Signal::SIGSTOP).unwrap();
    let found = until("the end", TIMEOUT, || found(&host).filter(|found| !found.is_alive));
    let JobOutcome::Failed(failure) = outcome(&found.events) else { panic!("{:?}", found.events) };
    assert_eq!(failure.cause, "silent");
    front_end.kill();
}

/// Under emulation a guest can lose its timer and sleep until it receives something.
#[test]
fn a_silent_guest_is_woken_before_it_times_out() {
    let host = Host::bare();
    TestImage::hostile("asleep").install(&host);
    let image = "hostile".to_owned();
    let task = Task { silence: SILENCE, image, ..Task::new(&host) }.with_job("job");
    let front_end = FrontEnd::start(&host, &task);
    let found = until("the end", TIMEOUT, || found(&host).filter(|found| !found.is_alive));
    let status = JobExit::Code(0);
    assert_eq!(
        *outcome(&found.events),
        JobOutcome::Job { status, not_copied: Vec::new(), oom_kills: 0 }
    );
    assert_eq!(log(&wait_for(&host, Phase::Destroyed)), "woken\n");
    front_end.kill();
}

/// Forges what a compromised shepherd could write: that it is another process.
fn forge(directory: &Path, pid: u32) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(')').unwrap();
    let path = directory.join("microvm.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut summary: record::MicrovmSummary = serde_json::from_str(&text).unwrap();
    summary.pid = pid;
    summary.process.as_mut().unwrap().ticks =
        rest.split_whitespace().nth(19).unwrap().parse().unwrap();
    std::fs::write(path, serde_json::to_vec(&summary).unwrap()).unwrap();
}

/// Returns the number of bytes that a shepherd sends to a process that connects via `wrapper`.
fn hello(directory: &Path, wrapper: &[&str]) -> String {
    let script = "import glob, socket; s = socket.socket(socket.AF_UNIX); \
                  s.connect(glob.glob('front-*')[0]); print(len(s.recv(64)))";
    let words = [wrapper, &["python3", "-c", script]].concat();
    let mut client = std::process::Command::new(words[0]);
    let output = client.args(&words[1..]).current_dir(directory).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_stopped_shepherd_is_killed_by_its_process() {
    let host = Host::new();
    let task = Task::new(&host).with_job("sleep 1000");
    let front_end = FrontEnd::start(&host, &task);
    let directory = wait_for(&host, Phase::Running);
    front_end.kill();
    // A process in QEMU's sandbox is not served.
    assert_eq!(hello(&directory, &["unshare", "--net"]), "0\n");
    assert_eq!(hello(&directory, &["env"]), "64\n");
    let mut bystander = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    runtime().block_on(async {
        // Attached before the stop: commands are not acknowledged then.
        let mut shepherd = ShepherdHandle::attach(&directory).await.unwrap();
        kill(pid(&directory), Signal::SIGSTOP).unwrap();
        forge(&directory, bystander.id());
        let number = shepherd.send_command(&ShepherdCommand::End).unwrap();
        assert!(number > 1, "command numbers do not continue those of the previous front end");
        // As a daemon without a connection does.
        record::kill(&directory).unwrap();
        shepherd.wait().await.unwrap();
    });
    assert!(bystander.try_wait().unwrap().is_none(), "another process was killed");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
    until("removal of all processes", TIMEOUT, || {
        (record::liveness(&directory).unwrap() == record::Liveness::Gone).then_some(())
    });
    wait_for_no_process(&host);
}

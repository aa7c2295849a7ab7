//! Shepherds and guests that are stopped for longer than a guest may be silent.

use std::path::Path;
use std::time::Duration;

use mayfly::shepherd::event::{Outcome, Phase};
use mayfly::shepherd::plan::Order;
use mayfly::shepherd::{Handle, record};
use mayfly_protocol::message::JobStatus;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{FrontEnd, Task, found, log, outcome, runtime, wait_for, wait_for_no_process};
use crate::support::image::Forgery;
use crate::support::{Host, PATIENCE, until};

/// Short, for a test; still many heartbeats.
const SILENCE: Duration = Duration::from_secs(12);

fn pid(directory: &Path) -> Pid {
    let text = std::fs::read_to_string(directory.join("microvm.json")).unwrap();
    let summary: record::Summary = serde_json::from_str(&text).unwrap();
    Pid::from_raw(i32::try_from(summary.pid).unwrap())
}

/// The number of the QEMU that has this microVM.
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
    panic!("no QEMU of {name}");
}

#[test]
fn a_shepherd_that_was_stopped_for_long_does_not_end_its_healthy_job() {
    let host = Host::new();
    let script = "echo begun; sleep 4; echo done";
    let task = Task { silence: SILENCE, ..Task::new(&host) }.with_job(script);
    let front_end = FrontEnd::start(&host, &task);
    let directory = wait_for(&host, Phase::Running);
    until("output", PATIENCE, || (log(&directory) == "begun\n").then_some(()));
    let shepherd = pid(&directory);
    kill(shepherd, Signal::SIGSTOP).unwrap();
    // Its front end can go on living; that it is stopped is not its end.
    runtime().block_on(async {
        let error = Handle::attach(&directory).await.err().unwrap();
        assert!(matches!(error, mayfly::shepherd::AttachError::Silent), "{error}");
    });
    assert_eq!(record::liveness(&directory).unwrap(), record::Liveness::Alive);
    std::thread::sleep(SILENCE);
    kill(shepherd, Signal::SIGCONT).unwrap();
    let found = until("the end", PATIENCE, || found(&host).filter(|found| !found.living));
    let status = JobStatus::Code(0);
    assert_eq!(
        *outcome(&found.events),
        Outcome::Job { status, not_copied: Vec::new(), oom_kills: 0 }
    );
    assert_eq!(log(&directory), "begun\ndone\n");
    front_end.murder();
}

#[test]
fn a_guest_that_is_silent_while_its_shepherd_runs_is_ended() {
    let host = Host::new();
    let task = Task { silence: SILENCE, ..Task::new(&host) }.with_job("echo begun; sleep 1000");
    let front_end = FrontEnd::start(&host, &task);
    let directory = wait_for(&host, Phase::Running);
    until("output", PATIENCE, || (log(&directory) == "begun\n").then_some(()));
    kill(qemu(&directory), Signal::SIGSTOP).unwrap();
    let found = until("the end", PATIENCE, || found(&host).filter(|found| !found.living));
    let Outcome::Failed(failure) = outcome(&found.events) else { panic!("{:?}", found.events) };
    assert_eq!(failure.cause, "silent");
    front_end.murder();
}

/// Under emulation a guest can lose its timer and sleep until something reaches it.
#[test]
fn a_guest_that_is_silent_is_woken_before_it_is_given_up() {
    let host = Host::bare();
    Forgery::hostile("asleep").install(&host);
    let image = "hostile".to_owned();
    let task = Task { silence: SILENCE, image, ..Task::new(&host) }.with_job("job");
    let front_end = FrontEnd::start(&host, &task);
    let found = until("the end", PATIENCE, || found(&host).filter(|found| !found.living));
    let status = JobStatus::Code(0);
    assert_eq!(
        *outcome(&found.events),
        Outcome::Job { status, not_copied: Vec::new(), oom_kills: 0 }
    );
    assert_eq!(log(&wait_for(&host, Phase::Destroyed)), "woken\n");
    front_end.murder();
}

/// Writes what a shepherd that was taken over could: that it is another process.
fn forge(directory: &Path, pid: u32) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(')').unwrap();
    let path = directory.join("microvm.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut summary: record::Summary = serde_json::from_str(&text).unwrap();
    summary.pid = pid;
    summary.process.as_mut().unwrap().ticks =
        rest.split_whitespace().nth(19).unwrap().parse().unwrap();
    std::fs::write(path, serde_json::to_vec(&summary).unwrap()).unwrap();
}

/// How many bytes a shepherd says to a process that connects by `wrapper`.
fn hello(directory: &Path, wrapper: &[&str]) -> String {
    let script = "import glob, socket; s = socket.socket(socket.AF_UNIX); \
                  s.connect(glob.glob('front-*')[0]); print(len(s.recv(64)))";
    let words = [wrapper, &["python3", "-c", script]].concat();
    let mut client = std::process::Command::new(words[0]);
    let output = client.args(&words[1..]).current_dir(directory).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_shepherd_that_is_stopped_is_killed_through_its_process() {
    let host = Host::new();
    let task = Task::new(&host).with_job("sleep 1000");
    let front_end = FrontEnd::start(&host, &task);
    let directory = wait_for(&host, Phase::Running);
    front_end.murder();
    // Where QEMU of any microVM is, nobody is served.
    assert_eq!(hello(&directory, &["unshare", "--net"]), "0\n");
    assert_eq!(hello(&directory, &["env"]), "64\n");
    let mut bystander = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    runtime().block_on(async {
        // Attached before it is stopped: its orders are not acknowledged then.
        let mut shepherd = Handle::attach(&directory).await.unwrap();
        kill(pid(&directory), Signal::SIGSTOP).unwrap();
        forge(&directory, bystander.id());
        let number = shepherd.order(&Order::End).unwrap();
        assert!(number > 1, "numbers go on where the front end before left off");
        // As a daemon that has no connection does it.
        record::kill(&directory).unwrap();
        shepherd.ended().await.unwrap();
    });
    assert!(bystander.try_wait().unwrap().is_none(), "another was killed");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
    until("nothing is left", PATIENCE, || {
        (record::liveness(&directory).unwrap() == record::Liveness::Gone).then_some(())
    });
    wait_for_no_process(&host);
}

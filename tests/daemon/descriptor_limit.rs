//! A daemon with more microVMs than file descriptors is slow, reports why, and settles nothing
//! wrongly.
//!
//! The daemon's process, its limit of open files and its ledger are real. Each shepherd is a
//! process with a directory, a lock and a socket, and the first of a process-id namespace, as real
//! shepherds are. No shepherd has a microVM, because forty of them don't fit on hosts that run
//! tests.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mayfly_ledger::{CommandBytes, JobCommand, JobId, JobState, Ledger};
use mayfly_protocol::message::JobExit;
use mayfly_shepherd::event::{Event, EventKind, JobOutcome, Phase};
use mayfly_shepherd::plan::{MicrovmId, monotonic};
use nix::fcntl::{Flock, FlockArg};

use super::daemon::{Daemon, local};
use super::support::{TIMEOUT, until};

/// The numbers of microVMs and of descriptors.
const CROWD: usize = 40;
const DESCRIPTORS: usize = 64;
/// The variable with a shepherd's directory and exit code.
const VARIABLE: &str = "MAYFLY_TEST_SHEPHERD";
/// How long all of them run beside the daemon: enough for several attempts to attach to each.
const LIVES: Duration = Duration::from_secs(20);

/// A shepherd's process and its job.
struct FakeShepherd {
    process: Child,
    job: JobId,
}

impl Drop for FakeShepherd {
    fn drop(&mut self) {
        // Its child ends with it. Fails if it has exited already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn id(number: usize) -> MicrovmId {
    MicrovmId::parse(&format!("m-{number:010x}")).unwrap()
}

fn code(number: usize) -> u8 {
    u8::try_from(number).unwrap() + 1
}

/// Creates a job that runs according to the ledger and its shepherd.
fn create_job(number: usize, ledger: &mut Ledger, microvms: &Path) -> FakeShepherd {
    let id = id(number);
    let command = JobCommand {
        arguments: vec![CommandBytes(b"true".to_vec())],
        environment: Vec::new(),
        directory: None,
        user: None,
        timeout: None,
    };
    let job = ledger.submit_local("test", &command).unwrap();
    ledger.record_planned(id.as_str(), "test", "runner-sim").unwrap();
    ledger.claim(job, id.as_str()).unwrap();
    ledger.start(job).unwrap();
    let directory = microvms.join(id.as_str());
    fs::create_dir_all(&directory).unwrap();
    let process = Command::new("unshare")
        .args(["--user", "--map-root-user", "--pid", "--fork", "--kill-child"])
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "descriptor_limit::a_shepherd_without_a_microvm",
            "--ignored",
            "--nocapture",
        ])
        .env(VARIABLE, format!("{} {}", code(number), directory.display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    FakeShepherd { process, job }
}

#[test]
fn a_daemon_with_64_descriptors_and_40_microvms_is_slow_and_settles_nothing_wrongly() {
    let mut daemon = Daemon::new();
    daemon.configure(&local("", "max = 40\nmin_idle = 0"));
    let state = daemon.host.state();
    let microvms = state.join("microvms");
    let mut ledger = Ledger::open(&state.join("ledger.db")).unwrap();
    let mut crowd: Vec<_> =
        (0..CROWD).map(|number| create_job(number, &mut ledger, &microvms)).collect();
    drop(ledger);
    until("the shepherds", TIMEOUT, || {
        let ready = |number: &usize| microvms.join(id(*number).as_str()).join("ready").exists();
        (0..CROWD).filter(ready).count().eq(&CROWD).then_some(())
    });
    let limit = format!("ulimit -n {DESCRIPTORS} && exec \"$0\" \"$@\"");
    daemon.host.wrapper = ["sh", "-c", &limit].map(Into::into).into();
    daemon.launch();
    daemon.host.wrapper = Vec::new();

    std::thread::sleep(LIVES);
    assert!(daemon.is_running(), "the daemon exited: {}", daemon.log());
    for FakeShepherd { job, .. } in &crowd {
        let found = daemon.ledger().job(*job).unwrap().unwrap();
        assert_eq!(found.state, JobState::Running, "{found:?}\n{}", daemon.log());
    }
    assert_eq!(
        daemon.ask(&["status"])["microvms"],
        CROWD,
        "the daemon does not report all microVMs"
    );
    let log = daemon.log();
    assert!(
        log.contains("can't connect to the shepherd now"),
        "the daemon never reached the limit: {log}"
    );

    for one in &mut crowd {
        // The end of its input ends its job.
        drop(one.process.stdin.take());
    }
    until("the end of all jobs", TIMEOUT * 4, || {
        let ledger = daemon.ledger();
        let is_over = |one: &FakeShepherd| ledger.job(one.job).unwrap().unwrap().state.is_over();
        crowd.iter().all(is_over).then_some(())
    });
    for (number, FakeShepherd { job, .. }) in crowd.iter().enumerate() {
        let found = daemon.ledger().job(*job).unwrap().unwrap();
        let expected = (JobState::Finished, Some(code(number)), 0);
        let settled = (found.state, found.exit_code, found.requeued);
        assert_eq!(settled, expected, "{found:?}\n{}", daemon.log());
        let kept = fs::read_to_string(state.join(format!("logs/{job}.log")));
        assert_eq!(kept.unwrap_or_default(), format!("{}\n", code(number)), "the log of job {job}");
    }
    drop(crowd);
    until("the end of all directories", TIMEOUT * 4, || {
        fs::read_dir(&microvms).unwrap().next().is_none().then_some(())
    });
    daemon.finish();
}

/// Not a test by itself: the shepherd of the test above, in a separate process.
#[test]
#[ignore = "is a process of another test"]
fn a_shepherd_without_a_microvm() {
    let Ok(value) = std::env::var(VARIABLE) else { return };
    let (code, directory) = value.split_once(' ').unwrap();
    shepherd(code.parse().unwrap(), &PathBuf::from(directory));
}

fn shepherd(code: u8, directory: &Path) {
    let lock = File::open(directory).unwrap();
    let lock = Flock::lock(lock, FlockArg::LockExclusive).unwrap();
    let id = MicrovmId::parse(directory.file_name().unwrap().to_str().unwrap()).unwrap();
    let directory_link = PathBuf::from(format!("/proc/self/fd/{}", lock.as_raw_fd()));
    let listener = UnixListener::bind(directory_link.join("front-0123456789")).unwrap();
    listener.set_nonblocking(true).unwrap();
    fs::write(directory.join("microvm.json"), summary(&id)).unwrap();
    fs::write(directory.join("output.log"), format!("{code}\n")).unwrap();
    let phases = [
        Phase::Planned,
        Phase::Prepared,
        Phase::Booting,
        Phase::Ready,
        Phase::Claimed,
        Phase::Running,
    ];
    let events = phases.map(|phase| Event::now(&id, monotonic(), EventKind::Phase(phase)));
    let mut lines: Vec<String> =
        events.iter().map(|event| serde_json::to_string(event).unwrap()).collect();
    let record = |lines: &[String]| {
        fs::write(directory.join("events.jsonl"), lines.join("\n") + "\n").unwrap();
    };
    record(&lines);
    fs::write(directory.join("ready"), "").unwrap();
    let (over, ends) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // The only thing to read is the end of input.
        let _ = std::io::stdin().read(&mut [0]);
        let _ = over.send(());
    });
    let mut fronts: Vec<UnixStream> = Vec::new();
    while ends.try_recv().is_err() {
        if let Ok((mut front, _)) = listener.accept() {
            greet(&mut front, &lines);
            // The newest connection counts.
            fronts = vec![front];
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let status = JobExit::Code(code);
    let outcome = JobOutcome::Job { status, not_copied: Vec::new(), oom_kills: 0 };
    let ended = Event::now(&id, monotonic(), EventKind::Ended(outcome));
    lines.push(serde_json::to_string(&ended).unwrap());
    record(&lines);
    for front in &mut fronts {
        // After the end, the daemon reads the record.
        let _ = writeln!(front, "{{\"event\":{}}}", lines.last().unwrap());
    }
}

/// Sends the greeting and all events.
fn greet(front: &mut UnixStream, events: &[String]) {
    front.set_nonblocking(false).unwrap();
    let hello = "{\"hello\":{\"version\":1,\"min_version\":1,\"acknowledged\":0}}\n".to_owned();
    let lines = events.iter().map(|event| format!("{{\"event\":{event}}}\n"));
    let all: String = [hello].into_iter().chain(lines).collect();
    // A daemon that disconnected tries again.
    let _ = front.write_all(all.as_bytes());
}

/// Returns the record of this process. `/proc` is the host's.
fn summary(id: &MicrovmId) -> String {
    let pid = fs::read_link("/proc/self").unwrap();
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let ticks = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().to_owned();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    format!(
        "{{\"id\":\"{id}\",\"image\":\"runner-sim\",\"processors\":1,\"memory\":402653184,\
         \"pid\":{},\"since\":\"2026-01-01T00:00:00Z\",\"process\":{{\"boot\":\"{}\",\
         \"ticks\":{ticks}}},\"asked\":{}}}",
        pid.display(),
        boot.trim(),
        monotonic()
    )
}

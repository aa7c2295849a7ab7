//! More microVMs than a daemon has descriptors for: it is slow, says why, and settles nothing wrongly.
//!
//! Real are the daemon's process, its limit of open files, its ledger, and a process with a directory, a
//! lock and a socket for each shepherd, first of a process-id namespace of its own as shepherds are. No
//! shepherd has a microVM: forty of these don't fit into the hosts that run tests.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mayfly::ledger::{Bytes, Command as JobCommand, JobId, JobState, Ledger};
use mayfly::shepherd::event::{Event, Happened, Outcome, Phase};
use mayfly::shepherd::plan::{Id, monotonic};
use mayfly_protocol::message::JobStatus;
use nix::fcntl::{Flock, FlockArg};

use super::daemon::{Daemon, local};
use super::support::{PATIENCE, until};

/// How many microVMs there are, and how many descriptors.
const CROWD: usize = 40;
const DESCRIPTORS: usize = 64;
/// What a shepherd is told its directory and exit code by.
const VARIABLE: &str = "MAYFLY_TEST_SHEPHERD";
/// How long all of them live beside the daemon: some attempts to attach to each.
const LIVES: Duration = Duration::from_secs(20);

/// A shepherd's process, and the job that it has.
struct Crowded {
    process: Child,
    job: JobId,
}

impl Drop for Crowded {
    fn drop(&mut self) {
        // Its child ends with it; one that has ended is no error.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn id(number: usize) -> Id {
    Id::parse(&format!("m-{number:010x}")).unwrap()
}

fn code(number: usize) -> u8 {
    u8::try_from(number).unwrap() + 1
}

/// A job that runs, by the ledger and by its shepherd.
fn crowded(number: usize, ledger: &mut Ledger, microvms: &Path) -> Crowded {
    let id = id(number);
    let command = JobCommand {
        arguments: vec![Bytes(b"true".to_vec())],
        environment: Vec::new(),
        directory: None,
        user: None,
        timeout: None,
    };
    let job = ledger.submit_local("test", &command).unwrap();
    ledger.planned(id.as_str(), "test", "runner-sim").unwrap();
    ledger.claim(job, id.as_str()).unwrap();
    ledger.start(job).unwrap();
    let directory = microvms.join(id.as_str());
    fs::create_dir_all(&directory).unwrap();
    let process = Command::new("unshare")
        .args(["--user", "--map-root-user", "--pid", "--fork", "--kill-child"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "crowd::a_shepherd_without_a_microvm", "--ignored", "--nocapture"])
        .env(VARIABLE, format!("{} {}", code(number), directory.display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    Crowded { process, job }
}

#[test]
fn a_daemon_with_64_descriptors_and_40_microvms_is_slow_and_settles_nothing_wrongly() {
    let mut daemon = Daemon::new();
    daemon.configure(&local("", "max = 40\nmin_idle = 0"));
    let state = daemon.host.state();
    let microvms = state.join("microvms");
    let mut ledger = Ledger::open(&state.join("ledger.db")).unwrap();
    let mut crowd: Vec<_> =
        (0..CROWD).map(|number| crowded(number, &mut ledger, &microvms)).collect();
    drop(ledger);
    until("the shepherds", PATIENCE, || {
        let ready = |number: &usize| microvms.join(id(*number).as_str()).join("ready").exists();
        (0..CROWD).filter(ready).count().eq(&CROWD).then_some(())
    });
    let limit = format!("ulimit -n {DESCRIPTORS} && exec \"$0\" \"$@\"");
    daemon.host.wrapper = ["sh", "-c", &limit].map(Into::into).into();
    daemon.launch();
    daemon.host.wrapper = Vec::new();

    std::thread::sleep(LIVES);
    assert!(daemon.is_there(), "the daemon has ended: {}", daemon.log());
    for Crowded { job, .. } in &crowd {
        let found = daemon.ledger().job(*job).unwrap().unwrap();
        assert_eq!(found.state, JobState::Running, "{found:?}\n{}", daemon.log());
    }
    assert_eq!(
        daemon.ask(&["status"])["microvms"],
        CROWD,
        "all of them count, and who asks is answered"
    );
    let log = daemon.log();
    assert!(log.contains("can't connect to the shepherd now"), "the limit was never met: {log}");

    for one in &mut crowd {
        // The end of its input is the end of its job.
        drop(one.process.stdin.take());
    }
    until("the end of all jobs", PATIENCE * 4, || {
        let ledger = daemon.ledger();
        let is_over = |one: &Crowded| ledger.job(one.job).unwrap().unwrap().state.is_over();
        crowd.iter().all(is_over).then_some(())
    });
    for (number, Crowded { job, .. }) in crowd.iter().enumerate() {
        let found = daemon.ledger().job(*job).unwrap().unwrap();
        let expected = (JobState::Finished, Some(code(number)), 0);
        let settled = (found.state, found.exit_code, found.requeued);
        assert_eq!(settled, expected, "{found:?}\n{}", daemon.log());
        let kept = fs::read_to_string(state.join(format!("logs/{job}.log")));
        assert_eq!(kept.unwrap_or_default(), format!("{}\n", code(number)), "the log of job {job}");
    }
    drop(crowd);
    until("the end of all directories", PATIENCE * 4, || {
        fs::read_dir(&microvms).unwrap().next().is_none().then_some(())
    });
    daemon.finish();
}

/// No test by itself: the shepherd of the test above, in a process of its own.
#[test]
#[ignore = "is a process of another test"]
fn a_shepherd_without_a_microvm() {
    let Ok(told) = std::env::var(VARIABLE) else { return };
    let (code, directory) = told.split_once(' ').unwrap();
    shepherd(code.parse().unwrap(), &PathBuf::from(directory));
}

fn shepherd(code: u8, directory: &Path) {
    let lock = File::open(directory).unwrap();
    let lock = Flock::lock(lock, FlockArg::LockExclusive).unwrap();
    let id = Id::parse(directory.file_name().unwrap().to_str().unwrap()).unwrap();
    let place = PathBuf::from(format!("/proc/self/fd/{}", lock.as_raw_fd()));
    let listener = UnixListener::bind(place.join("front-0123456789")).unwrap();
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
    let events = phases.map(|phase| Event::now(&id, monotonic(), Happened::Phase(phase)));
    let mut lines: Vec<String> =
        events.iter().map(|event| serde_json::to_string(event).unwrap()).collect();
    let record = |lines: &[String]| {
        fs::write(directory.join("events.jsonl"), lines.join("\n") + "\n").unwrap();
    };
    record(&lines);
    fs::write(directory.join("ready"), "").unwrap();
    let (over, ends) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // There is nothing to read but the end.
        let _ = std::io::stdin().read(&mut [0]);
        let _ = over.send(());
    });
    let mut fronts: Vec<UnixStream> = Vec::new();
    while ends.try_recv().is_err() {
        if let Ok((mut front, _)) = listener.accept() {
            greet(&mut front, &lines);
            // The newest counts.
            fronts = vec![front];
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let status = JobStatus::Code(code);
    let outcome = Outcome::Job { status, not_copied: Vec::new(), oom_kills: 0 };
    let ended = Event::now(&id, monotonic(), Happened::Ended(outcome));
    lines.push(serde_json::to_string(&ended).unwrap());
    record(&lines);
    for front in &mut fronts {
        // One that is gone reads the record.
        let _ = writeln!(front, "{{\"event\":{}}}", lines.last().unwrap());
    }
}

/// Says hello, and everything from the first event on.
fn greet(front: &mut UnixStream, events: &[String]) {
    front.set_nonblocking(false).unwrap();
    let hello = "{\"hello\":{\"version\":1,\"min_version\":1,\"acknowledged\":0}}\n".to_owned();
    let told = events.iter().map(|event| format!("{{\"event\":{event}}}\n"));
    let all: String = [hello].into_iter().chain(told).collect();
    // One that went away again tries again.
    let _ = front.write_all(all.as_bytes());
}

/// What the record says of this process: `/proc` is the host's.
fn summary(id: &Id) -> String {
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

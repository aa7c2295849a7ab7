//! Shepherds that outlive their front end: the job continues, and the next front end receives
//! everything.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mayfly_egress::policy::Policies;
use mayfly_host::size::Size;
use mayfly_host::state::StateDirectory;
use mayfly_machine::accelerator::AcceleratorPreference;
use mayfly_protocol::message::{Job, JobExit};
use mayfly_shepherd::event::{Event, EventKind, JobOutcome, Phase};
use mayfly_shepherd::plan::{Deadlines, ShepherdCommand, monotonic};
use mayfly_shepherd::planner::{self, MicrovmRequest};
use mayfly_shepherd::record::{self, RecordedMicrovm};
use mayfly_shepherd::runner::{self, RunnerProgress, RunnerResult};
use mayfly_shepherd::{DetachedLimits, ShepherdHandle, output};
use serde::{Deserialize, Serialize};

use crate::support::{Host, TIMEOUT, is_long_run, processes, until};

mod frozen;

/// The variable that carries the task of a front end.
const FRONT_END: &str = "MAYFLY_TEST_FRONT_END";

/// The task of a front end.
#[derive(Serialize, Deserialize)]
struct Task {
    state: PathBuf,
    mayfly: PathBuf,
    image: String,
    idle: Duration,
    silence: Duration,
    output: u64,
    copies: u64,
    /// The shell script of the job; without one, the microVM stays warm.
    script: Option<String>,
}

impl Task {
    fn new(host: &Host) -> Self {
        let (state, mayfly) = (host.state(), host.mayfly.clone());
        Self {
            state,
            mayfly,
            image: "base".to_owned(),
            idle: TIMEOUT,
            silence: Deadlines::default().silence,
            output: 1 << 20,
            copies: 1 << 20,
            script: None,
        }
    }

    fn with_job(self, script: &str) -> Self {
        Self { script: Some(script.to_owned()), ..self }
    }
}

/// A process that starts a detached shepherd and runs until it is killed.
struct FrontEnd(Child);

impl FrontEnd {
    /// Starts it: this executable, running the test `front_end`.
    fn start(host: &Host, task: &Task) -> Self {
        let device = host.find("vhost-device-vsock");
        let own = device.parent().unwrap().to_owned();
        let path = std::env::join_paths([own].into_iter().chain(std::env::split_paths(&host.path)));
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "detached::front_end", "--ignored", "--nocapture"])
            .env(FRONT_END, serde_json::to_string(task).unwrap())
            .env("PATH", path.unwrap())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        Self(command.spawn().unwrap())
    }

    /// Sends SIGKILL and waits for its exit.
    fn kill(self) {
        drop(self);
    }
}

impl Drop for FrontEnd {
    fn drop(&mut self) {
        // If it has already failed, the test fails later anyway.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "a process that the other tests start and kill"]
fn front_end() {
    let task = std::env::var(FRONT_END).expect("only other tests run this one");
    let task: Task = serde_json::from_str(&task).unwrap();
    let request = MicrovmRequest {
        trust: mayfly_image::Trust::default(),
        requested_at: monotonic(),
        image: task.image.parse().unwrap(),
        accelerator: AcceleratorPreference::Auto,
        processors: 1,
        memory: Size::mebibytes(256),
        disk: None,
        egress: Policies::read(None).unwrap().get("none").unwrap().clone(),
        egress_record: None,
        deadlines: Deadlines { idle: task.idle, silence: task.silence, ..Deadlines::default() },
        boot: None,
        detached: Some(DetachedLimits { output: Size(task.output), copies: Size(task.copies) }),
    };
    let state = StateDirectory::open(&task.state).unwrap();
    let (plan, _) = planner::plan(request, &state).unwrap();
    runtime().block_on(async {
        let mut shepherd = ShepherdHandle::spawn_detached(&task.mayfly, &plan).await.unwrap();
        if let Some(script) = task.script {
            shepherd.send_command(&ShepherdCommand::Start(Box::new(job(&script)))).unwrap();
        }
        while shepherd.next_event().await.is_some() {}
        std::future::pending::<()>().await;
    });
}

fn job(script: &str) -> Job {
    let words = ["sh", "-c", script].map(|word| word.as_bytes().to_vec().into());
    Job {
        arguments: words.to_vec(),
        environment: Vec::new(),
        directory: None,
        user: None,
        terminal: None,
        stdin: false,
        copy_in: Vec::new(),
        copy_out: Vec::new(),
        follow: None,
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Returns the only microVM that a daemon would find.
fn found(host: &Host) -> Option<RecordedMicrovm> {
    let microvms = host.state().join("microvms");
    let mut found = microvms.is_dir().then(|| record::uncollected(&microvms).unwrap())?;
    assert!(found.len() <= 1, "{found:?}");
    found.pop()
}

fn phases(events: &[Event]) -> Vec<Phase> {
    let phase = |event: &Event| match event.kind {
        EventKind::Phase(phase) => Some(phase),
        _ => None,
    };
    events.iter().filter_map(phase).collect()
}

/// Waits until the microVM reaches a phase. Returns its directory.
fn wait_for(host: &Host, phase: Phase) -> PathBuf {
    let reached =
        |found: RecordedMicrovm| phases(&found.events).contains(&phase).then_some(found.directory);
    until(&format!("the phase {phase}"), TIMEOUT, || found(host).and_then(reached))
}

fn ended(event: &Event) -> bool {
    matches!(event.kind, EventKind::Ended(_))
}

/// Reads events until `last` matches one, or the end.
async fn read(shepherd: &mut ShepherdHandle, last: impl Fn(&Event) -> bool) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(event) = tokio::time::timeout(TIMEOUT, shepherd.next_event()).await.unwrap() {
        events.push(event);
        if events.last().is_some_and(&last) {
            break;
        }
    }
    events
}

fn outcome(events: &[Event]) -> &JobOutcome {
    match &events.last().unwrap().kind {
        EventKind::Ended(outcome) => outcome,
        other => panic!("{other:?} is not an outcome"),
    }
}

/// Waits for all processes: a shepherd unlocks its directory just before the kernel ends its
/// children.
fn wait_for_no_process(host: &Host) {
    let left = || processes::mentioning(host.root()).is_empty().then_some(());
    until("the end of its processes", Duration::from_secs(1), left);
}

fn log(directory: &Path) -> String {
    std::fs::read_to_string(directory.join("output.log")).unwrap()
}

const WHOLE_LIFE: [Phase; 8] = [
    Phase::Planned,
    Phase::Prepared,
    Phase::Booting,
    Phase::Ready,
    Phase::Claimed,
    Phase::Running,
    Phase::Finished,
    Phase::Destroyed,
];

#[test]
fn a_job_outlives_its_front_end_and_loses_nothing() {
    let host = Host::new();
    // Separate, because two streams have no order; and long enough for the next front end.
    let script = "echo out; sleep 2; echo err >&2; sleep 3; echo late; exit 3";
    let front_end = FrontEnd::start(&host, &Task::new(&host).with_job(script));
    let directory = wait_for(&host, Phase::Running);
    front_end.kill();
    runtime().block_on(async {
        let mut shepherd = ShepherdHandle::attach(&directory).await.unwrap();
        let events = read(&mut shepherd, ended).await;
        assert_eq!(phases(&events), WHOLE_LIFE);
        let status = JobExit::Code(3);
        assert_eq!(
            *outcome(&events),
            JobOutcome::Job { status, not_copied: Vec::new(), oom_kills: 0 }
        );
        assert_eq!(shepherd.wait().await.unwrap(), "ended");

        let found = found(&host).unwrap();
        assert!(!found.is_alive);
        assert_eq!(found.events, events, "the record differs from the sent events");
        // A front end that comes after the shepherd's exit finds the same.
        let mut late = ShepherdHandle::attach(&directory).await.unwrap();
        assert_eq!(read(&mut late, |_| false).await, events);
    });
    assert_eq!(log(&directory), "out\nerr\nlate\n");
    host.assert_no_process();
    record::prune(&host.state().join("microvms")).unwrap();
    assert!(directory.is_dir(), "an uncollected directory was removed");
    record::collect(&directory).unwrap();
    host.assert_clean();
}

#[test]
fn a_warm_microvm_waits_for_its_one_job_and_sends_each_front_end_everything() {
    let host = Host::new();
    let front_end = FrontEnd::start(&host, &Task::new(&host));
    let directory = wait_for(&host, Phase::Ready);
    front_end.kill();
    runtime().block_on(async {
        let ready = |event: &Event| event.kind == EventKind::Phase(Phase::Ready);
        let mut first = ShepherdHandle::attach(&directory).await.unwrap();
        let before = read(&mut first, ready).await;
        assert_eq!(phases(&before), WHOLE_LIFE[..4]);
        assert!(record::collect(&directory).is_err(), "a running microVM was collected");

        let mut second = ShepherdHandle::attach(&directory).await.unwrap();
        assert_eq!(read(&mut second, ready).await, before);
        assert_eq!(read(&mut first, |_| false).await, [], "an older connection received events");
        second.send_command(&ShepherdCommand::Start(Box::new(job("echo one")))).unwrap();
        second.send_command(&ShepherdCommand::Start(Box::new(job("echo two")))).unwrap();
        let rest = read(&mut second, ended).await;
        assert_eq!(phases(&rest), WHOLE_LIFE[4..]);
        second.wait().await.unwrap();

        let all = found(&host).unwrap().events;
        assert_eq!(all, [before, rest].concat(), "events are repeated, lost, or out of order");
    });
    assert_eq!(log(&directory), "one\n", "a second job ran");
    record::keep_black_box(&directory, "ci").unwrap();
    assert!(found(&host).is_none() && directory.is_dir(), "the directory is not a black box");
    host.assert_no_process();
}

#[test]
fn output_beyond_its_limit_keeps_both_ends_and_the_job_continues() {
    let host = Host::new();
    let script = "head -c 3000000 /dev/zero | tr '\\0' x; printf %250s y; exit 5";
    let task = Task { output: 1000, ..Task::new(&host) }.with_job(script);
    let _front_end = FrontEnd::start(&host, &task);
    let directory = wait_for(&host, Phase::Destroyed);
    let found = until("the end", TIMEOUT, || found(&host).filter(|found| !found.is_alive));
    let status = JobExit::Code(5);
    assert_eq!(
        *outcome(&found.events),
        JobOutcome::Job { status, not_copied: Vec::new(), oom_kills: 0 }
    );
    output::append_tail(&directory).unwrap();
    let text = log(&directory);
    let (head, tail) = text.split_once("\n[mayfly: ").unwrap();
    assert_eq!(head, "x".repeat(500));
    let (cut, tail) = tail.split_once(" bytes omitted here]\n").unwrap();
    assert_eq!(cut.parse::<usize>().unwrap() + head.len() + tail.len(), 3_000_250);
    assert!(tail.len() <= 500 && tail.ends_with(&format!("{:>250}", "y")), "{tail:?}");
}

#[test]
fn a_killed_shepherd_is_found_with_its_last_event() {
    let host = Host::new();
    let front_end = FrontEnd::start(&host, &Task::new(&host).with_job("echo begun; sleep 1000"));
    let directory = wait_for(&host, Phase::Running);
    front_end.kill();
    until("output", TIMEOUT, || (log(&directory) == "begun\n").then_some(()));
    runtime().block_on(async {
        let mut shepherd = ShepherdHandle::attach(&directory).await.unwrap();
        shepherd.kill().unwrap();
        let events = read(&mut shepherd, |_| false).await;
        assert_eq!(phases(&events), WHOLE_LIFE[..6]);
        shepherd.wait().await.unwrap();
    });
    let found = found(&host).unwrap();
    assert!(!found.is_alive);
    assert_eq!(found.events.last().unwrap().kind, EventKind::Phase(Phase::Running));
    wait_for_no_process(&host);
    let list = crate::support::Running::start(&mut host.mayfly(["ps", "--json"]));
    list.finish(TIMEOUT).assert_code(0).assert_output("[]\n");
}

#[test]
fn an_unused_warm_microvm_ends_by_itself() {
    let host = Host::new();
    let task = Task { idle: Duration::from_millis(300), ..Task::new(&host) };
    let front_end = FrontEnd::start(&host, &task);
    wait_for(&host, Phase::Booting);
    front_end.kill();
    let found = until("the end", TIMEOUT, || found(&host).filter(|found| !found.is_alive));
    match outcome(&found.events) {
        JobOutcome::Failed(report) => assert_eq!(report.cause, "idle_deadline"),
        other @ JobOutcome::Job { .. } => panic!("{other:?}"),
    }
    wait_for_no_process(&host);
}

#[test]
fn a_front_end_killed_at_any_moment_loses_no_job_and_runs_none_twice() {
    let host = Host::new();
    let rounds = if is_long_run() { 50 } else { 8 };
    let mut finished = 0;
    for round in 0..rounds {
        let front_end = FrontEnd::start(&host, &Task::new(&host).with_job("echo once"));
        let random = u64::from_ne_bytes(mayfly_host::random::<8>().unwrap());
        let moment = Duration::from_micros(random % 2_500_000);
        std::thread::sleep(moment);
        front_end.kill();
        let when = format!("killed {moment:?} after its start, in round {round}");
        // It may not have got this far.
        let Some(RecordedMicrovm { directory, .. }) = found(&host) else { continue };
        let events = runtime().block_on(async {
            let mut shepherd = ShepherdHandle::attach(&directory).await.unwrap();
            // The next front end does not know whether the job was sent, so it sends it again.
            shepherd.send_command(&ShepherdCommand::Start(Box::new(job("echo once")))).unwrap();
            let events = read(&mut shepherd, |_| false).await;
            tokio::time::timeout(TIMEOUT, shepherd.wait()).await.unwrap().unwrap();
            events
        });
        assert_eq!(found(&host).unwrap().events, events, "{when}");
        // Without its plan, a shepherd has started nothing.
        if !events.is_empty() {
            assert_eq!(phases(&events), WHOLE_LIFE, "{when}");
            assert_eq!(log(&directory), "once\n", "{when}");
            finished += 1;
        }
        record::collect(&directory).unwrap();
        wait_for_no_process(&host);
        host.assert_clean();
    }
    eprintln!("{finished} of {rounds} started, and all of these finished");
    assert!(finished > 0, "no front end ran long enough");
}

#[test]
fn a_runners_progress_is_reported_and_its_trees_are_limited() {
    let host = Host::new();
    let task = Task { copies: 100_000, ..Task::new(&host) };
    let front_end = FrontEnd::start(&host, &task);
    let directory = wait_for(&host, Phase::Ready);
    front_end.kill();
    let listener = "#!/bin/sh\n\
        echo '2026-01-02 03:04:05Z: Listening for Jobs'\n\
        echo 'Running job: build'\n\
        mkdir _diag ../large; echo log > _diag/log; head -c 300000 /dev/zero > ../large/zeroes\n\
        echo 'Job build completed with result: Failed'\n";
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    for (path, mode, kind, data) in [
        (".", 0o755, tar::EntryType::Directory, ""),
        ("bin", 0o755, tar::EntryType::Directory, ""),
        ("bin/Runner.Listener", 0o755, tar::EntryType::Regular, listener),
    ] {
        header.set_mode(mode);
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        archive.append_data(&mut header, path, data.as_bytes()).unwrap();
    }
    std::fs::write(output::copy_in_path(&directory, 0), archive.into_inner().unwrap()).unwrap();
    let mut job = runner::job(&"c2VjcmV0".into(), [], "/home/runner/stand-in");
    job.copy_in.push(b"/home/runner/stand-in".to_vec().into());
    job.copy_out.push(b"/home/runner/large".to_vec().into());
    let events = runtime().block_on(async {
        let mut shepherd = ShepherdHandle::attach(&directory).await.unwrap();
        shepherd.send_command(&ShepherdCommand::Start(Box::new(job))).unwrap();
        let events = read(&mut shepherd, ended).await;
        shepherd.wait().await.unwrap();
        events
    });
    let mark = |event: &Event| match &event.kind {
        EventKind::Runner(mark) => Some(mark.clone()),
        _ => None,
    };
    let (name, result) = (|| "build".to_owned(), RunnerResult::Failed);
    assert_eq!(
        events.iter().filter_map(mark).collect::<Vec<_>>(),
        [
            RunnerProgress::Listening,
            RunnerProgress::Running { job: name() },
            RunnerProgress::Completed { job: name(), result },
        ]
    );
    let JobOutcome::Job { status, not_copied, .. } = outcome(&events) else { panic!("{events:?}") };
    assert_eq!(*status, JobExit::Code(0), "{}", log(&directory));
    assert!(not_copied.len() == 1 && not_copied[0].starts_with("/home/runner/large: "));
    let logs = std::fs::read(output::copy_out_path(&directory, 0)).unwrap();
    let mut logs = tar::Archive::new(logs.as_slice());
    let names = logs.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned());
    assert!(names.into_iter().any(|path| path.ends_with("log")));
    assert_eq!(std::fs::metadata(output::copy_out_path(&directory, 1)).unwrap().len(), 100_000);
    assert_eq!(log(&directory).lines().count(), 3);
}

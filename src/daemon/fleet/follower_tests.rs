//! Tests of what counts as the end of a shepherd.

use std::fs;
use std::path::{Path, PathBuf};

use mayfly_protocol::message::JobExit;

use super::super::processes::ShepherdProcesses;
use super::super::shepherds::{FoundMicrovm, PlanFailure};
use super::*;
use mayfly_forge::BoxFuture;
use mayfly_host::state::StateDirectory;
use mayfly_shepherd::planner::MicrovmRequest;

/// Creates a microVM's directory and locks it, as a running shepherd does. Connecting fails.
fn lock_directory(root: &Path) -> fs::File {
    let directory = root.join("microvms/m-0123456789");
    fs::create_dir_all(&directory).unwrap();
    let lock = fs::File::open(&directory).unwrap();
    lock.lock().unwrap();
    lock
}

/// Returns a follower for that directory, and its channels.
fn follower(
    root: &Path,
) -> (impl Future<Output = ()> + use<>, mpsc::Sender<ShepherdTask>, mpsc::Receiver<DaemonEvent>) {
    let state = StateDirectory::open(root).unwrap();
    let shepherds = Arc::new(ShepherdProcesses::new("/proc/self/exe".into(), state));
    let (sender, shepherd_tasks) = mpsc::channel(SHEPHERD_TASKS_CAPACITY);
    let (event_sender, events) = mpsc::channel(16);
    let channels = FollowerChannels { key: MicrovmKey(1), shepherd_tasks, events: event_sender };
    let id = MicrovmId::parse("m-0123456789").unwrap();
    (adopt(shepherds, id, channels), sender, events)
}

fn is_vanished(event: Option<DaemonEvent>) -> bool {
    matches!(event, Some(DaemonEvent::ShepherdEvent(MicrovmKey(1), usize::MAX, event))
        if matches!(&event.kind, EventKind::Ended(JobOutcome::Failed(report))
            if report.cause == "vanished"))
}

#[tokio::test(start_paused = true)]
async fn attaching_is_retried_as_long_as_the_shepherd_runs() {
    let root = tempfile::tempdir().unwrap();
    let lock = lock_directory(root.path());
    let (follower, shepherd_tasks, mut events) = follower(root.path());
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(follower);
    let hour = Duration::from_secs(3600);
    assert!(tokio::time::timeout(hour, events.recv()).await.is_err(), "it is running");
    shepherd_tasks.send(ShepherdTask::Command(ShepherdCommand::End)).await.unwrap();
    assert!(tokio::time::timeout(hour, events.recv()).await.is_err(), "it is running");
    drop(lock);
    assert!(is_vanished(events.recv().await), "it is gone");
}

#[tokio::test(start_paused = true)]
async fn a_shepherd_without_a_directory_is_gone() {
    let root = tempfile::tempdir().unwrap();
    let (follower, _tasks, mut events) = follower(root.path());
    follower.await;
    assert!(is_vanished(events.recv().await));
}

#[tokio::test(start_paused = true)]
async fn a_follower_ends_with_the_loop_however_its_shepherd_is() {
    let root = tempfile::tempdir().unwrap();
    let _lock = lock_directory(root.path());
    let (follower, shepherd_tasks, mut events) = follower(root.path());
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(follower);
    shepherd_tasks.send(ShepherdTask::Kill).await.unwrap();
    drop(shepherd_tasks);
    tasks.join_next().await.unwrap().unwrap();
    assert!(events.recv().await.is_none(), "a running shepherd is not reported as ended");
}

/// A host without running shepherds, whose records have one event.
struct FakeRecord(Event);

/// A connection or a record with at most one event left.
struct FakeConnection(Option<Event>);

impl Shepherds for FakeRecord {
    fn plan(
        &self,
        _wanted: MicrovmRequest,
    ) -> BoxFuture<'static, Result<Box<MicrovmPlan>, PlanFailure>> {
        Box::pin(async {
            Err(PlanFailure {
                is_image_error: false,
                message: "this host starts nothing".to_owned(),
            })
        })
    }

    fn start(&self, _plan: MicrovmPlan) -> BoxFuture<'_, Result<Box<dyn Shepherd>, String>> {
        Box::pin(async { Err("this host starts nothing".to_owned()) })
    }

    fn attach<'a>(
        &'a self,
        _id: &'a MicrovmId,
    ) -> BoxFuture<'a, Result<Box<dyn Shepherd>, AttachError>> {
        Box::pin(async { Ok(Box::new(FakeConnection(Some(self.0.clone()))) as Box<dyn Shepherd>) })
    }

    fn is_gone(&self, _id: &MicrovmId) -> bool {
        true
    }

    fn kill(&self, _id: &MicrovmId) -> io::Result<()> {
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<FoundMicrovm>> {
        Ok(Vec::new())
    }

    fn save_output(&self, _id: &MicrovmId, _log: PathBuf) -> BoxFuture<'static, u64> {
        Box::pin(async { 0 })
    }

    fn dispose(
        &self,
        _id: &MicrovmId,
        _pool: Option<String>,
    ) -> BoxFuture<'static, io::Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

impl Shepherd for FakeConnection {
    fn event(&mut self) -> BoxFuture<'_, Option<Event>> {
        Box::pin(async { self.0.take() })
    }

    fn send_command(&mut self, _order: &ShepherdCommand) -> Result<(), String> {
        Ok(())
    }

    fn kill(&self) -> io::Result<()> {
        Ok(())
    }

    fn resume(&mut self, _orders: Unacknowledged) -> Result<(), String> {
        Ok(())
    }

    fn into_unacknowledged(self: Box<Self>) -> Unacknowledged {
        Unacknowledged::new()
    }

    fn wait(self: Box<Self>) -> BoxFuture<'static, String> {
        Box::pin(async { "exit status 0".to_owned() })
    }
}

#[tokio::test(start_paused = true)]
async fn the_record_of_an_ended_shepherd_is_read_before_it_counts_as_vanished() {
    let id = MicrovmId::parse("m-0123456789").unwrap();
    let event = |happened| Event::now(&id, monotonic(), happened);
    let status = JobExit::Code(7);
    let ended = EventKind::Ended(JobOutcome::Job { status, not_copied: Vec::new(), oom_kills: 0 });
    for (recorded, has_end) in [(ended, true), (EventKind::Phase(Phase::Running), false)] {
        let (_sender, shepherd_tasks) = mpsc::channel(SHEPHERD_TASKS_CAPACITY);
        let (event_sender, mut events) = mpsc::channel(16);
        let record = FakeRecord(event(recorded));
        let channels =
            FollowerChannels { key: MicrovmKey(1), shepherd_tasks, events: event_sender };
        let follower = Follower { shepherds: &record, id: id.clone(), channels, delivered: 0 };
        // The connection ended before any event.
        follower.follow(Box::new(FakeConnection(None))).await;
        let mut last = None;
        while let Some(event) = events.recv().await {
            last = Some(event);
        }
        assert_eq!(is_vanished(last), !has_end);
    }
}

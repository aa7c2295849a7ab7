//! What a follower takes for the end of a shepherd, and what it does not.

use std::fs;
use std::path::{Path, PathBuf};

use mayfly_protocol::message::JobStatus;

use super::super::processes::Processes;
use super::super::shepherds::{Left, NotPlanned};
use super::*;
use crate::forge::Promise;
use crate::host::state::StateDirectory;
use crate::shepherd::planner::Wanted;

/// A microVM's directory that is locked as by a living shepherd, which nobody can connect to.
fn held(root: &Path) -> fs::File {
    let directory = root.join("microvms/m-0123456789");
    fs::create_dir_all(&directory).unwrap();
    let lock = fs::File::open(&directory).unwrap();
    lock.lock().unwrap();
    lock
}

/// What follows the one of that directory, and the ways to it and from it.
fn follower(
    root: &Path,
) -> (impl Future<Output = ()> + use<>, mpsc::Sender<Errand>, mpsc::Receiver<Happening>) {
    let state = StateDirectory::open(root).unwrap();
    let shepherds = Arc::new(Processes::new("/proc/self/exe".into(), state));
    let (sender, errands) = mpsc::channel(ERRANDS);
    let (to, heard) = mpsc::channel(16);
    let ways = Ways { key: MachineKey(1), errands, to };
    let id = Id::parse("m-0123456789").unwrap();
    (adopt(shepherds, id, ways), sender, heard)
}

fn is_vanished(happening: Option<Happening>) -> bool {
    matches!(happening, Some(Happening::Event(MachineKey(1), usize::MAX, event))
        if matches!(&event.happened, Happened::Ended(Outcome::Failed(report))
            if report.cause == "vanished"))
}

#[test]
fn the_wait_between_two_tries_to_attach_doubles_up_to_its_bound() {
    let waits = [0, 1, 2, 5, 6, 40, u32::MAX].map(|failures| pause(failures).as_millis());
    assert_eq!(waits, [200, 400, 800, 6400, 10_000, 10_000, 10_000]);
}

#[tokio::test(start_paused = true)]
async fn one_that_can_not_be_attached_to_is_tried_again_for_as_long_as_it_lives() {
    let root = tempfile::tempdir().unwrap();
    let lock = held(root.path());
    let (follower, errands, mut heard) = follower(root.path());
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(follower);
    let hour = Duration::from_secs(3600);
    assert!(tokio::time::timeout(hour, heard.recv()).await.is_err(), "it lives");
    errands.send(Errand::Order(Order::End)).await.unwrap();
    assert!(tokio::time::timeout(hour, heard.recv()).await.is_err(), "it lives");
    drop(lock);
    assert!(is_vanished(heard.recv().await), "it is gone");
}

#[tokio::test(start_paused = true)]
async fn one_without_a_directory_is_gone() {
    let root = tempfile::tempdir().unwrap();
    let (follower, _errands, mut heard) = follower(root.path());
    follower.await;
    assert!(is_vanished(heard.recv().await));
}

#[tokio::test(start_paused = true)]
async fn a_follower_ends_with_the_loop_however_its_shepherd_is() {
    let root = tempfile::tempdir().unwrap();
    let _lock = held(root.path());
    let (follower, errands, mut heard) = follower(root.path());
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(follower);
    errands.send(Errand::Kill).await.unwrap();
    drop(errands);
    tasks.join_next().await.unwrap().unwrap();
    assert!(heard.recv().await.is_none(), "nothing is told of one that lives");
}

/// A host on which nothing lives, and whose records have one event.
struct Record(Event);

/// A connection, or a record, with what is left to be told.
struct Told(Option<Event>);

impl Shepherds for Record {
    fn plan(&self, _wanted: Wanted) -> Promise<'static, Result<Box<Plan>, NotPlanned>> {
        Box::pin(async { Err(NotPlanned { image: false, why: "nothing lives".to_owned() }) })
    }

    fn start(&self, _plan: Plan) -> Promise<'_, Result<Box<dyn Shepherd>, String>> {
        Box::pin(async { Err("nothing lives".to_owned()) })
    }

    fn attach<'a>(&'a self, _id: &'a Id) -> Promise<'a, Result<Box<dyn Shepherd>, AttachError>> {
        Box::pin(async { Ok(Box::new(Told(Some(self.0.clone()))) as Box<dyn Shepherd>) })
    }

    fn is_gone(&self, _id: &Id) -> bool {
        true
    }

    fn kill(&self, _id: &Id) -> io::Result<()> {
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<Left>> {
        Ok(Vec::new())
    }

    fn keep_output(&self, _id: &Id, _log: PathBuf) -> Promise<'static, u64> {
        Box::pin(async { 0 })
    }

    fn put_away(&self, _id: &Id, _pool: Option<String>) -> Promise<'static, io::Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

impl Shepherd for Told {
    fn event(&mut self) -> Promise<'_, Option<Event>> {
        Box::pin(async { self.0.take() })
    }

    fn order(&mut self, _order: &Order) -> Result<(), String> {
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

    fn ended(self: Box<Self>) -> Promise<'static, String> {
        Box::pin(async { "exit status 0".to_owned() })
    }
}

#[tokio::test(start_paused = true)]
async fn the_record_of_one_that_is_gone_is_read_before_it_counts_as_vanished() {
    let id = Id::parse("m-0123456789").unwrap();
    let event = |happened| Event::now(&id, monotonic(), happened);
    let status = JobStatus::Code(7);
    let ended = Happened::Ended(Outcome::Job { status, not_copied: Vec::new(), oom_kills: 0 });
    for (recorded, has_end) in [(ended, true), (Happened::Phase(Phase::Running), false)] {
        let (_sender, errands) = mpsc::channel(ERRANDS);
        let (to, mut heard) = mpsc::channel(16);
        let record = Record(event(recorded));
        let ways = Ways { key: MachineKey(1), errands, to };
        let follower = Follower { shepherds: &record, id: id.clone(), ways, told: 0 };
        // Its connection ended before it told anything.
        follower.follow(Box::new(Told(None))).await;
        let mut last = None;
        while let Some(happening) = heard.recv().await {
            last = Some(happening);
        }
        assert_eq!(is_vanished(last), !has_end);
    }
}

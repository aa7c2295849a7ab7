//! What a follower takes for the end of a shepherd, and what it does not.

use std::fs;
use std::path::Path;

use super::super::processes::Processes;
use super::*;
use crate::host::state::StateDirectory;

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

//! What a follower takes for the end of a shepherd, and what it does not.

use std::fs;

use super::*;

/// A microVM's directory that is locked as by a living shepherd, which nobody can connect to.
fn held(root: &Path) -> (PathBuf, fs::File) {
    let directory = root.join("m-0123456789");
    fs::create_dir(&directory).unwrap();
    let lock = fs::File::open(&directory).unwrap();
    lock.lock().unwrap();
    (directory, lock)
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
    let (directory, lock) = held(root.path());
    let (errands, received) = mpsc::channel(ERRANDS);
    let (to, mut heard) = mpsc::channel(16);
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(adopt(directory, MachineKey(1), received, to));
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
    let (_errands, received) = mpsc::channel(ERRANDS);
    let (to, mut heard) = mpsc::channel(16);
    adopt(root.path().join("m-0123456789"), MachineKey(1), received, to).await;
    assert!(is_vanished(heard.recv().await));
}

#[tokio::test(start_paused = true)]
async fn a_follower_ends_with_the_loop_however_its_shepherd_is() {
    let root = tempfile::tempdir().unwrap();
    let (directory, _lock) = held(root.path());
    let (errands, received) = mpsc::channel(ERRANDS);
    let (to, mut heard) = mpsc::channel(16);
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(adopt(directory, MachineKey(1), received, to));
    errands.send(Errand::Kill).await.unwrap();
    drop(errands);
    tasks.join_next().await.unwrap().unwrap();
    assert!(heard.recv().await.is_none(), "nothing is told of one that lives");
}

use proptest::prelude::*;

use super::super::super::identity::Identity;
use super::super::liveness::{flock, lock_new};
use super::*;
use crate::host::size::Size;

const POOLS: [&[u8]; 4] = [b"", b"a", b"b", b"c"];

proptest! {
    #[test]
    fn one_pools_failures_take_no_others_evidence(
        boxes in prop::collection::vec((0_usize..4, 0_u64..1000), 0..120),
        oldest in 0_u64..300,
    ) {
        let time = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let boxes: Vec<_> =
            boxes.into_iter().map(|(pool, seconds)| (POOLS[pool], time(seconds))).collect();
        let gone = too_many(&boxes, time(oldest));
        let stays = |index: &usize| !gone.contains(index);
        let fresh = |index: &usize| boxes[*index].1 >= time(oldest);
        let all = 0..boxes.len();
        let (stayed, young) = (all.clone().filter(stays), all.clone().filter(fresh));
        prop_assert_eq!(stayed.clone().count(), young.clone().count().min(KEPT));
        for pool in POOLS {
            let of_pool = |index: &usize| boxes[*index].0 == pool;
            let (had, has) = (
                young.clone().filter(of_pool).count(),
                stayed.clone().filter(of_pool).count(),
            );
            // Whoever has less than a share loses nothing.
            prop_assert!(has >= had.min(KEPT / POOLS.len()), "{} of {}", has, had);
            let newest = all.clone().filter(|one| of_pool(one) && fresh(one) && !stays(one));
            let newest = newest.map(|index| boxes[index].1).max();
            let kept = stayed.clone().filter(of_pool).map(|index| boxes[index].1).min();
            prop_assert!(newest.is_none() || kept.is_none() || newest <= kept);
        }
    }
}

#[test]
fn what_ran_is_told_whatever_the_hosts_clock_says() {
    let directory = tempfile::tempdir().unwrap();
    let id = Id::parse("m-0123456789").unwrap();
    let asked = monotonic() - 60_000_000_000;
    let summary = Summary {
        id: id.clone(),
        image: "base".to_owned(),
        processors: 1,
        memory: Size::mebibytes(256),
        pid: std::process::id(),
        since: "1999-01-01T00:00:00Z".to_owned(),
        process: Some(Identity::of("self").unwrap()),
        asked: Some(asked),
    };
    let write = |summary: &Summary| {
        let text = serde_json::to_vec(summary).unwrap();
        fs::write(directory.path().join("microvm.json"), text).unwrap();
    };
    // By the host's clock, which was set in the meantime, it began a century later.
    let running = Event {
        time: "2099-01-01T00:00:00.000Z".to_owned(),
        microvm: id.clone(),
        elapsed_ms: 50_000.0,
        happened: Happened::Phase(Phase::Running),
    };
    let (living, events) = (true, vec![running]);
    let found = Found { id, directory: directory.path().to_owned(), living, events };
    write(&summary);
    let ago = ago(&found, Phase::Running).unwrap();
    assert!(ago >= Duration::from_secs(10) && ago < Duration::from_secs(600), "{ago:?}");
    assert_eq!(super::ago(&found, Phase::Finished), None);
    let other = Identity { boot: "another".to_owned(), ticks: 1 };
    write(&Summary { process: Some(other), ..summary.clone() });
    assert_eq!(super::ago(&found, Phase::Running), None);
    write(&Summary { asked: None, ..summary });
    assert_eq!(super::ago(&found, Phase::Running), None);
}

#[test]
fn the_newest_black_boxes_are_kept_and_the_living_are_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    for number in 0..KEPT + 3 {
        let path = directory.path().join(format!("m-{number:03}"));
        fs::create_dir(&path).unwrap();
        let time = SystemTime::now() - Duration::from_secs(1000 - number as u64);
        File::open(&path).unwrap().set_modified(time).unwrap();
    }
    let living = lock(&directory.path().join("m-000")).unwrap().unwrap();
    prune(directory.path()).unwrap();
    assert_eq!(directories(directory.path()).unwrap().len(), KEPT + 1);
    assert!(directory.path().join("m-000").exists());
    assert!(!directory.path().join("m-001").exists());
    drop(living);
    let old = SystemTime::now() - KEPT_FOR - Duration::from_secs(1);
    File::open(directory.path().join("m-000")).unwrap().set_modified(old).unwrap();
    prune(directory.path()).unwrap();
    assert!(!directory.path().join("m-000").exists());
}

#[test]
fn a_directory_goes_while_others_look_at_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m-0123456789");
    fs::create_dir(&path).unwrap();
    let looking = File::open(&path).unwrap();
    assert!(flock(&looking, libc::LOCK_SH | libc::LOCK_NB).unwrap());
    let looks = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        drop(looking);
    });
    collect(&path).unwrap();
    assert!(!path.exists());
    looks.join().unwrap();
}

#[test]
fn what_can_not_be_looked_at_is_an_error_and_not_absent() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m-0123456789");
    fs::create_dir(&path).unwrap();
    // A record that can't be read, also by root.
    fs::create_dir(path.join("microvm.json")).unwrap();
    let lock = lock(&path).unwrap().unwrap();
    assert!(living(directory.path()).is_err());
    assert!(owned(directory.path()).is_ok(), "it lives by its lock");
    drop(lock);
    assert_eq!(living(directory.path()).unwrap(), []);
    assert!(owned(directory.path()).is_err(), "whether its process has ended is not known");
}

#[test]
fn a_new_directory_that_someone_keeps_looking_at_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let looking = File::open(directory.path()).unwrap();
    assert!(flock(&looking, libc::LOCK_SH | libc::LOCK_NB).unwrap());
    let error = lock_new(directory.path()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
    drop(looking);
    lock_new(directory.path()).unwrap();
}

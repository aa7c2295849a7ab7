use proptest::prelude::*;

use super::super::super::identity::ProcessIdentity;
use super::super::liveness::{flock, lock_created};
use super::*;
use mayfly_host::size::Size;

const POOLS: [&[u8]; 4] = [b"", b"a", b"b", b"c"];

proptest! {
    #[test]
    fn failures_of_one_pool_do_not_displace_the_evidence_of_others(
        boxes in prop::collection::vec((0_usize..4, 0_u64..1000), 0..120),
        oldest in 0_u64..300,
    ) {
        let time = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let boxes: Vec<_> =
            boxes.into_iter().map(|(pool, seconds)| (POOLS[pool], time(seconds))).collect();
        let gone = select_excess(&boxes, time(oldest));
        let stays = |index: &usize| !gone.contains(index);
        let fresh = |index: &usize| boxes[*index].1 >= time(oldest);
        let all = 0..boxes.len();
        let (stayed, young) = (all.clone().filter(stays), all.clone().filter(fresh));
        prop_assert_eq!(stayed.clone().count(), young.clone().count().min(MAX_BLACK_BOXES));
        for pool in POOLS {
            let of_pool = |index: &usize| boxes[*index].0 == pool;
            let (had, has) = (
                young.clone().filter(of_pool).count(),
                stayed.clone().filter(of_pool).count(),
            );
            // A pool with less than its share loses nothing.
            prop_assert!(has >= had.min(MAX_BLACK_BOXES / POOLS.len()), "{} of {}", has, had);
            let newest = all.clone().filter(|one| of_pool(one) && fresh(one) && !stays(one));
            let newest = newest.map(|index| boxes[index].1).max();
            let kept = stayed.clone().filter(of_pool).map(|index| boxes[index].1).min();
            prop_assert!(newest.is_none() || kept.is_none() || newest <= kept);
        }
    }
}

#[test]
fn the_time_since_a_phase_does_not_depend_on_the_hosts_clock() {
    let directory = tempfile::tempdir().unwrap();
    let id = MicrovmId::parse("m-0123456789").unwrap();
    let requested_at = monotonic() - 60_000_000_000;
    let summary = MicrovmSummary {
        id: id.clone(),
        image: "base".to_owned(),
        processors: 1,
        memory: Size::mebibytes(256),
        pid: std::process::id(),
        since: "1999-01-01T00:00:00Z".to_owned(),
        process: Some(ProcessIdentity::read("self").unwrap()),
        requested_at: Some(requested_at),
        deadlines: None,
    };
    let write = |summary: &MicrovmSummary| {
        let text = serde_json::to_vec(summary).unwrap();
        fs::write(directory.path().join("microvm.json"), text).unwrap();
    };
    // By the host's clock, which was set meanwhile, the phase began a century later.
    let running = Event {
        time: "2099-01-01T00:00:00.000Z".to_owned(),
        microvm: id.clone(),
        elapsed_ms: 50_000.0,
        kind: EventKind::Phase(Phase::Running),
    };
    let (is_alive, events) = (true, vec![running]);
    let found = RecordedMicrovm { id, directory: directory.path().to_owned(), is_alive, events };
    write(&summary);
    let since = time_since_phase(&found, Phase::Running).unwrap();
    assert!(since >= Duration::from_secs(10) && since < Duration::from_secs(600), "{since:?}");
    assert_eq!(time_since_phase(&found, Phase::Finished), None);
    let other = ProcessIdentity { boot: "another".to_owned(), ticks: 1 };
    write(&MicrovmSummary { process: Some(other), ..summary.clone() });
    assert_eq!(time_since_phase(&found, Phase::Running), None);
    write(&MicrovmSummary { requested_at: None, ..summary });
    assert_eq!(time_since_phase(&found, Phase::Running), None);
}

#[test]
fn the_newest_black_boxes_are_kept_and_running_microvms_are_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    for number in 0..MAX_BLACK_BOXES + 3 {
        let path = directory.path().join(format!("m-{number:03}"));
        fs::create_dir(&path).unwrap();
        let time = SystemTime::now() - Duration::from_secs(1000 - number as u64);
        File::open(&path).unwrap().set_modified(time).unwrap();
    }
    let running = lock(&directory.path().join("m-000")).unwrap().unwrap();
    prune(directory.path()).unwrap();
    assert_eq!(directories(directory.path()).unwrap().len(), MAX_BLACK_BOXES + 1);
    assert!(directory.path().join("m-000").exists());
    assert!(!directory.path().join("m-001").exists());
    drop(running);
    let old = SystemTime::now() - MAX_BLACK_BOX_AGE - Duration::from_secs(1);
    File::open(directory.path().join("m-000")).unwrap().set_modified(old).unwrap();
    prune(directory.path()).unwrap();
    assert!(!directory.path().join("m-000").exists());
}

#[test]
fn a_directory_is_collected_while_others_check_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m-0123456789");
    fs::create_dir(&path).unwrap();
    let checking = File::open(&path).unwrap();
    assert!(flock(&checking, libc::LOCK_SH | libc::LOCK_NB).unwrap());
    let check = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        drop(checking);
    });
    collect(&path).unwrap();
    assert!(!path.exists());
    check.join().unwrap();
}

#[test]
fn an_unreadable_record_is_an_error_and_not_absent() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m-0123456789");
    fs::create_dir(&path).unwrap();
    // A record that not even root can read.
    fs::create_dir(path.join("microvm.json")).unwrap();
    let lock = lock(&path).unwrap().unwrap();
    assert!(list_running(directory.path()).is_err());
    assert!(uncollected(directory.path()).is_ok(), "its lock shows that it is alive");
    drop(lock);
    assert_eq!(list_running(directory.path()).unwrap(), []);
    assert!(uncollected(directory.path()).is_err(), "it is unknown whether its process has ended");
}

#[test]
fn locking_a_new_directory_fails_if_another_process_keeps_it_locked() {
    let directory = tempfile::tempdir().unwrap();
    let checking = File::open(directory.path()).unwrap();
    assert!(flock(&checking, libc::LOCK_SH | libc::LOCK_NB).unwrap());
    let error = lock_created(directory.path()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
    drop(checking);
    lock_created(directory.path()).unwrap();
}

//! A daemon that is killed while writing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{TestLedger, command};
use crate::{JobQuery, JobRecord, JobResult, JobState, Ledger, LedgerReader, PhaseRecord, Time};

/// The variable that names the ledger for the child to write until it is killed.
const VARIABLE: &str = "MAYFLY_TEST_WRITES_LEDGER";
const CHILD: &str = "tests::killed::a_writer_leaves_a_whole_ledger";
const KILLS: u32 = 20;

/// Takes one job through all tables, with changes of every kind.
fn write(ledger: &mut Ledger, number: u64) {
    let microvm = format!("m-{}-{number}", std::process::id());
    let job = ledger.submit_local("small", &command()).unwrap();
    ledger.record_planned(&microvm, "small", "debian").unwrap();
    ledger.intend_registration(&microvm, "small", &microvm).unwrap();
    for (event, phase) in ["prepared", "booting", "ready"].into_iter().enumerate() {
        let phase = phase.to_owned();
        let phase = PhaseRecord { event: event as u64, phase, elapsed_ms: 1.0, at: Time::now() };
        ledger.record_phase(&microvm, &phase).unwrap();
    }
    ledger.claim(job, &microvm).unwrap();
    ledger.start(job).unwrap();
    ledger.finish(job, &JobResult::Exited(0)).unwrap();
    ledger.record_ended(&microvm, "finished", None, None).unwrap();
    ledger.record_deleted(&microvm).unwrap();
}

/// Checks that each job has the state of its last change in the audit log: an entry without its
/// change, or a change without its entry, would be half a transaction.
fn check(reader: &LedgerReader) -> usize {
    assert_eq!(reader.damage().unwrap(), None);
    reader.verify_audit(&super::no_segments(), None).unwrap();
    let mut last = BTreeMap::new();
    let mut open = BTreeSet::new();
    reader
        .audit_entries::<crate::LedgerError>(0, |line| {
            if line.action.starts_with("job.") {
                last.insert(line.subject.clone(), line.action.clone());
            }
            match line.action.as_str() {
                "microvm.planned" => _ = open.insert(line.subject.clone()),
                "microvm.ended" => _ = open.remove(&line.subject),
                _ => {}
            }
            Ok(())
        })
        .unwrap();
    let jobs = reader.jobs(&JobQuery::default(), u32::MAX).unwrap();
    assert_eq!(jobs.len(), last.len());
    for JobRecord { id, state, .. } in &jobs {
        let expected = match last[&id.to_string()].as_str() {
            "job.queued" => JobState::Queued,
            "job.claimed" => JobState::Claimed,
            "job.started" => JobState::Running,
            "job.finished" => JobState::Finished,
            other => panic!("{other}"),
        };
        assert_eq!(*state, expected, "{id}");
    }
    let found: Vec<String> =
        reader.open_microvms().unwrap().into_iter().map(|one| one.id).collect();
    assert_eq!(found.len(), open.len());
    assert!(found.iter().all(|id| open.contains(id)));
    jobs.len()
}

/// The child of the test below if the variable names a ledger; otherwise writes a little.
#[test]
fn a_writer_leaves_a_whole_ledger() {
    if let Some(path) = std::env::var_os(VARIABLE) {
        let mut ledger = Ledger::open(Path::new(&path)).unwrap();
        for number in 0.. {
            write(&mut ledger, number);
        }
    }
    let mut test = TestLedger::new();
    for number in 0..5 {
        write(&mut test.ledger, number);
    }
    assert_eq!(check(test.ledger.reader()), 5);
}

#[test]
fn a_ledger_is_whole_after_its_writer_was_killed_at_any_moment() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger");
    drop(Ledger::open(&path).unwrap());
    let mut jobs = 0;
    for kill in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", CHILD, "--nocapture"])
            .env(VARIABLE, &path)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let before = jobs;
        let deadline = Instant::now() + Duration::from_secs(60);
        while LedgerReader::open(&path).unwrap().jobs(&JobQuery::default(), u32::MAX).unwrap().len()
            <= before
        {
            assert!(child.try_wait().unwrap().is_none(), "the writer ended by itself");
            assert!(Instant::now() < deadline, "the writer does not write");
            std::thread::sleep(Duration::from_millis(1));
        }
        // Kills at a different step each time.
        std::thread::sleep(Duration::from_micros(u64::from(kill) * 613));
        child.kill().unwrap();
        child.wait().unwrap();
        jobs = check(&LedgerReader::open(&path).unwrap());
        assert!(jobs > before);
        // What the next daemon finds, and what a reader without a daemon found.
        assert_eq!(check(Ledger::open(&path).unwrap().reader()), jobs);
    }
}

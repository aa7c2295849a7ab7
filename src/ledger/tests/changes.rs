use std::time::Duration;

use super::{TestLedger, command};
use crate::{
    DestinationRecord, EgressSummary, ForgeJobUpdate, ForgeState, JobId, JobQuery, JobResult,
    JobSource, JobState, Ledger, LedgerError, LedgerReader, PhaseRecord, PruneCounts,
    RegistrationState, RowRetention, RunnerMatch, Time, VerdictTotals,
};
use mayfly_failure::{Code, Failure};

fn state(test: &TestLedger, job: JobId) -> JobState {
    test.ledger.reader().job(job).unwrap().unwrap().state
}

#[test]
fn the_egress_of_a_microvm_is_recorded_once_and_pruned_with_it() {
    let mut test = TestLedger::new();
    let row = |host: &str, verdict: &str, connections| DestinationRecord {
        host: host.to_owned(),
        port: 443,
        verdict: verdict.to_owned(),
        cause: None,
        connections,
        up: u64::MAX,
        down: 1,
    };
    let destinations = vec![row("a.example", "allowed", 2), row("b.example", "refused", 3)];
    let verdicts = VerdictTotals {
        allowed: 2,
        refused: 700,
        would_refuse: 0,
        up: 9,
        down: 10,
        omitted: 690,
        unrecorded: 5,
    };
    let egress = EgressSummary { verdicts, destinations };
    assert!(test.ledger.record_egress("m-1", &egress).is_err(), "unknown microVM");
    test.ledger.record_planned("m-1", "small", "base").unwrap();
    assert_eq!(test.ledger.reader().verdicts("m-1").unwrap(), None);
    test.ledger.record_egress("m-1", &egress).unwrap();
    test.ledger
        .record_egress("m-1", &EgressSummary { verdicts, destinations: Vec::new() })
        .unwrap();
    let reader = test.ledger.reader();
    assert_eq!(reader.verdicts("m-1").unwrap(), Some(verdicts));
    let EgressSummary { verdicts: read, destinations: noted } =
        reader.egress("m-1").unwrap().unwrap();
    assert_eq!(read, verdicts);
    assert_eq!(
        noted.iter().map(|one| one.host.as_str()).collect::<Vec<_>>(),
        ["a.example", "b.example"]
    );
    assert_eq!((noted[0].up, noted[0].down), (i64::MAX as u64, 1));
    test.ledger.record_ended("m-1", "ended", None, None).unwrap();
    let all = RowRetention { count: 0, ..RowRetention::default() };
    test.prune(&all).unwrap();
    assert_eq!(test.ledger.reader().egress("m-1").unwrap(), None);
    test.ledger.reader().verify_audit(&super::no_segments(), None).unwrap();
}

#[test]
fn a_local_job_passes_all_states_and_keeps_its_data() {
    let mut test = TestLedger::new();
    let id = test.submit();
    let job = test.ledger.reader().job(id).unwrap().unwrap();
    assert_eq!(job.command, Some(command()));
    assert_eq!((job.state, job.source), (JobState::Queued, JobSource::Local));
    test.ledger.claim(id, "m-1").unwrap();
    assert_eq!(test.ledger.reader().unfinished_jobs().unwrap()[0].microvm.as_deref(), Some("m-1"));
    test.ledger.start(id).unwrap();
    test.ledger.finish(id, &JobResult::Exited(3)).unwrap();
    let job = test.ledger.reader().job(id).unwrap().unwrap();
    assert_eq!(job.state, JobState::Finished);
    assert_eq!(job.result, Some(JobResult::Exited(3)));
    assert!(job.queued_at <= job.claimed_at.unwrap() && job.started_at <= job.ended_at);
    assert_eq!(test.ledger.reader().verify_audit(&super::no_segments(), None).unwrap().sequence, 4);
}

#[test]
fn the_environment_of_a_command_is_wiped_when_the_job_ends() {
    let mut test = TestLedger::new();
    let (done, cancelled) = (test.submit(), test.submit());
    test.ledger.claim(done, "m-1").unwrap();
    test.ledger.finish(done, &JobResult::Signaled(9)).unwrap();
    test.ledger.cancel(cancelled, "on request", Some(130)).unwrap();
    for id in [done, cancelled] {
        let kept = test.ledger.reader().job(id).unwrap().unwrap().command.unwrap();
        assert_eq!(kept.environment, []);
        assert_eq!(kept.arguments, command().arguments);
    }
}

#[test]
fn a_disallowed_transition_fails_without_effect() {
    let mut test = TestLedger::new();
    let id = test.submit();
    let before = test.ledger.reader().verify_audit(&super::no_segments(), None).unwrap();
    for refused in [
        test.ledger.start(id),
        test.ledger.finish(id, &JobResult::Exited(0)),
        test.ledger.requeue(id, "no reason"),
    ] {
        assert!(matches!(refused, Err(LedgerError::WrongState { .. })), "{refused:?}");
    }
    let unknown = test.ledger.claim(JobId(9999), "m-1").unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    assert_eq!(test.ledger.reader().verify_audit(&super::no_segments(), None).unwrap(), before);
    assert_eq!(state(&test, id), JobState::Queued);
}

#[test]
fn a_running_job_is_never_requeued() {
    let mut test = TestLedger::new();
    let (first, second) = (test.submit(), test.submit());
    test.ledger.claim(first, "m-1").unwrap();
    test.ledger.requeue(first, "the microVM died before it began").unwrap();
    let waiting = test.ledger.reader().queued_local_jobs().unwrap();
    assert_eq!(waiting.iter().map(|job| &job.id).collect::<Vec<_>>(), [&first, &second]);
    assert_eq!((waiting[0].requeued, &waiting[0].microvm), (1, &None));
    test.ledger.claim(first, "m-2").unwrap();
    test.ledger.start(first).unwrap();
    assert!(test.ledger.requeue(first, "again").is_err());
    test.ledger.fail(first, "kernel_panic", Some(125)).unwrap();
    assert!(test.ledger.cancel(first, "late", None).is_err());
    assert_eq!(state(&test, first), JobState::Failed);
}

#[test]
fn updates_from_github_only_move_a_job_forward() {
    let mut test = TestLedger::new();
    let labels = ["self-hosted".to_owned()];
    let mut note = ForgeJobUpdate {
        forge_id: 7,
        run_id: Some(70),
        attempt: 1,
        repository: "octo/cat",
        name: Some("build"),
        labels: &labels,
        pool: Some("small"),
        microvm: None,
        runner: RunnerMatch::Unknown,
        state: ForgeState::Completed,
        conclusion: Some("success"),
    };
    let id = test.ledger.record_forge_job(&note).unwrap().id;
    (note.state, note.conclusion, note.labels) = (ForgeState::Queued, None, &[]);
    (note.name, note.microvm, note.run_id) = (None, Some("m-9"), None);
    let again = test.ledger.record_forge_job(&note).unwrap();
    assert_eq!((again.id, again.state), (id, JobState::Finished));
    let job = test.ledger.reader().job(id).unwrap().unwrap();
    assert_eq!(job.state, JobState::Finished);
    assert_eq!(job.result, Some(JobResult::Concluded("success".to_owned())));
    assert_eq!((job.labels, job.name.as_deref()), (labels.to_vec(), Some("build")));
    assert_eq!((job.microvm.as_deref(), job.run_id), (Some("m-9"), Some(70)));
    note.attempt = 2;
    assert_ne!(test.ledger.record_forge_job(&note).unwrap().id, id);
}

#[test]
fn events_of_a_microvm_count_once_however_often_they_are_reported() {
    let mut test = TestLedger::new();
    test.ledger.record_planned("m-1", "small", "debian@sha256:00").unwrap();
    let event = |event, phase: &str| PhaseRecord {
        event,
        phase: phase.to_owned(),
        elapsed_ms: 12.5,
        at: Time(1),
    };
    let events = [event(0, "prepared"), event(1, "booting"), event(0, "prepared")];
    let is_new: Vec<bool> =
        events.iter().map(|event| test.ledger.record_phase("m-1", event).unwrap()).collect();
    assert_eq!(is_new, [true, true, false]);
    assert_eq!(test.ledger.reader().phases("m-1").unwrap(), events[..2]);
    assert_eq!(test.ledger.reader().open_microvms().unwrap()[0].phase, "booting");
    assert!(test.ledger.record_ended("m-1", "failed", Some("silent"), Some("/black/box")).unwrap());
    assert!(!test.ledger.record_ended("m-1", "finished", None, None).unwrap());
    assert_eq!(test.ledger.reader().open_microvms().unwrap(), []);
    let microvm = test.ledger.reader().microvm("m-1").unwrap().unwrap();
    assert_eq!(microvm.cause.as_deref(), Some("silent"));
    assert!(test.ledger.record_phase("m-2", &events[0]).is_err());
    assert_eq!(test.ledger.reader().verify_audit(&super::no_segments(), None).unwrap().sequence, 4);
}

#[test]
fn a_registration_is_open_from_the_intent_to_the_deletion() {
    let mut test = TestLedger::new();
    test.ledger.intend_registration("mayfly-a", "small", "m-1").unwrap();
    assert!(
        test.ledger.intend_registration("mayfly-a", "small", "m-2").is_err(),
        "names are unique"
    );
    test.ledger.intend_registration("mayfly-b", "small", "m-2").unwrap();
    test.ledger.record_registered("mayfly-a", 42).unwrap();
    test.ledger.record_taken("mayfly-a", "build").unwrap();
    assert!(test.ledger.record_registered("mayfly-a", 43).is_err());
    let open = test.ledger.reader().open_registrations().unwrap();
    let found: Vec<_> = open.iter().map(|one| (one.name.as_str(), one.state)).collect();
    let taken = RegistrationState::Taken;
    assert_eq!(found, [("mayfly-a", taken), ("mayfly-b", RegistrationState::Intended)]);
    assert_eq!((open[0].runner_id, open[0].job.as_deref()), (Some(42), Some("build")));
    assert!(test.ledger.record_deleted("mayfly-b").unwrap());
    assert!(!test.ledger.record_deleted("mayfly-b").unwrap());
    assert!(test.ledger.record_taken("mayfly-b", "build").is_err());
    assert_eq!(test.ledger.reader().open_registrations().unwrap().len(), 1);
}

#[test]
fn ended_rows_are_pruned_beyond_the_count_and_the_age_and_the_audit_log_stays() {
    let mut test = TestLedger::new();
    let waiting = test.submit();
    for number in 0..5 {
        let id = test.submit();
        test.ledger.claim(id, "m-0").unwrap();
        test.ledger.finish(id, &JobResult::Exited(number)).unwrap();
        let microvm = format!("m-{number}");
        test.ledger.record_planned(&microvm, "small", "debian").unwrap();
        let phase =
            PhaseRecord { event: 0, phase: "ready".to_owned(), elapsed_ms: 1.0, at: Time::now() };
        test.ledger.record_phase(&microvm, &phase).unwrap();
        test.ledger.record_ended(&microvm, "finished", None, None).unwrap();
        test.ledger.intend_registration(&microvm, "small", &microvm).unwrap();
        test.ledger.record_deleted(&microvm).unwrap();
        test.ledger.record_delivery(&microvm, None).unwrap();
    }
    let entries = test.ledger.reader().verify_audit(&super::no_segments(), None).unwrap().sequence;
    let keep = RowRetention { count: 2, delivery_count: 1, ..RowRetention::default() };
    let pruned = PruneCounts { jobs: 3, microvms: 3, registrations: 3, deliveries: 4 };
    assert_eq!(test.prune(&keep).unwrap(), pruned);
    assert_eq!(test.prune(&keep).unwrap(), PruneCounts::default());
    assert_eq!(test.ledger.reader().phases("m-0").unwrap(), []);
    assert_eq!(test.ledger.reader().phases("m-4").unwrap().len(), 1);
    assert_eq!(
        test.ledger.reader().verify_audit(&super::no_segments(), None).unwrap().sequence,
        entries + 1
    );
    std::thread::sleep(Duration::from_millis(5));
    let nothing = RowRetention { age: Duration::ZERO, deliveries: Duration::ZERO, ..keep };
    let pruned = PruneCounts { jobs: 2, microvms: 2, registrations: 2, deliveries: 1 };
    assert_eq!(test.prune(&nothing).unwrap(), pruned);
    let left = test.ledger.reader().jobs(&JobQuery::default(), 10).unwrap();
    assert_eq!(left.iter().map(|job| &job.id).collect::<Vec<_>>(), [&waiting]);
}

#[test]
fn pruning_is_bounded_and_keeps_requeued_jobs() {
    let mut test = TestLedger::new();
    for number in 0..500 {
        test.ledger.record_delivery(&number.to_string(), None).unwrap();
    }
    let keep = RowRetention { delivery_count: 0, count: 0, ..RowRetention::default() };
    let mut counts = Vec::new();
    loop {
        let old = test.ledger.reader().old_rows(&keep).unwrap();
        counts.push(test.ledger.prune(&old).unwrap().deliveries);
        if !old.is_full() {
            break;
        }
    }
    assert_eq!(counts, [200, 200, 100]);

    let id = test.submit();
    test.ledger.claim(id, "m-0").unwrap();
    test.ledger.finish(id, &JobResult::Exited(0)).unwrap();
    let old = test.ledger.reader().old_rows(&keep).unwrap();
    let connection = rusqlite::Connection::open(test.path()).unwrap();
    connection.execute("UPDATE jobs SET ended_at = NULL, state = 'queued'", []).unwrap();
    assert_eq!(test.ledger.prune(&old).unwrap().jobs, 0);
}

#[test]
fn jobs_are_listed_by_state_and_pool_newest_first() {
    let mut test = TestLedger::new();
    let (one, two) = (test.submit(), test.submit());
    test.ledger.submit_local("large", &command()).unwrap();
    test.ledger.claim(one, "m-1").unwrap();
    let list = |filter: JobQuery, limit| -> Vec<JobId> {
        let jobs = test.ledger.reader().jobs(&filter, limit).unwrap();
        jobs.into_iter().map(|job| job.id).collect()
    };
    let small = JobQuery { pool: Some("small".to_owned()), ..JobQuery::default() };
    assert_eq!(list(small.clone(), 10), [two, one]);
    assert_eq!(list(small, 1), [two]);
    assert_eq!(list(JobQuery { state: Some(JobState::Claimed), ..JobQuery::default() }, 10), [one]);
}

#[test]
fn a_second_daemon_is_rejected_and_a_reader_is_not() {
    let mut test = TestLedger::new();
    let error = Ledger::open(&test.path()).unwrap_err();
    assert!(matches!(error, LedgerError::InUse(_)), "{error}");
    assert_eq!(error.code(), Code::Unavailable);
    let reader = LedgerReader::open(&test.path()).unwrap();
    let id = test.submit();
    assert_eq!(reader.job(id).unwrap().unwrap().id, id);
    assert_eq!(reader.verify_audit(&super::no_segments(), None).unwrap().sequence, 1);
    let TestLedger { directory, ledger } = test;
    drop((reader, ledger));
    let path = directory.path().join("ledger");
    assert_eq!(
        LedgerReader::open(&path)
            .unwrap()
            .verify_audit(&super::no_segments(), None)
            .unwrap()
            .sequence,
        1
    );
    Ledger::open(&path).unwrap();
}

#[test]
fn a_ledger_of_a_later_version_is_rejected() {
    let TestLedger { directory, ledger } = TestLedger::new();
    drop(ledger);
    let path = directory.path().join("ledger");
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    assert_eq!(Ledger::open(&path).unwrap_err().code(), Code::BadData);
    assert!(matches!(LedgerReader::open(&path), Err(LedgerError::OtherSchema(_))));
}

#[test]
fn only_the_owner_may_read_the_ledger() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut test = TestLedger::new();
    test.submit();
    for file in std::fs::read_dir(test.directory.path()).unwrap() {
        let file = file.unwrap();
        let mode = file.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", file.path());
    }
}

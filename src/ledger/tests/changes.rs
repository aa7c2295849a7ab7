use std::time::Duration;

use super::{Bench, command};
use crate::failure::{Code, Failure};
use crate::ledger::{
    Destination, Egress, Filter, ForgeNote, ForgeState, JobId, JobResult, JobState, Ledger,
    LedgerError, Phase, Pruned, Reader, RegistrationState, Retention, RunnerKnown, Source, Time,
    Verdicts,
};

fn state(bench: &Bench, job: JobId) -> JobState {
    bench.ledger.reader().job(job).unwrap().unwrap().state
}

#[test]
fn what_a_microvm_reached_is_noted_once_and_goes_with_it() {
    let mut bench = Bench::new();
    let row = |host: &str, verdict: &str, connections| Destination {
        host: host.to_owned(),
        port: 443,
        verdict: verdict.to_owned(),
        cause: None,
        connections,
        up: u64::MAX,
        down: 1,
    };
    let destinations = vec![row("a.example", "allowed", 2), row("b.example", "refused", 3)];
    let verdicts = Verdicts {
        allowed: 2,
        refused: 700,
        would_refuse: 0,
        up: 9,
        down: 10,
        omitted: 690,
        unrecorded: 5,
    };
    let egress = Egress { verdicts, destinations };
    assert!(bench.ledger.note_egress("m-1", &egress).is_err(), "nobody knows that microVM");
    bench.ledger.planned("m-1", "small", "base").unwrap();
    assert_eq!(bench.ledger.reader().verdicts("m-1").unwrap(), None);
    bench.ledger.note_egress("m-1", &egress).unwrap();
    bench.ledger.note_egress("m-1", &Egress { verdicts, destinations: Vec::new() }).unwrap();
    let reader = bench.ledger.reader();
    assert_eq!(reader.verdicts("m-1").unwrap(), Some(verdicts));
    let Egress { verdicts: read, destinations: noted } = reader.egress("m-1").unwrap().unwrap();
    assert_eq!(read, verdicts);
    assert_eq!(
        noted.iter().map(|one| one.host.as_str()).collect::<Vec<_>>(),
        ["a.example", "b.example"]
    );
    assert_eq!((noted[0].up, noted[0].down), (i64::MAX as u64, 1));
    bench.ledger.ended("m-1", "ended", None, None).unwrap();
    let all = Retention { count: 0, ..Retention::default() };
    bench.prune(&all).unwrap();
    assert_eq!(bench.ledger.reader().egress("m-1").unwrap(), None);
    bench.ledger.reader().verify_audit(&super::nowhere(), None).unwrap();
}

#[test]
fn a_local_job_goes_its_way_and_keeps_what_it_was() {
    let mut bench = Bench::new();
    let id = bench.submit();
    let job = bench.ledger.reader().job(id).unwrap().unwrap();
    assert_eq!(job.command, Some(command()));
    assert_eq!((job.state, job.source), (JobState::Queued, Source::Local));
    bench.ledger.claim(id, "m-1").unwrap();
    assert_eq!(bench.ledger.reader().unfinished().unwrap()[0].microvm.as_deref(), Some("m-1"));
    bench.ledger.start(id).unwrap();
    bench.ledger.finish(id, &JobResult::Exited(3)).unwrap();
    let job = bench.ledger.reader().job(id).unwrap().unwrap();
    assert_eq!(job.state, JobState::Finished);
    assert_eq!(job.result, Some(JobResult::Exited(3)));
    assert!(job.queued_at <= job.claimed_at.unwrap() && job.started_at <= job.ended_at);
    assert_eq!(bench.ledger.reader().verify_audit(&super::nowhere(), None).unwrap().sequence, 4);
}

#[test]
fn the_environment_of_a_command_goes_with_the_end_of_the_job() {
    let mut bench = Bench::new();
    let (done, cancelled) = (bench.submit(), bench.submit());
    bench.ledger.claim(done, "m-1").unwrap();
    bench.ledger.finish(done, &JobResult::Signalled(9)).unwrap();
    bench.ledger.cancel(cancelled, "on request", Some(130)).unwrap();
    for id in [done, cancelled] {
        let kept = bench.ledger.reader().job(id).unwrap().unwrap().command.unwrap();
        assert_eq!(kept.environment, []);
        assert_eq!(kept.arguments, command().arguments);
    }
}

#[test]
fn a_step_that_does_not_follow_is_refused_and_leaves_no_trace() {
    let mut bench = Bench::new();
    let id = bench.submit();
    let before = bench.ledger.reader().verify_audit(&super::nowhere(), None).unwrap();
    for refused in [
        bench.ledger.start(id),
        bench.ledger.finish(id, &JobResult::Exited(0)),
        bench.ledger.requeue(id, "no reason"),
    ] {
        assert!(matches!(refused, Err(LedgerError::WrongState { .. })), "{refused:?}");
    }
    let unknown = bench.ledger.claim(JobId(9999), "m-1").unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    assert_eq!(bench.ledger.reader().verify_audit(&super::nowhere(), None).unwrap(), before);
    assert_eq!(state(&bench, id), JobState::Queued);
}

#[test]
fn a_job_that_runs_is_never_put_back() {
    let mut bench = Bench::new();
    let (first, second) = (bench.submit(), bench.submit());
    bench.ledger.claim(first, "m-1").unwrap();
    bench.ledger.requeue(first, "the microVM died before it began").unwrap();
    let waiting = bench.ledger.reader().queued_local().unwrap();
    assert_eq!(waiting.iter().map(|job| &job.id).collect::<Vec<_>>(), [&first, &second]);
    assert_eq!((waiting[0].requeued, &waiting[0].microvm), (1, &None));
    bench.ledger.claim(first, "m-2").unwrap();
    bench.ledger.start(first).unwrap();
    assert!(bench.ledger.requeue(first, "again").is_err());
    bench.ledger.fail(first, "kernel_panic", Some(125)).unwrap();
    assert!(bench.ledger.cancel(first, "late", None).is_err());
    assert_eq!(state(&bench, first), JobState::Failed);
}

#[test]
fn what_github_says_of_a_job_moves_it_forward_only() {
    let mut bench = Bench::new();
    let labels = ["self-hosted".to_owned()];
    let mut note = ForgeNote {
        forge_id: 7,
        run_id: Some(70),
        attempt: 1,
        repository: "octo/cat",
        name: Some("build"),
        labels: &labels,
        pool: Some("small"),
        microvm: None,
        runner: RunnerKnown::Not,
        state: ForgeState::Completed,
        conclusion: Some("success"),
    };
    let id = bench.ledger.note_forge_job(&note).unwrap().id;
    (note.state, note.conclusion, note.labels) = (ForgeState::Queued, None, &[]);
    (note.name, note.microvm, note.run_id) = (None, Some("m-9"), None);
    let again = bench.ledger.note_forge_job(&note).unwrap();
    assert_eq!((again.id, again.state), (id, JobState::Finished));
    let job = bench.ledger.reader().job(id).unwrap().unwrap();
    assert_eq!(job.state, JobState::Finished);
    assert_eq!(job.result, Some(JobResult::Concluded("success".to_owned())));
    assert_eq!((job.labels, job.name.as_deref()), (labels.to_vec(), Some("build")));
    assert_eq!((job.microvm.as_deref(), job.run_id), (Some("m-9"), Some(70)));
    note.attempt = 2;
    assert_ne!(bench.ledger.note_forge_job(&note).unwrap().id, id);
}

#[test]
fn events_of_a_microvm_count_once_however_often_they_are_told() {
    let mut bench = Bench::new();
    bench.ledger.planned("m-1", "small", "debian@sha256:00").unwrap();
    let event = |event, phase: &str| Phase {
        event,
        phase: phase.to_owned(),
        elapsed_ms: 12.5,
        at: Time(1),
    };
    let told = [event(0, "prepared"), event(1, "booting"), event(0, "prepared")];
    let news: Vec<bool> =
        told.iter().map(|event| bench.ledger.transition("m-1", event).unwrap()).collect();
    assert_eq!(news, [true, true, false]);
    assert_eq!(bench.ledger.reader().phases("m-1").unwrap(), told[..2]);
    assert_eq!(bench.ledger.reader().living().unwrap()[0].phase, "booting");
    assert!(bench.ledger.ended("m-1", "failed", Some("silent"), Some("/black/box")).unwrap());
    assert!(!bench.ledger.ended("m-1", "finished", None, None).unwrap());
    assert_eq!(bench.ledger.reader().living().unwrap(), []);
    let microvm = bench.ledger.reader().microvm("m-1").unwrap().unwrap();
    assert_eq!(microvm.cause.as_deref(), Some("silent"));
    assert!(bench.ledger.transition("m-2", &told[0]).is_err());
    assert_eq!(bench.ledger.reader().verify_audit(&super::nowhere(), None).unwrap().sequence, 4);
}

#[test]
fn a_registration_is_open_from_the_intent_to_the_deletion() {
    let mut bench = Bench::new();
    bench.ledger.intend("mayfly-a", "small", "m-1").unwrap();
    assert!(bench.ledger.intend("mayfly-a", "small", "m-2").is_err(), "names are unique");
    bench.ledger.intend("mayfly-b", "small", "m-2").unwrap();
    bench.ledger.registered("mayfly-a", 42).unwrap();
    bench.ledger.job_taken("mayfly-a", "build").unwrap();
    assert!(bench.ledger.registered("mayfly-a", 43).is_err());
    let open = bench.ledger.reader().open_registrations().unwrap();
    let found: Vec<_> = open.iter().map(|one| (one.name.as_str(), one.state)).collect();
    let taken = RegistrationState::Taken;
    assert_eq!(found, [("mayfly-a", taken), ("mayfly-b", RegistrationState::Intended)]);
    assert_eq!((open[0].runner_id, open[0].job.as_deref()), (Some(42), Some("build")));
    assert!(bench.ledger.deleted("mayfly-b").unwrap());
    assert!(!bench.ledger.deleted("mayfly-b").unwrap());
    assert!(bench.ledger.job_taken("mayfly-b", "build").is_err());
    assert_eq!(bench.ledger.reader().open_registrations().unwrap().len(), 1);
}

#[test]
fn what_is_over_is_forgotten_beyond_the_count_and_the_age_and_the_audit_stays() {
    let mut bench = Bench::new();
    let waiting = bench.submit();
    for number in 0..5 {
        let id = bench.submit();
        bench.ledger.claim(id, "m-0").unwrap();
        bench.ledger.finish(id, &JobResult::Exited(number)).unwrap();
        let microvm = format!("m-{number}");
        bench.ledger.planned(&microvm, "small", "debian").unwrap();
        let phase = Phase { event: 0, phase: "ready".to_owned(), elapsed_ms: 1.0, at: Time::now() };
        bench.ledger.transition(&microvm, &phase).unwrap();
        bench.ledger.ended(&microvm, "finished", None, None).unwrap();
        bench.ledger.intend(&microvm, "small", &microvm).unwrap();
        bench.ledger.deleted(&microvm).unwrap();
        bench.ledger.deliver(&microvm, None).unwrap();
    }
    let entries = bench.ledger.reader().verify_audit(&super::nowhere(), None).unwrap().sequence;
    let keep = Retention { count: 2, delivery_count: 1, ..Retention::default() };
    let pruned = Pruned { jobs: 3, microvms: 3, registrations: 3, deliveries: 4 };
    assert_eq!(bench.prune(&keep).unwrap(), pruned);
    assert_eq!(bench.prune(&keep).unwrap(), Pruned::default());
    assert_eq!(bench.ledger.reader().phases("m-0").unwrap(), []);
    assert_eq!(bench.ledger.reader().phases("m-4").unwrap().len(), 1);
    assert_eq!(
        bench.ledger.reader().verify_audit(&super::nowhere(), None).unwrap().sequence,
        entries + 1
    );
    std::thread::sleep(Duration::from_millis(5));
    let nothing = Retention { age: Duration::ZERO, deliveries: Duration::ZERO, ..keep };
    let pruned = Pruned { jobs: 2, microvms: 2, registrations: 2, deliveries: 1 };
    assert_eq!(bench.prune(&nothing).unwrap(), pruned);
    let left = bench.ledger.reader().jobs(&Filter::default(), 10).unwrap();
    assert_eq!(left.iter().map(|job| &job.id).collect::<Vec<_>>(), [&waiting]);
}

#[test]
fn what_is_forgotten_at_a_time_has_a_bound_and_what_waits_again_is_kept() {
    let mut bench = Bench::new();
    for number in 0..500 {
        bench.ledger.deliver(&number.to_string(), None).unwrap();
    }
    let keep = Retention { delivery_count: 0, count: 0, ..Retention::default() };
    let mut counts = Vec::new();
    loop {
        let old = bench.ledger.reader().old(&keep).unwrap();
        counts.push(bench.ledger.forget(&old).unwrap().deliveries);
        if !old.is_full() {
            break;
        }
    }
    assert_eq!(counts, [200, 200, 100]);

    let id = bench.submit();
    bench.ledger.claim(id, "m-0").unwrap();
    bench.ledger.finish(id, &JobResult::Exited(0)).unwrap();
    let old = bench.ledger.reader().old(&keep).unwrap();
    let connection = rusqlite::Connection::open(bench.path()).unwrap();
    connection.execute("UPDATE jobs SET ended_at = NULL, state = 'queued'", []).unwrap();
    assert_eq!(bench.ledger.forget(&old).unwrap().jobs, 0);
}

#[test]
fn jobs_are_listed_by_state_and_pool_the_newest_first() {
    let mut bench = Bench::new();
    let (one, two) = (bench.submit(), bench.submit());
    bench.ledger.submit_local("large", &command()).unwrap();
    bench.ledger.claim(one, "m-1").unwrap();
    let list = |filter: Filter, limit| -> Vec<JobId> {
        let jobs = bench.ledger.reader().jobs(&filter, limit).unwrap();
        jobs.into_iter().map(|job| job.id).collect()
    };
    let small = Filter { pool: Some("small".to_owned()), ..Filter::default() };
    assert_eq!(list(small.clone(), 10), [two, one]);
    assert_eq!(list(small, 1), [two]);
    assert_eq!(list(Filter { state: Some(JobState::Claimed), ..Filter::default() }, 10), [one]);
}

#[test]
fn a_second_daemon_is_refused_and_a_reader_is_not() {
    let mut bench = Bench::new();
    let error = Ledger::open(&bench.path()).unwrap_err();
    assert!(matches!(error, LedgerError::InUse(_)), "{error}");
    assert_eq!(error.code(), Code::Unavailable);
    let reader = Reader::open(&bench.path()).unwrap();
    let id = bench.submit();
    assert_eq!(reader.job(id).unwrap().unwrap().id, id);
    assert_eq!(reader.verify_audit(&super::nowhere(), None).unwrap().sequence, 1);
    let Bench { directory, ledger } = bench;
    drop((reader, ledger));
    let path = directory.path().join("ledger");
    assert_eq!(
        Reader::open(&path).unwrap().verify_audit(&super::nowhere(), None).unwrap().sequence,
        1
    );
    Ledger::open(&path).unwrap();
}

#[test]
fn a_ledger_of_a_later_version_is_refused() {
    let Bench { directory, ledger } = Bench::new();
    drop(ledger);
    let path = directory.path().join("ledger");
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    assert_eq!(Ledger::open(&path).unwrap_err().code(), Code::BadData);
    assert!(matches!(Reader::open(&path), Err(LedgerError::OtherSchema(_))));
}

#[test]
fn only_its_owner_may_read_the_ledger() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut bench = Bench::new();
    bench.submit();
    for file in std::fs::read_dir(bench.directory.path()).unwrap() {
        let file = file.unwrap();
        let mode = file.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", file.path());
    }
}

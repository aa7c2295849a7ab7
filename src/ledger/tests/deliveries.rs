//! Deliveries and their effects: both or neither, once, in any order.

use proptest::prelude::*;

use super::TestLedger;
use crate::{
    DeliveryEffect, ForgeJobUpdate, ForgeState, JobId, JobState, Ledger, RecordedJob, RunnerMatch,
};

fn update(forge_id: u64, state: ForgeState) -> ForgeJobUpdate<'static> {
    ForgeJobUpdate {
        forge_id,
        run_id: None,
        attempt: 1,
        repository: "octo/cat",
        name: Some("build"),
        labels: &[],
        pool: Some("small"),
        microvm: None,
        runner: RunnerMatch::Unknown,
        state,
        conclusion: None,
    }
}

fn has(
    microvm: &'static str,
    runner: RunnerMatch,
    update: ForgeJobUpdate<'static>,
) -> ForgeJobUpdate<'static> {
    ForgeJobUpdate { microvm: Some(microvm), runner, ..update }
}

fn deliver(test: &mut TestLedger, guid: &str, effect: &ForgeJobUpdate<'_>) -> Option<RecordedJob> {
    match test.ledger.record_delivery(guid, Some(effect)).unwrap() {
        DeliveryEffect::Recorded(noted) => noted,
        DeliveryEffect::AlreadyRecorded => None,
    }
}

fn state(test: &TestLedger, job: JobId) -> JobState {
    test.ledger.reader().job(job).unwrap().unwrap().state
}

#[test]
fn a_delivery_has_its_effect_once() {
    let mut test = TestLedger::new();
    let queued = update(7, ForgeState::Queued);
    let noted = deliver(&mut test, "guid-1", &queued).unwrap();
    assert_eq!((noted.state, noted.released), (JobState::Queued, vec![]));
    let before = test.ledger.reader().verify_audit(&super::no_segments(), None).unwrap();
    assert_eq!(
        test.ledger.record_delivery("guid-1", Some(&queued)).unwrap(),
        DeliveryEffect::AlreadyRecorded
    );
    assert_eq!(test.ledger.reader().verify_audit(&super::no_segments(), None).unwrap(), before);
    assert_eq!(
        test.ledger.record_delivery("guid-2", None).unwrap(),
        DeliveryEffect::Recorded(None)
    );
    assert_eq!(
        test.ledger.record_delivery("guid-2", None).unwrap(),
        DeliveryEffect::AlreadyRecorded
    );
}

#[test]
fn a_delivery_with_a_failed_effect_does_not_count_as_seen() {
    let mut test = TestLedger::new();
    let connection = rusqlite::Connection::open(test.path()).unwrap();
    connection
        .execute_batch(
            "CREATE TRIGGER full BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'full'); END",
        )
        .unwrap();
    let queued = update(7, ForgeState::Queued);
    assert!(test.ledger.record_delivery("guid-1", Some(&queued)).is_err());
    assert_eq!(test.ledger.reader().forge_job(7).unwrap(), None);
    connection.execute_batch("DROP TRIGGER full").unwrap();
    assert!(deliver(&mut test, "guid-1", &queued).is_some());
}

#[test]
fn waiting_jobs_survive_a_restart() {
    let TestLedger { directory, mut ledger } = TestLedger::new();
    let path = directory.path().join("ledger");
    ledger.record_delivery("guid-1", Some(&update(7, ForgeState::Queued))).unwrap();
    ledger.record_delivery("guid-2", Some(&update(8, ForgeState::Completed))).unwrap();
    // A late delivery: an ended job stays ended.
    let late = ledger.record_delivery("guid-3", Some(&update(8, ForgeState::Queued))).unwrap();
    let DeliveryEffect::Recorded(Some(late)) = late else { panic!("{late:?}") };
    assert_eq!(late.state, JobState::Finished);
    drop(ledger);
    let ledger = Ledger::open(&path).unwrap();
    let open = ledger.reader().open_github_jobs().unwrap();
    assert_eq!(open.iter().map(|job| job.forge_id).collect::<Vec<_>>(), [Some(7)]);
}

#[test]
fn github_corrects_a_guess_even_after_the_end() {
    for ended in [false, true] {
        let mut test = TestLedger::new();
        let mut queue = |number| queue_job(&mut test, number);
        let (first, second) = (queue(1), queue(2));
        let guess = has("m-1", RunnerMatch::Guessed, update(1, ForgeState::Running));
        test.ledger.record_forge_job(&guess).unwrap();
        if ended {
            let guess = ForgeJobUpdate { conclusion: Some("success"), ..guess };
            let guess = ForgeJobUpdate { state: ForgeState::Completed, ..guess };
            test.ledger.record_forge_job(&guess).unwrap();
        }
        let confirmed = has("m-1", RunnerMatch::Confirmed, update(2, ForgeState::Completed));
        let noted = deliver(&mut test, "guid", &confirmed).unwrap();
        assert_eq!(
            noted,
            RecordedJob { id: second, state: JobState::Finished, released: vec![first] }
        );
        let job = test.ledger.reader().job(first).unwrap().unwrap();
        assert_eq!((job.state, job.microvm, job.result), (JobState::Queued, None, None));
        assert_eq!((job.started_at, job.ended_at), (None, None));
        test.ledger.reader().verify_audit(&super::no_segments(), None).unwrap();
    }
}

fn queue_job(test: &mut TestLedger, number: u64) -> JobId {
    test.ledger.record_forge_job(&update(number, ForgeState::Queued)).unwrap().id
}

#[test]
fn a_guess_is_settled_once_github_confirms_or_corrects_it() {
    for microvm in [Some("m-1"), Some("m-2"), None] {
        let mut test = TestLedger::new();
        let first = queue_job(&mut test, 1);
        let guess = has("m-1", RunnerMatch::Guessed, update(1, ForgeState::Running));
        test.ledger.record_forge_job(&guess).unwrap();
        // Our runner, or another.
        let confirmed = ForgeJobUpdate { microvm, runner: RunnerMatch::Confirmed, ..guess };
        test.ledger.record_forge_job(&confirmed).unwrap();
        let job = test.ledger.reader().job(first).unwrap().unwrap();
        assert_eq!(job.microvm.as_deref(), microvm);
        let other = has("m-1", RunnerMatch::Confirmed, update(2, ForgeState::Running));
        assert_eq!(test.ledger.record_forge_job(&other).unwrap().released, []);
        assert_eq!(state(&test, first), JobState::Running);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Deliveries arrive in any order, any number of times, with restarts in between: each job ends
    /// in the furthest state of its deliveries.
    #[test]
    fn any_order_with_restarts_ends_where_github_is(
        deliveries in prop::collection::vec((0..4_u64, 0..3_u8, any::<bool>()), 0..24),
    ) {
        let TestLedger { directory, mut ledger } = TestLedger::new();
        let path = directory.path().join("ledger");
        let mut furthest = std::collections::BTreeMap::new();
        for (job, step, restart) in deliveries {
            if restart {
                drop(ledger);
                ledger = Ledger::open(&path).unwrap();
            }
            let state = [ForgeState::Queued, ForgeState::Running, ForgeState::Completed];
            let state = state[usize::from(step)];
            let known = furthest.entry(job).or_insert(step);
            *known = step.max(*known);
            ledger.record_delivery(&format!("{job}-{step}"), Some(&update(job, state))).unwrap();
        }
        let expected: Vec<u64> =
            furthest.into_iter().filter(|(_, step)| *step == 0).map(|(job, _)| job).collect();
        let open = ledger.reader().open_github_jobs().unwrap();
        let mut waiting: Vec<u64> = open
            .iter()
            .filter(|job| job.state == JobState::Queued)
            .filter_map(|job| job.forge_id)
            .collect();
        waiting.sort_unstable();
        prop_assert_eq!(waiting, expected);
        ledger.reader().verify_audit(&super::no_segments(), None).unwrap();
    }
}

//! Deliveries and their effects: both or neither, once, in whatever order.

use proptest::prelude::*;

use super::Bench;
use crate::ledger::{
    Delivered, ForgeNote, ForgeState, JobId, JobState, Ledger, Noted, RunnerKnown,
};

fn note(forge_id: u64, state: ForgeState) -> ForgeNote<'static> {
    ForgeNote {
        forge_id,
        run_id: None,
        attempt: 1,
        repository: "octo/cat",
        name: Some("build"),
        labels: &[],
        pool: Some("small"),
        microvm: None,
        runner: RunnerKnown::Not,
        state,
        conclusion: None,
    }
}

fn has(microvm: &'static str, runner: RunnerKnown, note: ForgeNote<'static>) -> ForgeNote<'static> {
    ForgeNote { microvm: Some(microvm), runner, ..note }
}

fn deliver(bench: &mut Bench, guid: &str, effect: &ForgeNote<'_>) -> Option<Noted> {
    match bench.ledger.deliver(guid, Some(effect)).unwrap() {
        Delivered::Now(noted) => noted,
        Delivered::Before => None,
    }
}

fn state(bench: &Bench, job: JobId) -> JobState {
    bench.ledger.reader().job(job).unwrap().unwrap().state
}

#[test]
fn a_delivery_has_its_effect_once() {
    let mut bench = Bench::new();
    let queued = note(7, ForgeState::Queued);
    let noted = deliver(&mut bench, "guid-1", &queued).unwrap();
    assert_eq!((noted.state, noted.released), (JobState::Queued, vec![]));
    let before = bench.ledger.reader().verify_audit(&super::nowhere(), None).unwrap();
    assert_eq!(bench.ledger.deliver("guid-1", Some(&queued)).unwrap(), Delivered::Before);
    assert_eq!(bench.ledger.reader().verify_audit(&super::nowhere(), None).unwrap(), before);
    assert_eq!(bench.ledger.deliver("guid-2", None).unwrap(), Delivered::Now(None));
    assert_eq!(bench.ledger.deliver("guid-2", None).unwrap(), Delivered::Before);
}

#[test]
fn a_delivery_whose_effect_is_refused_is_not_seen() {
    let mut bench = Bench::new();
    let connection = rusqlite::Connection::open(bench.path()).unwrap();
    connection
        .execute_batch(
            "CREATE TRIGGER full BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'full'); END",
        )
        .unwrap();
    let queued = note(7, ForgeState::Queued);
    assert!(bench.ledger.deliver("guid-1", Some(&queued)).is_err());
    assert_eq!(bench.ledger.reader().forge_job(7).unwrap(), None);
    connection.execute_batch("DROP TRIGGER full").unwrap();
    assert!(deliver(&mut bench, "guid-1", &queued).is_some());
}

#[test]
fn what_waits_is_there_for_the_next_daemon() {
    let Bench { directory, mut ledger } = Bench::new();
    let path = directory.path().join("ledger");
    ledger.deliver("guid-1", Some(&note(7, ForgeState::Queued))).unwrap();
    ledger.deliver("guid-2", Some(&note(8, ForgeState::Completed))).unwrap();
    // Late: what is over stays over.
    let late = ledger.deliver("guid-3", Some(&note(8, ForgeState::Queued))).unwrap();
    let Delivered::Now(Some(late)) = late else { panic!("{late:?}") };
    assert_eq!(late.state, JobState::Finished);
    drop(ledger);
    let ledger = Ledger::open(&path).unwrap();
    let open = ledger.reader().open_github().unwrap();
    assert_eq!(open.iter().map(|job| job.forge_id).collect::<Vec<_>>(), [Some(7)]);
}

#[test]
fn githubs_word_corrects_a_guess_even_after_the_end() {
    for ended in [false, true] {
        let mut bench = Bench::new();
        let mut queue = |number| bench_queue(&mut bench, number);
        let (first, second) = (queue(1), queue(2));
        let guess = has("m-1", RunnerKnown::Guessed, note(1, ForgeState::Running));
        bench.ledger.note_forge_job(&guess).unwrap();
        if ended {
            let guess = ForgeNote { conclusion: Some("success"), ..guess };
            let guess = ForgeNote { state: ForgeState::Completed, ..guess };
            bench.ledger.note_forge_job(&guess).unwrap();
        }
        let told = has("m-1", RunnerKnown::Told, note(2, ForgeState::Completed));
        let noted = deliver(&mut bench, "guid", &told).unwrap();
        assert_eq!(noted, Noted { id: second, state: JobState::Finished, released: vec![first] });
        let job = bench.ledger.reader().job(first).unwrap().unwrap();
        assert_eq!((job.state, job.microvm, job.result), (JobState::Queued, None, None));
        assert_eq!((job.started_at, job.ended_at), (None, None));
        bench.ledger.reader().verify_audit(&super::nowhere(), None).unwrap();
    }
}

fn bench_queue(bench: &mut Bench, number: u64) -> JobId {
    bench.ledger.note_forge_job(&note(number, ForgeState::Queued)).unwrap().id
}

#[test]
fn a_guess_that_github_confirms_or_corrects_is_no_guess_any_more() {
    for microvm in [Some("m-1"), Some("m-2"), None] {
        let mut bench = Bench::new();
        let first = bench_queue(&mut bench, 1);
        let guess = has("m-1", RunnerKnown::Guessed, note(1, ForgeState::Running));
        bench.ledger.note_forge_job(&guess).unwrap();
        // Ours, or one that is none of ours.
        let told = ForgeNote { microvm, runner: RunnerKnown::Told, ..guess };
        bench.ledger.note_forge_job(&told).unwrap();
        let job = bench.ledger.reader().job(first).unwrap().unwrap();
        assert_eq!(job.microvm.as_deref(), microvm);
        let other = has("m-1", RunnerKnown::Told, note(2, ForgeState::Running));
        assert_eq!(bench.ledger.note_forge_job(&other).unwrap().released, []);
        assert_eq!(state(&bench, first), JobState::Running);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Deliveries come in any order, any number of times, between restarts: each job is where the
    /// furthest of what was told of it is.
    #[test]
    fn any_order_with_restarts_ends_where_github_is(
        told in prop::collection::vec((0..4_u64, 0..3_u8, any::<bool>()), 0..24),
    ) {
        let Bench { directory, mut ledger } = Bench::new();
        let path = directory.path().join("ledger");
        let mut furthest = std::collections::BTreeMap::new();
        for (job, step, restart) in told {
            if restart {
                drop(ledger);
                ledger = Ledger::open(&path).unwrap();
            }
            let state = [ForgeState::Queued, ForgeState::Running, ForgeState::Completed];
            let state = state[usize::from(step)];
            let known = furthest.entry(job).or_insert(step);
            *known = step.max(*known);
            ledger.deliver(&format!("{job}-{step}"), Some(&note(job, state))).unwrap();
        }
        let expected: Vec<u64> =
            furthest.into_iter().filter(|(_, step)| *step == 0).map(|(job, _)| job).collect();
        let open = ledger.reader().open_github().unwrap();
        let mut waiting: Vec<u64> = open
            .iter()
            .filter(|job| job.state == JobState::Queued)
            .filter_map(|job| job.forge_id)
            .collect();
        waiting.sort_unstable();
        prop_assert_eq!(waiting, expected);
        ledger.reader().verify_audit(&super::nowhere(), None).unwrap();
    }
}

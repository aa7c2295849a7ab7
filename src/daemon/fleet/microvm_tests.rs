//! Properties of a microVM under events in any order.

use std::time::Duration;

use mayfly_protocol::message::JobExit;
use proptest::prelude::*;
use proptest::sample::Index;

use super::microvm::{AssignedRunner, Assignment, Microvm, MicrovmUpdate};
use crate::decide::{JobKey, MicrovmKey, PoolId, Resources, Stage};
use crate::time::Millis;
use mayfly_shepherd::event::{Event, EventKind, JobOutcome, Phase};
use mayfly_shepherd::plan::{InterruptRequest, MicrovmId};
use mayfly_shepherd::runner::{RunnerProgress, RunnerResult};

const PHASES: [Phase; 9] = [
    Phase::Planned,
    Phase::Prepared,
    Phase::Booting,
    Phase::Ready,
    Phase::Claimed,
    Phase::Running,
    Phase::Finished,
    Phase::Failed,
    Phase::Destroyed,
];

fn event(happened: EventKind) -> Event {
    Event::now(&MicrovmId::parse("m-0123456789").unwrap(), 0, happened)
}

fn completed(result: RunnerResult) -> RunnerProgress {
    RunnerProgress::Completed { job: "build".to_owned(), result }
}

fn mark() -> impl Strategy<Value = RunnerProgress> {
    prop_oneof![
        Just(RunnerProgress::Connected),
        Just(RunnerProgress::Listening),
        "[ab]".prop_map(|job| RunnerProgress::Running { job }),
        Just(completed(RunnerResult::Succeeded)),
        Just(completed(RunnerResult::Failed)),
    ]
}

/// Any events, in any order.
fn anything() -> impl Strategy<Value = Vec<EventKind>> {
    let happened = prop_oneof![
        3 => proptest::sample::select(PHASES.as_slice()).prop_map(EventKind::Phase),
        2 => mark().prop_map(EventKind::Runner),
        1 => Just(EventKind::Greeted { agent: "1".to_owned(), kernel: "6".to_owned() }),
    ];
    proptest::collection::vec(happened, 0..24)
}

/// An assignment, and the stage of a microVM that gets it when its guest is ready.
fn assignments() -> impl Strategy<Value = (Assignment, Stage)> {
    let runner =
        AssignedRunner { name: "mayfly-x-1".to_owned(), id: Some(1), job: None, result: None };
    prop_oneof![
        Just((Assignment::None, Stage::Booting)),
        Just((Assignment::Local(JobKey(7)), Stage::Assigned)),
        Just((Assignment::Runner(runner), Stage::Registering)),
    ]
}

/// The events of a shepherd in order, up to some event. While its runner runs, a guest may report
/// anything.
fn life() -> impl Strategy<Value = Vec<EventKind>> {
    (proptest::collection::vec(mark(), 0..8), any::<bool>(), any::<Index>()).prop_map(
        |(marks, fails, end)| {
            let mut life: Vec<_> = PHASES[..6].iter().copied().map(EventKind::Phase).collect();
            life.extend(marks.into_iter().map(EventKind::Runner));
            life.push(EventKind::Phase(if fails { Phase::Failed } else { Phase::Finished }));
            life.push(EventKind::Phase(Phase::Destroyed));
            life.truncate(end.index(life.len() + 1));
            life
        },
    )
}

fn is_earlier(happened: &EventKind) -> bool {
    matches!(happened, EventKind::Phase(phase) if *phase <= Phase::Running)
}

fn microvm(assignment: Assignment) -> Microvm {
    let resources = Resources { processors: 1, memory: 1 << 30 };
    let mut microvm = Microvm::new(MicrovmKey(1), PoolId(0), "small", resources, Millis(0));
    microvm.assignment = assignment;
    microvm
}

/// Applies events in order. The daemon assigns its work when the guest is ready.
fn live(life: &[EventKind], (assignment, stage): (Assignment, Stage)) -> Microvm {
    let mut microvm = microvm(Assignment::None);
    for (at, happened) in (1..).zip(life) {
        microvm.apply_event(&event(happened.clone()), Millis(at));
        if matches!(happened, EventKind::Phase(Phase::Ready)) && assignment != Assignment::None {
            microvm.assignment = assignment.clone();
            microvm.enter(stage, Millis(at));
        }
    }
    microvm
}

proptest! {
    #[test]
    fn an_ended_microvm_stays_ended(
        before in anything(),
        after in anything(),
        (assignment, _) in assignments(),
    ) {
        for over in [Phase::Finished, Phase::Failed, Phase::Destroyed] {
            let mut microvm = microvm(assignment.clone());
            for happened in &before {
                microvm.apply_event(&event(happened.clone()), Millis(1));
            }
            microvm.apply_event(&event(EventKind::Phase(over)), Millis(2));
            // A shepherd never returns to an earlier phase.
            for happened in after.iter().filter(|one| !is_earlier(one)) {
                let update = microvm.apply_event(&event(happened.clone()), Millis(3));
                prop_assert_eq!(update, MicrovmUpdate::NoAction);
                prop_assert_eq!(microvm.stage, Stage::Ending);
            }
        }
    }

    /// It may have started before it received the command to end. Only a runner's job keeps it
    /// busy.
    #[test]
    fn an_ending_microvm_becomes_busy_only_for_a_job_of_github(
        happened in anything(),
        (assignment, _) in assignments(),
    ) {
        let mut microvm = microvm(assignment);
        microvm.enter(Stage::Ending, Millis(1));
        for happened in happened {
            microvm.apply_event(&event(happened), Millis(2));
            let job = microvm.runner().is_some_and(|runner| runner.job.is_some());
            prop_assert!(microvm.stage == Stage::Ending || microvm.stage == Stage::Busy && job);
        }
    }

    #[test]
    fn a_microvm_that_had_work_is_never_warm_again(
        happened in anything(),
        (assignment, stage) in assignments(),
    ) {
        let mut microvm = microvm(assignment.clone());
        microvm.enter(stage, Millis(1));
        let (mut was_warm, mut was_busy) = (false, false);
        for happened in happened {
            microvm.apply_event(&event(happened), Millis(2));
            let warm = microvm.stage == Stage::Warm;
            prop_assert!(!warm || assignment == Assignment::None && !was_busy);
            prop_assert!(!was_warm || warm || microvm.stage == Stage::Ending);
            was_warm = warm;
            was_busy |= microvm.stage == Stage::Busy;
        }
    }

    /// A shepherd sends all events from the first on to each new connection.
    #[test]
    fn repeated_events_change_nothing(
        life in life(),
        assignment in assignments(),
        end in any::<Index>(),
    ) {
        let mut microvm = live(&life, assignment);
        let (stage, since, assignment) = (microvm.stage, microvm.since, microvm.assignment.clone());
        let results = life.iter().filter(|one| {
            matches!(one, EventKind::Runner(RunnerProgress::Completed { .. }))
        });
        // If a runner reports several results, the last one counts.
        prop_assume!(results.count() < 2);
        for happened in &life[..end.index(life.len() + 1)] {
            microvm.apply_event(&event(happened.clone()), Millis(1000));
        }
        prop_assert_eq!(microvm.stage, stage);
        prop_assert_eq!(microvm.since, since);
        prop_assert_eq!(microvm.assignment, assignment);
    }
}

#[test]
fn a_runners_life_goes_through_its_stages() {
    let assignment = Assignment::Runner(AssignedRunner {
        name: "r".to_owned(),
        id: None,
        job: None,
        result: None,
    });
    let mut microvm = microvm(Assignment::None);
    let apply = |microvm: &mut Microvm, happened| {
        let update = microvm.apply_event(&event(happened), Millis(1));
        (microvm.stage, update)
    };
    let phase = EventKind::Phase;
    let running = RunnerProgress::Running { job: "build".to_owned() };
    assert_eq!(
        apply(&mut microvm, phase(Phase::Booting)),
        (Stage::Booting, MicrovmUpdate::NoAction)
    );
    assert_eq!(apply(&mut microvm, phase(Phase::Ready)), (Stage::Warm, MicrovmUpdate::Warm));
    microvm.assignment = assignment;
    microvm.enter(Stage::Registering, Millis(1));
    for (happened, expected) in [
        (phase(Phase::Running), (Stage::Registering, MicrovmUpdate::Started)),
        (
            EventKind::Runner(RunnerProgress::Listening),
            (Stage::Registered, MicrovmUpdate::Listening),
        ),
        (EventKind::Runner(running), (Stage::Busy, MicrovmUpdate::TookJob("build".to_owned()))),
        (
            EventKind::Runner(completed(RunnerResult::Failed)),
            (Stage::Busy, MicrovmUpdate::NoAction),
        ),
        (phase(Phase::Finished), (Stage::Ending, MicrovmUpdate::NoAction)),
    ] {
        assert_eq!(apply(&mut microvm, happened), expected);
    }
    let outcome =
        JobOutcome::Job { status: JobExit::Code(0), not_copied: Vec::new(), oom_kills: 0 };
    let (_, update) = apply(&mut microvm, EventKind::Ended(outcome.clone()));
    assert_eq!(update, MicrovmUpdate::Ended(Box::new(outcome)));
    let Assignment::Runner(runner) = microvm.assignment else { panic!("it was a runner") };
    assert_eq!((runner.job.as_deref(), runner.result), (Some("build"), Some(RunnerResult::Failed)));
}

#[test]
fn the_first_reason_to_end_a_microvm_stays() {
    let mut microvm = microvm(Assignment::None);
    assert_eq!(microvm.add_end_reason("one"), None);
    assert_eq!(microvm.add_end_reason("two").as_deref(), Some("one"));
    assert_eq!(microvm.end_reason(), Some("one"));
}

#[test]
fn the_reason_of_an_interrupt_is_the_first_one() {
    // An earlier daemon requested it, or the shepherd's own deadline came.
    let mut microvm = microvm(Assignment::None);
    let request = InterruptRequest { grace: Duration::ZERO, reason: "one".to_owned() };
    microvm.apply_event(&event(EventKind::Interrupted(request)), Millis(1));
    assert_eq!(microvm.end_reason(), None, "the daemon has not ended it");
    assert_eq!(microvm.add_end_reason("two").as_deref(), Some("one"));
    assert_eq!(microvm.end_reason(), Some("one"));
}

#[test]
fn a_runner_that_takes_a_job_while_it_is_retired_has_no_reason_to_end() {
    for is_commanded in [false, true] {
        let runner = AssignedRunner { name: "r".to_owned(), id: Some(1), job: None, result: None };
        let mut microvm = microvm(Assignment::Runner(runner));
        microvm.add_end_reason("retired");
        microvm.end_requested_at = is_commanded.then_some(Millis(1));
        microvm.enter(Stage::Ending, Millis(1));
        let running = RunnerProgress::Running { job: "build".to_owned() };
        microvm.apply_event(&event(EventKind::Runner(running)), Millis(2));
        assert_eq!(microvm.end_reason().is_some(), is_commanded);
    }
}

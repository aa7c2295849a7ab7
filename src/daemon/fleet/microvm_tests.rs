//! What events may do to a microVM, whatever their order.

use mayfly_protocol::message::JobStatus;
use proptest::prelude::*;
use proptest::sample::Index;

use super::microvm::{Microvm, News, Runner, Work};
use crate::daemon::decide::{JobKey, Load, MachineKey, PoolId, Stage};
use crate::daemon::millis::Millis;
use crate::shepherd::event::{Event, Happened, Outcome, Phase};
use crate::shepherd::plan::Id;
use crate::shepherd::runner::{JobResult, RunnerMark};

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

fn event(happened: Happened) -> Event {
    Event::now(&Id::parse("m-0123456789").unwrap(), 0, happened)
}

fn completed(result: JobResult) -> RunnerMark {
    RunnerMark::Completed { job: "build".to_owned(), result }
}

fn mark() -> impl Strategy<Value = RunnerMark> {
    prop_oneof![
        Just(RunnerMark::Connected),
        Just(RunnerMark::Listening),
        "[ab]".prop_map(|job| RunnerMark::Running { job }),
        Just(completed(JobResult::Succeeded)),
        Just(completed(JobResult::Failed)),
    ]
}

/// Anything, in any order.
fn anything() -> impl Strategy<Value = Vec<Happened>> {
    let happened = prop_oneof![
        3 => proptest::sample::select(PHASES.as_slice()).prop_map(Happened::Phase),
        2 => mark().prop_map(Happened::Runner),
        1 => Just(Happened::Greeted { agent: "1".to_owned(), kernel: "6".to_owned() }),
    ];
    proptest::collection::vec(happened, 0..24)
}

/// What a microVM is for, and in which stage that is when its guest is ready.
fn works() -> impl Strategy<Value = (Work, Stage)> {
    let runner = Runner { name: "mayfly-x-1".to_owned(), id: Some(1), job: None, result: None };
    prop_oneof![
        Just((Work::None, Stage::Booting)),
        Just((Work::Local(JobKey(7)), Stage::Assigned)),
        Just((Work::Runner(runner), Stage::Registering)),
    ]
}

/// A life as a shepherd tells it, up to some event; a guest says anything while its runner runs.
fn life() -> impl Strategy<Value = Vec<Happened>> {
    (proptest::collection::vec(mark(), 0..8), any::<bool>(), any::<Index>()).prop_map(
        |(marks, fails, end)| {
            let mut life: Vec<_> = PHASES[..6].iter().copied().map(Happened::Phase).collect();
            life.extend(marks.into_iter().map(Happened::Runner));
            life.push(Happened::Phase(if fails { Phase::Failed } else { Phase::Finished }));
            life.push(Happened::Phase(Phase::Destroyed));
            life.truncate(end.index(life.len() + 1));
            life
        },
    )
}

fn is_earlier(happened: &Happened) -> bool {
    matches!(happened, Happened::Phase(phase) if *phase <= Phase::Running)
}

fn microvm(work: Work) -> Microvm {
    let load = Load { processors: 1, memory: 1 << 30 };
    let mut microvm = Microvm::new(MachineKey(1), PoolId(0), "small", load, Millis(0));
    microvm.work = work;
    microvm
}

/// Lets it hear a life; the daemon gives it its work when the guest is ready.
fn live(life: &[Happened], (work, stage): (Work, Stage)) -> Microvm {
    let mut microvm = microvm(Work::None);
    for (at, happened) in (1..).zip(life) {
        microvm.hear(&event(happened.clone()), Millis(at));
        if matches!(happened, Happened::Phase(Phase::Ready)) && work != Work::None {
            microvm.work = work.clone();
            microvm.enter(stage, Millis(at));
        }
    }
    microvm
}

proptest! {
    #[test]
    fn what_is_over_stays_over(before in anything(), after in anything(), (work, _) in works()) {
        for over in [Phase::Finished, Phase::Failed, Phase::Destroyed] {
            let mut microvm = microvm(work.clone());
            for happened in &before {
                microvm.hear(&event(happened.clone()), Millis(1));
            }
            microvm.hear(&event(Happened::Phase(over)), Millis(2));
            // A shepherd never goes back to an earlier phase.
            for happened in after.iter().filter(|one| !is_earlier(one)) {
                let news = microvm.hear(&event(happened.clone()), Millis(3));
                prop_assert_eq!(news, News::Nothing);
                prop_assert_eq!(microvm.stage, Stage::Ending);
            }
        }
    }

    /// It may have begun before it heard that it is to end; only a runner's job stays that.
    #[test]
    fn one_that_is_told_to_end_comes_back_for_a_job_of_githubs_only(
        happened in anything(),
        (work, _) in works(),
    ) {
        let mut microvm = microvm(work);
        microvm.enter(Stage::Ending, Millis(1));
        for happened in happened {
            microvm.hear(&event(happened), Millis(2));
            let job = matches!(&microvm.work, Work::Runner(runner) if runner.job.is_some());
            prop_assert!(microvm.stage == Stage::Ending || microvm.stage == Stage::Busy && job);
        }
    }

    #[test]
    fn one_that_had_work_is_never_warm_again(happened in anything(), (work, stage) in works()) {
        let mut microvm = microvm(work.clone());
        microvm.enter(stage, Millis(1));
        let (mut was_warm, mut was_busy) = (false, false);
        for happened in happened {
            microvm.hear(&event(happened), Millis(2));
            let warm = microvm.stage == Stage::Warm;
            prop_assert!(!warm || work == Work::None && !was_busy);
            prop_assert!(!was_warm || warm || microvm.stage == Stage::Ending);
            was_warm = warm;
            was_busy |= microvm.stage == Stage::Busy;
        }
    }

    /// A shepherd tells everything from the beginning to whoever attaches.
    #[test]
    fn what_is_told_again_from_the_beginning_changes_nothing(
        life in life(),
        work in works(),
        end in any::<Index>(),
    ) {
        let mut microvm = live(&life, work);
        let (stage, since, work) = (microvm.stage, microvm.since, microvm.work.clone());
        let results = life.iter().filter(|one| {
            matches!(one, Happened::Runner(RunnerMark::Completed { .. }))
        });
        // A runner that contradicts itself is believed in its last word.
        prop_assume!(results.count() < 2);
        for happened in &life[..end.index(life.len() + 1)] {
            microvm.hear(&event(happened.clone()), Millis(1000));
        }
        prop_assert_eq!(microvm.stage, stage);
        prop_assert_eq!(microvm.since, since);
        prop_assert_eq!(microvm.work, work);
    }
}

#[test]
fn a_runners_life_goes_through_its_stages() {
    let work = Work::Runner(Runner { name: "r".to_owned(), id: None, job: None, result: None });
    let mut microvm = microvm(Work::None);
    let hear = |microvm: &mut Microvm, happened| {
        let news = microvm.hear(&event(happened), Millis(1));
        (microvm.stage, news)
    };
    let phase = Happened::Phase;
    let running = RunnerMark::Running { job: "build".to_owned() };
    assert_eq!(hear(&mut microvm, phase(Phase::Booting)), (Stage::Booting, News::Nothing));
    assert_eq!(hear(&mut microvm, phase(Phase::Ready)), (Stage::Warm, News::Warm));
    microvm.work = work;
    microvm.enter(Stage::Registering, Millis(1));
    for (happened, expected) in [
        (phase(Phase::Running), (Stage::Registering, News::Started)),
        (Happened::Runner(RunnerMark::Listening), (Stage::Registered, News::Listening)),
        (Happened::Runner(running), (Stage::Busy, News::TookJob("build".to_owned()))),
        (Happened::Runner(completed(JobResult::Failed)), (Stage::Busy, News::Nothing)),
        (phase(Phase::Finished), (Stage::Ending, News::Nothing)),
    ] {
        assert_eq!(hear(&mut microvm, happened), expected);
    }
    let outcome = Outcome::Job { status: JobStatus::Code(0), not_copied: Vec::new(), oom_kills: 0 };
    let (_, news) = hear(&mut microvm, Happened::Ended(outcome.clone()));
    assert_eq!(news, News::Ended(Box::new(outcome)));
    let Work::Runner(runner) = microvm.work else { panic!("it was a runner") };
    assert_eq!((runner.job.as_deref(), runner.result), (Some("build"), Some(JobResult::Failed)));
}

//! Processes that are frozen at any moment: no healthy job is ended by it, no dead one kept.

use super::*;
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn time_that_was_run_counts_and_absence_does_not() {
    let mut clock = ActiveClock::begin(100 * SECOND);
    let deadline = clock.after(60 * SECOND);
    for second in 1..=40 {
        assert_eq!(clock.look((100 + second) * SECOND), None);
    }
    assert_eq!(clock.left(&deadline), 20 * SECOND);
    let three_days = 3 * 24 * 3600;
    assert_eq!(clock.look((140 + three_days) * SECOND), Some((three_days - 1) * SECOND));
    assert_eq!(clock.left(&deadline), 19 * SECOND);
    // A clock that went back, as none should, changes nothing.
    assert_eq!(clock.look(SECOND), None);
    assert_eq!(clock.left(&deadline), 19 * SECOND);
}

#[test]
fn after_an_absence_what_waits_is_read_before_anything_is_overdue() {
    let mut clock = ActiveClock::begin(Duration::ZERO);
    let deadline = clock.after(2 * SECOND);
    clock.look(Duration::from_millis(1900));
    clock.look(3600 * SECOND);
    assert!(!clock.has_passed(&deadline), "although only 100 ms were left");
    assert_eq!(clock.left(&deadline), GRACE);
    clock.look(3600 * SECOND + GRACE);
    assert!(clock.has_passed(&deadline));
}

/// A host that is stopped again and again, and runs for less than the grace in between.
#[test]
fn absences_without_end_put_a_deadline_off_by_one_grace() {
    let mut clock = ActiveClock::begin(Duration::ZERO);
    let deadline = clock.after(2 * SECOND);
    let (mut now, mut looks) = (Duration::ZERO, 0);
    while !clock.has_passed(&deadline) {
        // Every fifth look is after an absence.
        now += if looks % 5 == 4 { 6 * SECOND } else { SECOND };
        clock.look(now);
        looks += 1;
        assert!(looks < 20, "never");
    }
    assert!(clock.active() <= 2 * SECOND + LOOK + GRACE, "{clock:?}");
}

#[test]
fn a_limit_without_end_is_none() {
    let clock = ActiveClock::begin(Duration::MAX);
    assert!(!clock.has_passed(&clock.after(Duration::MAX)));
}

#[tokio::test]
async fn the_first_of_several_passes_first() {
    let mut clock = ActiveClock::begin(boot_time());
    let deadlines = [clock.after(Duration::MAX), clock.after(Duration::from_millis(20))];
    assert_eq!(clock.passed(&deadlines).await, 1);
    let waited = tokio::time::timeout(Duration::from_millis(20), clock.passed(&[])).await;
    assert!(waited.is_err());
}

/// Who is frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    /// The process that measures; the guest goes on, and what it says waits.
    Observer,
    /// Both, as by a suspended host.
    Both,
}

/// How a job's life goes in one run, in seconds.
#[derive(Debug, Clone)]
struct Life {
    /// The job takes this long of the guest's running.
    job: u64,
    /// The guest dies silently after this much of its running, if it does.
    dies: Option<u64>,
    /// When, for how long, who is frozen, in the order of time.
    freezes: Vec<(u64, u64, Who)>,
    /// How late the observer looks, at the most.
    load: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    Done,
    Silent,
    Overdue,
}

const SILENCE: u64 = 60;
const JOB: u64 = 600;

fn secs(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// One life as the shepherd leads it: a look, then deadlines, then messages. Time goes on by a
/// second, or by a whole freeze; the guest beats its heart each second that it runs. Gives how it
/// ended, and how often the observer looked until then.
fn lead(life: &Life) -> (End, u64) {
    let mut clock = ActiveClock::begin(Duration::ZERO);
    let (mut silence, job) = (clock.after(secs(SILENCE)), clock.after(secs(JOB)));
    let (mut now, mut guest, mut looks, mut heard) = (0_u64, 0_u64, 0_u64, 0_u64);
    let mut freezes = life.freezes.iter().copied().peekable();
    let lives = life.dies.unwrap_or(u64::MAX);
    loop {
        let mut passed = 1;
        let mut guest_runs = 1;
        if let Some((_, length, who)) = freezes.next_if(|(at, ..)| *at <= now) {
            passed = length;
            guest_runs = if who == Who::Both { 0 } else { length };
        }
        now += passed;
        guest = guest.saturating_add(guest_runs).min(lives);
        if !now.is_multiple_of(life.load + 1) {
            continue;
        }
        looks += 1;
        clock.look(secs(now));
        // As in the shepherd, an overdue deadline is seen before messages that wait, so that it is
        // the clock alone that protects from a freeze.
        if clock.has_passed(&job) {
            return (End::Overdue, looks);
        }
        if clock.has_passed(&silence) {
            return (End::Silent, looks);
        }
        if guest > heard {
            heard = guest;
            silence = clock.after(secs(SILENCE));
        }
        if guest >= life.job {
            return (End::Done, looks);
        }
    }
}

fn freeze() -> impl Strategy<Value = (u64, u64, Who)> {
    // From a second to three days, short and long ones alike.
    let length = prop_oneof![1_u64..10, 10_u64..120, 120_u64..7200, 7200_u64..259_200];
    (0_u64..700, length, prop_oneof![Just(Who::Observer), Just(Who::Both)])
}

fn life() -> impl Strategy<Value = Life> {
    let dies = prop_oneof![2 => Just(None), 1 => (0_u64..400).prop_map(Some)];
    (1_u64..500, dies, prop::collection::vec(freeze(), 0..12), 0_u64..4).prop_map(
        |(job, dies, mut freezes, load)| {
            freezes.sort_by_key(|(at, ..)| *at);
            Life { job, dies, freezes, load }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    /// A healthy job is never ended by a freeze, wherever it falls; a dead one is ended within its
    /// limit of running time, and the grace of each freeze.
    #[test]
    fn no_freeze_ends_a_healthy_job_or_keeps_a_dead_one(life in life()) {
        let (end, looks) = lead(&life);
        if let Some(dies) = life.dies.filter(|dies| *dies < life.job) {
            prop_assert!(end == End::Silent || end == End::Overdue, "{end:?} after {looks}");
            let absences = life.freezes.len() as u64;
            let bound = dies + SILENCE + (absences + 1) * (GRACE.as_secs() + 2 + life.load);
            prop_assert!(looks <= bound, "kept for {looks} looks, more than {bound}");
        } else {
            prop_assert_eq!(end, End::Done);
        }
    }
}

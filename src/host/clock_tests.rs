//! Processes that are frozen at any moment: no healthy job is ended by it, and no dead one is kept.

use super::*;
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn running_time_counts_and_pauses_do_not() {
    let mut clock = ActiveClock::start(100 * SECOND);
    let deadline = clock.after(60 * SECOND);
    for second in 1..=40 {
        assert_eq!(clock.update((100 + second) * SECOND), None);
    }
    assert_eq!(clock.remaining(&deadline), 20 * SECOND);
    let three_days = 3 * 24 * 3600;
    assert_eq!(clock.update((140 + three_days) * SECOND), Some((three_days - 1) * SECOND));
    assert_eq!(clock.remaining(&deadline), 19 * SECOND);
    // A clock that goes back, which should not happen, changes nothing.
    assert_eq!(clock.update(SECOND), None);
    assert_eq!(clock.remaining(&deadline), 19 * SECOND);
}

#[test]
fn after_a_pause_waiting_messages_are_read_before_a_deadline_passes() {
    let mut clock = ActiveClock::start(Duration::ZERO);
    let deadline = clock.after(2 * SECOND);
    clock.update(Duration::from_millis(1900));
    clock.update(3600 * SECOND);
    assert!(!clock.has_passed(&deadline), "although only 100 ms were left");
    assert_eq!(clock.remaining(&deadline), PAUSE_GRACE);
    clock.update(3600 * SECOND + PAUSE_GRACE);
    assert!(clock.has_passed(&deadline));
}

/// A host that is stopped repeatedly, and runs for less than the grace in between.
#[test]
fn endless_pauses_delay_a_deadline_by_one_grace() {
    let mut clock = ActiveClock::start(Duration::ZERO);
    let deadline = clock.after(2 * SECOND);
    let (mut now, mut updates) = (Duration::ZERO, 0);
    while !clock.has_passed(&deadline) {
        // Every fifth update is after a pause.
        now += if updates % 5 == 4 { 6 * SECOND } else { SECOND };
        clock.update(now);
        updates += 1;
        assert!(updates < 20, "never");
    }
    assert!(clock.active() <= 2 * SECOND + POLL_INTERVAL + PAUSE_GRACE, "{clock:?}");
}

#[test]
fn an_infinite_limit_never_passes() {
    let clock = ActiveClock::start(Duration::MAX);
    assert!(!clock.has_passed(&clock.after(Duration::MAX)));
}

#[tokio::test]
async fn the_first_of_several_passes_first() {
    let mut clock = ActiveClock::start(boot_time());
    let deadlines = [clock.after(Duration::MAX), clock.after(Duration::from_millis(20))];
    assert_eq!(clock.wait_any(&deadlines).await, 1);
    let waited = tokio::time::timeout(Duration::from_millis(20), clock.wait_any(&[])).await;
    assert!(waited.is_err());
}

/// The frozen parties.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Frozen {
    /// Only the measuring process; the guest runs, and its messages wait.
    Observer,
    /// Both, as with a suspended host.
    Both,
}

/// A scenario of a job, in seconds.
#[derive(Debug, Clone)]
struct Scenario {
    /// The running time of the guest that the job takes.
    job: u64,
    /// The running time after which the guest dies silently, if it does.
    dies: Option<u64>,
    /// Freezes in order: the start, the length, and the frozen parties.
    freezes: Vec<(u64, u64, Frozen)>,
    /// The maximum delay of the observer's updates.
    load: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    Done,
    Silent,
    Overdue,
}

const SILENCE_LIMIT: u64 = 60;
const JOB_LIMIT: u64 = 600;

fn secs(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Runs a scenario like the shepherd: an update, then deadlines, then messages. Time advances by a
/// second or by a whole freeze; the guest sends a heartbeat each second that it runs. Returns the
/// end, and the number of the observer's updates until then.
fn run(scenario: &Scenario) -> (End, u64) {
    let mut clock = ActiveClock::start(Duration::ZERO);
    let (mut silence, job) = (clock.after(secs(SILENCE_LIMIT)), clock.after(secs(JOB_LIMIT)));
    let (mut now, mut guest, mut updates, mut received) = (0_u64, 0_u64, 0_u64, 0_u64);
    let mut freezes = scenario.freezes.iter().copied().peekable();
    let guest_limit = scenario.dies.unwrap_or(u64::MAX);
    loop {
        let mut passed = 1;
        let mut guest_runs = 1;
        if let Some((_, length, frozen)) = freezes.next_if(|(at, ..)| *at <= now) {
            passed = length;
            guest_runs = if frozen == Frozen::Both { 0 } else { length };
        }
        now += passed;
        guest = guest.saturating_add(guest_runs).min(guest_limit);
        if !now.is_multiple_of(scenario.load + 1) {
            continue;
        }
        updates += 1;
        clock.update(secs(now));
        // As in the shepherd, a passed deadline is seen before waiting messages, so that only the
        // clock protects from a freeze.
        if clock.has_passed(&job) {
            return (End::Overdue, updates);
        }
        if clock.has_passed(&silence) {
            return (End::Silent, updates);
        }
        if guest > received {
            received = guest;
            silence = clock.after(secs(SILENCE_LIMIT));
        }
        if guest >= scenario.job {
            return (End::Done, updates);
        }
    }
}

fn freeze() -> impl Strategy<Value = (u64, u64, Frozen)> {
    // From a second to three days, short and long ones equally likely.
    let length = prop_oneof![1_u64..10, 10_u64..120, 120_u64..7200, 7200_u64..259_200];
    (0_u64..700, length, prop_oneof![Just(Frozen::Observer), Just(Frozen::Both)])
}

fn scenario() -> impl Strategy<Value = Scenario> {
    let dies = prop_oneof![2 => Just(None), 1 => (0_u64..400).prop_map(Some)];
    (1_u64..500, dies, prop::collection::vec(freeze(), 0..12), 0_u64..4).prop_map(
        |(job, dies, mut freezes, load)| {
            freezes.sort_by_key(|(at, ..)| *at);
            Scenario { job, dies, freezes, load }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    /// A healthy job is never ended by a freeze, wherever it falls; a dead one is ended within its
    /// limit of running time plus the grace of each freeze.
    #[test]
    fn no_freeze_ends_a_healthy_job_or_keeps_a_dead_one(scenario in scenario()) {
        let (end, updates) = run(&scenario);
        if let Some(dies) = scenario.dies.filter(|dies| *dies < scenario.job) {
            prop_assert!(end == End::Silent || end == End::Overdue, "{end:?} after {updates}");
            let pauses = scenario.freezes.len() as u64;
            let grace = PAUSE_GRACE.as_secs() + 2 + scenario.load;
            let bound = dies + SILENCE_LIMIT + (pauses + 1) * grace;
            prop_assert!(updates <= bound, "kept for {updates} updates, more than {bound}");
        } else {
            prop_assert_eq!(end, End::Done);
        }
    }
}

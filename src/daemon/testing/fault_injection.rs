//! One fault at each call of both drivers: each job ends exactly once or is reported with a cause,
//! and nothing is left behind.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::faults::{DriverCall, Fault};
use super::harness::{FORGE, Harness};

/// Longer than all deadlines of a job that takes seconds.
const TIME_LIMIT: Duration = Duration::from_secs(12 * 3600);

/// Runs jobs of both sources with one faulty call. Returns the number of injected faults.
async fn injected(call: DriverCall, number: u64, fault: Fault, jobs: u64) -> u64 {
    let what = format!("{fault:?} at call {number} of {call:?}");
    let mut harness = Harness::new(Duration::from_secs(5));
    harness.faults.add(call, number, 1, fault);
    if harness.start_daemon().is_err() {
        harness.restart().await;
    }
    for _ in 0..jobs {
        harness.submit();
        harness.forge.queue(FORGE);
    }
    if call == DriverCall::Kill {
        // Shepherds that obey are not killed.
        let runs = |harness: &mut Harness| !harness.host.phases().is_empty();
        assert!(harness.run(TIME_LIMIT, runs).await, "{what}");
        harness.host.set_stopped(true);
    }
    if call == DriverCall::List || call == DriverCall::Attach {
        let runs = |harness: &mut Harness| harness.host.has_running();
        assert!(harness.run(TIME_LIMIT, runs).await, "{what}");
        harness.restart().await;
    }
    if !harness.run(TIME_LIMIT, Harness::is_done).await {
        // The next daemon does the rest.
        harness.restart().await;
        harness.run(TIME_LIMIT, Harness::is_done).await;
    }
    harness.assert_exactly_once(&what);
    harness.faults.injected()
}

async fn inject_all(calls: &[DriverCall], numbers: RangeInclusive<u64>, jobs: u64) -> u64 {
    let mut count = 0;
    for call in calls {
        for number in numbers.clone() {
            let before = count;
            for fault in Fault::ALL {
                count += injected(*call, number, fault, jobs).await;
            }
            // There are fewer calls of this kind.
            if count == before {
                break;
            }
        }
    }
    count
}

#[tokio::test(start_paused = true)]
async fn with_any_shepherd_fault_each_job_ends_once_and_nothing_is_left() {
    let count = inject_all(&DriverCall::SHEPHERDS, 1..=2, 2).await;
    assert!(count >= 70, "only {count} faults were injected");
}

#[tokio::test(start_paused = true)]
async fn with_any_forge_fault_each_job_ends_once_and_nothing_is_left() {
    let count = inject_all(&DriverCall::FORGE, 1..=2, 2).await;
    assert!(count >= 30, "only {count} faults were injected");
}

#[tokio::test(start_paused = true)]
#[ignore = "takes minutes"]
async fn with_a_fault_at_any_call_each_job_ends_once_and_nothing_is_left() {
    let shepherds = inject_all(&DriverCall::SHEPHERDS, 1..=40, 10).await;
    let count = shepherds + inject_all(&DriverCall::FORGE, 1..=40, 10).await;
    assert!(count >= 1000, "only {count} faults were injected");
}

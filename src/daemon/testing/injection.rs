//! A fault at each call of both seams: whatever goes wrong once, each job ends exactly once or is
//! reported with a cause, and nothing is left.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::faults::{Call, Fault};
use super::stage::{FORGE, Stage};

/// Longer than every deadline on the way of a job that lasts seconds.
const PATIENCE: Duration = Duration::from_secs(12 * 3600);

/// So many jobs of either source, and one call that goes wrong; how many did.
async fn injected(call: Call, number: u64, fault: Fault, jobs: u64) -> u64 {
    let what = format!("{fault:?} at call {number} of {call:?}");
    let mut stage = Stage::new(Duration::from_secs(5));
    stage.faults.add(call, number, 1, fault);
    if stage.serve().is_err() {
        stage.restart().await;
    }
    for _ in 0..jobs {
        stage.submit();
        stage.forge.queue(FORGE);
    }
    if call == Call::Kill {
        // Nobody is killed who obeys.
        let runs = |stage: &mut Stage| !stage.host.phases().is_empty();
        assert!(stage.run(PATIENCE, runs).await, "{what}");
        stage.host.stop(true);
    }
    if call == Call::List || call == Call::Attach {
        let runs = |stage: &mut Stage| stage.host.lives();
        assert!(stage.run(PATIENCE, runs).await, "{what}");
        stage.restart().await;
    }
    if !stage.run(PATIENCE, Stage::is_done).await {
        // What could not be done is the next daemon's to do.
        stage.restart().await;
        stage.run(PATIENCE, Stage::is_done).await;
    }
    stage.assert_exactly_once(&what);
    stage.faults.injected()
}

async fn inject_all(calls: &[Call], numbers: RangeInclusive<u64>, jobs: u64) -> u64 {
    let mut count = 0;
    for call in calls {
        for number in numbers.clone() {
            let before = count;
            for fault in Fault::ALL {
                count += injected(*call, number, fault, jobs).await;
            }
            // So many calls of this kind are not made.
            if count == before {
                break;
            }
        }
    }
    count
}

#[tokio::test(start_paused = true)]
async fn whatever_goes_wrong_once_with_a_shepherd_each_job_ends_once_and_nothing_is_left() {
    let count = inject_all(&Call::SHEPHERDS, 1..=2, 2).await;
    assert!(count >= 70, "only {count} faults were injected");
}

#[tokio::test(start_paused = true)]
async fn whatever_goes_wrong_once_with_the_forge_each_job_ends_once_and_nothing_is_left() {
    let count = inject_all(&Call::FORGE, 1..=2, 2).await;
    assert!(count >= 30, "only {count} faults were injected");
}

#[tokio::test(start_paused = true)]
#[ignore = "takes minutes"]
async fn whatever_goes_wrong_anywhere_each_job_ends_once_and_nothing_is_left() {
    let shepherds = inject_all(&Call::SHEPHERDS, 1..=40, 10).await;
    let count = shepherds + inject_all(&Call::FORGE, 1..=40, 10).await;
    assert!(count >= 1000, "only {count} faults were injected");
}

//! Simulates a day of a large fleet.

use std::time::Duration;

use super::fleet::fleet;
use super::{Millis, STEPS};

/// Time between decisions: short enough that all jobs are served, long enough for a test. The
/// benchmark decides after each event.
const TICK: u64 = 20_000;

#[test]
fn a_day_of_a_hundred_thousand_jobs_is_served_by_two_thousand_microvms() {
    let (mut world, jobs) = fleet();
    let total = jobs.len() as u64;
    let tick = Duration::from_millis(TICK);
    let mut most_per_item = 0;
    for (at, pool) in jobs {
        let at = Millis(at.0.next_multiple_of(TICK));
        if at > world.now {
            world.run_until(at, tick);
            let items = world.microvms.len() + world.demand().len() + world.pools.len();
            let before = STEPS.get();
            world.decide();
            most_per_item = most_per_item.max((STEPS.get() - before) / items as u64);
        }
        world.queue(pool);
    }
    let end = world.now + Duration::from_secs(24 * 3600);
    while world.waiting() > 0 && world.now < end {
        let next = world.next_event().unwrap_or(end);
        world.run_until(next, tick);
    }
    assert_eq!(world.statistics.served, total, "{:?}", world.statistics);
    assert!(
        world.statistics.most_microvms >= 1900,
        "the fleet was hardly used: {:?}",
        world.statistics
    );
    assert!(world.statistics.most_waiting > 100, "nothing ever waited: {:?}", world.statistics);
    // A decision reads each microVM and job a few times, however many there are.
    assert!(most_per_item <= 4, "{most_per_item} steps for each microVM and job");
    assert!(world.is_consistent());
    // Few microVMs fail or idle.
    assert!(world.statistics.boots < total + total / 5, "{:?}", world.statistics);
}

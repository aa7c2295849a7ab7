//! Pools and hosts for tests of decisions. The benchmark uses this file too, as it does `world`.

use std::time::Duration;

use super::world::{Behavior, World};
use super::{Millis, Pool, PoolId, RegistrationPolicy, Resources};

/// Returns a pool whose microVMs take `processors` and twice as many GiB of memory.
pub(crate) fn pool(
    processors: u32,
    min_idle: u32,
    max: u32,
    registration: RegistrationPolicy,
) -> Pool {
    Pool {
        // A world sets the id.
        id: PoolId(0),
        resources: Resources { processors, memory: u64::from(processors) << 31 },
        min_idle,
        max,
        registration,
        idle: Duration::from_secs(300),
        claim: Duration::from_secs(120),
        boot_blocker: None,
        forge_blocker: None,
    }
}

/// Returns the resources of a host with `processors` and twice as many GiB of memory.
pub(crate) fn host(processors: u32) -> Resources {
    Resources { processors, memory: u64::from(processors) << 31 }
}

/// Returns a fleet of 2,000 microVMs that has 100,000 jobs a day, more by day than by night: the
/// world, and the times and pools of its jobs. Every second pool is the forge's.
pub(crate) fn fleet() -> (World, Vec<(Millis, usize)>) {
    let registration =
        |pool| if pool % 2 == 0 { RegistrationPolicy::OnDemand } else { RegistrationPolicy::Never };
    let pools = (0..10).map(|index| {
        let processors = [1, 2, 2, 4, 8][index % 5];
        pool(processors, 5, 400, registration(index))
    });
    let behavior = Behavior {
        boot: (300, 4000),
        job: (20_000, 5_200_000),
        boot_failures: 10,
        registration_failures: 10,
    };
    let mut world = World::new(pools.collect(), host(6800), behavior, 4711);
    let mut jobs = Vec::new();
    let day = 24 * 3600 * 1000;
    while jobs.len() < 100_000 {
        let at = world.random(day);
        let distance = at.abs_diff(day / 2);
        // All at noon, one in three towards midnight.
        if world.random(day / 2) >= distance * 2 / 3 {
            jobs.push((Millis(at), usize::try_from(world.random(10)).expect("a pool")));
        }
    }
    jobs.sort_unstable();
    (world, jobs)
}

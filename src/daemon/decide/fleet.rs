//! Pools and hosts to try decisions on. Shared as `world` is.

use std::time::Duration;

use super::world::{Manners, World};
use super::{Load, Millis, Pool, PoolId, Registers};

/// A pool whose machines take so many processors, and twice as many GiB.
pub(crate) fn pool(processors: u32, min_idle: u32, max: u32, registers: Registers) -> Pool {
    Pool {
        // A world names its pools by their places.
        id: PoolId(0),
        load: Load { processors, memory: u64::from(processors) << 31 },
        min_idle,
        max,
        registers,
        idle: Duration::from_secs(300),
        claim: Duration::from_secs(120),
        boot_obstacle: None,
        forge_obstacle: None,
    }
}

/// A host of so many processors, and twice as many GiB.
pub(crate) fn host(processors: u32) -> Load {
    Load { processors, memory: u64::from(processors) << 31 }
}

/// A fleet of 2,000 microVMs that has 100,000 jobs a day, more by day than by night. Returns the
/// world and the moments and pools of its jobs; every second pool is the forge's.
pub(crate) fn fleet() -> (World, Vec<(Millis, usize)>) {
    let registers = |pool| if pool % 2 == 0 { Registers::Late } else { Registers::Never };
    let pools = (0..10).map(|index| {
        let processors = [1, 2, 2, 4, 8][index % 5];
        pool(processors, 5, 400, registers(index))
    });
    let manners = Manners {
        boot: (300, 4000),
        job: (20_000, 5_200_000),
        boot_failures: 10,
        registration_failures: 10,
    };
    let mut world = World::new(pools.collect(), host(6800), manners, 4711);
    let mut jobs = Vec::new();
    let day = 24 * 3600 * 1000;
    while jobs.len() < 100_000 {
        let at = world.random(day);
        let distance = at.abs_diff(day / 2);
        // At noon as it comes, towards midnight one in three.
        if world.random(day / 2) >= distance * 2 / 3 {
            jobs.push((Millis(at), usize::try_from(world.random(10)).expect("a pool")));
        }
    }
    jobs.sort_unstable();
    (world, jobs)
}

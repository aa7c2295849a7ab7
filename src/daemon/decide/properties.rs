//! Properties of decisions under any events. The world checks limits, reasons and untouched jobs at
//! each decision.

use std::time::Duration;

use proptest::prelude::*;

use super::fleet::{host, pool};
use super::world::{Behavior, World};
use super::{ActiveBlocker, Blocker, Millis, Pool, PoolId, RegistrationPolicy, Stage};

#[derive(Debug, Clone, Copy)]
enum Step {
    Submit(usize),
    Queue(usize),
    Believe(usize, u32),
    Wait(u64),
    NoBoots(usize, Option<u64>),
    NoGithub(usize, Option<u64>),
    Over(usize),
}

const POOLS: usize = 3;

fn pools() -> impl Strategy<Value = Vec<Pool>> {
    let registration = prop_oneof![
        Just(RegistrationPolicy::OnDemand),
        Just(RegistrationPolicy::Always),
        Just(RegistrationPolicy::Never)
    ];
    let one = (1..9_u32, 0..4_u32, 0..7_u32, registration).prop_map(
        |(processors, idle, max, registration)| pool(processors, idle, max, registration),
    );
    prop::collection::vec(one, POOLS)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let until = prop::option::of(1..600_000_u64);
    let step = prop_oneof![
        4 => (0..POOLS).prop_map(Step::Submit),
        4 => (0..POOLS).prop_map(Step::Queue),
        1 => (0..POOLS, 0..20_u32).prop_map(|(pool, count)| Step::Believe(pool, count)),
        6 => (1..200_000_u64).prop_map(Step::Wait),
        1 => (0..POOLS, until.clone()).prop_map(|(pool, until)| Step::NoBoots(pool, until)),
        1 => (0..POOLS, until).prop_map(|(pool, until)| Step::NoGithub(pool, until)),
        2 => (0..POOLS).prop_map(Step::Over),
    ];
    prop::collection::vec(step, 0..60)
}

fn behavior() -> impl Strategy<Value = Behavior> {
    (0..400_u64, 0..400_u64).prop_map(|(boot_failures, registration_failures)| Behavior {
        boot: (500, 20_000),
        job: (100, 300_000),
        boot_failures,
        registration_failures,
    })
}

fn world() -> impl Strategy<Value = World> {
    (pools(), 4..30_u32, behavior(), any::<u64>())
        .prop_map(|(pools, processors, behavior, seed)| {
            World::new(pools, host(processors), behavior, seed)
        })
        .no_shrink()
}

fn take(world: &mut World, step: Step) {
    let blocker = |world: &World, until: Option<u64>, reason| {
        Some(ActiveBlocker { until: until.map(|after| Millis(world.now.0 + after)), reason })
    };
    match step {
        Step::Submit(pool) => world.submit(pool),
        Step::Queue(pool) => world.queue(pool),
        Step::Believe(pool, count) => world.phantoms[pool] = count,
        Step::Wait(time) => {
            let end = world.now + Duration::from_millis(time);
            world.run_until(end, Duration::ZERO);
        }
        Step::NoBoots(pool, until) => {
            world.pools[pool].boot_blocker =
                blocker(world, until, Blocker::Image("gone".to_owned()));
        }
        Step::NoGithub(pool, until) => {
            world.pools[pool].forge_blocker = blocker(world, until, Blocker::RateLimited);
        }
        Step::Over(pool) => {
            world.pools[pool].boot_blocker = None;
            world.pools[pool].forge_blocker = None;
        }
    }
    world.decide();
}

/// Removes permanent blockers, and lets hours pass.
fn settle(world: &mut World) {
    for index in 0..POOLS {
        world.phantoms[index] = 0;
        take(world, Step::Over(index));
    }
    let end = world.now + Duration::from_secs(48 * 3600);
    world.run_until(end, Duration::ZERO);
}

impl std::fmt::Debug for World {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:?} {:?}", self.pools, self.budget)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_job_that_can_be_served_is_served(mut world in world(), steps in steps()) {
        for step in steps {
            take(&mut world, step);
        }
        settle(&mut world);
        let decision = world.decide();
        for waiting in world.demand() {
            let pool = &world.pools[waiting.pool().0 as usize];
            let impossible = pool.max == 0
                || world.budget.fits(pool.resources) == 0
                || runners_hold_the_room(&world, waiting.pool());
            prop_assert!(impossible, "{waiting:?} waits: {:?} {:?}", decision, world.microvms);
        }
    }

    #[test]
    fn nothing_is_left_where_nothing_waits(mut world in world(), steps in steps()) {
        for pool in &mut world.pools {
            pool.min_idle = 0;
        }
        for step in steps {
            take(&mut world, step);
        }
        settle(&mut world);
        // Jobs that still wait can't get a microVM.
        prop_assert_eq!(&world.microvms, &[]);
    }

    #[test]
    fn draining_ends_everything_but_what_has_a_job(mut world in world(), steps in steps()) {
        for step in steps {
            take(&mut world, step);
        }
        let boots = world.statistics.boots;
        world.draining = true;
        world.decide();
        for microvm in &world.microvms {
            let is_idle = matches!(microvm.stage, Stage::Warm | Stage::Booting | Stage::Registered);
            prop_assert!(!is_idle);
        }
        let end = world.now + Duration::from_secs(3600);
        world.run_until(end, Duration::ZERO);
        prop_assert_eq!(&world.microvms, &[]);
        prop_assert_eq!(world.statistics.boots, boots);
    }

    #[test]
    fn demand_that_flaps_boots_little(
        pools in pools(),
        processors in 4..300_u32,
        flaps in prop::collection::vec((0..POOLS, 0..20_u32, 1..3000_u64), 200..400),
    ) {
        let behavior =
            Behavior { boot: (500, 2000), job: (1, 1), boot_failures: 0, registration_failures: 0 };
        let places: u64 = pools.iter().map(|pool| u64::from(pool.max)).sum();
        let room = pools.iter().map(|pool| pool.resources.processors * pool.max).sum::<u32>();
        let mut world = World::new(pools, host(processors), behavior, 1);
        world.decide();
        let begin = world.now;
        for (pool, count, time) in flaps {
            take(&mut world, Step::Believe(pool, count));
            take(&mut world, Step::Wait(time));
        }
        // With resources for all, a slot changes its use once in the time that a runner waits for a
        // job. If pools compete, it changes once in the time that a warm microVM is protected.
        let turn = if room <= processors { 120 } else { 10 };
        let turns = world.now.since(begin).as_secs() / turn + 1;
        prop_assert!(world.statistics.boots <= places * turns, "{:?}", world.statistics);
    }
}

/// Returns whether permanent runners (`Always`) leave no resources for one more microVM of a pool.
fn runners_hold_the_room(world: &World, index: PoolId) -> bool {
    let stay = |registration| registration == RegistrationPolicy::Always;
    let local = world.demand().iter().any(|waiting| waiting.pool() == index);
    local && world.pools.iter().any(|pool| stay(pool.registration) && pool.min_idle > 0)
}

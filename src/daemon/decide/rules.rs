//! Tests of each rule.

use std::time::Duration;

use super::fleet::{host, pool};
use super::world::id;
use super::*;

fn microvm(key: u64, pool: u32, stage: Stage, since: u64) -> MicrovmState {
    let resources = Resources { processors: 2, memory: 4 << 30 };
    MicrovmState {
        key: MicrovmKey(key),
        pool: PoolId(pool),
        resources,
        stage,
        since: Millis(since),
    }
}

fn local(job: u64, pool: u32, since: u64) -> WaitingJobs {
    WaitingJobs::Local { job: JobKey(job), pool: PoolId(pool), since: Millis(since) }
}

fn runners(pool: u32, count: u32, since: u64) -> WaitingJobs {
    WaitingJobs::Runners { pool: PoolId(pool), count, since: Millis(since) }
}

/// Sets each pool's id to its position.
fn numbered(pools: &[Pool]) -> Vec<Pool> {
    let places = pools.iter().enumerate();
    places.map(|(place, pool)| Pool { id: id(place), ..pool.clone() }).collect()
}

fn at(now: u64, pools: &[Pool], microvms: &[MicrovmState], demand: &[WaitingJobs]) -> Decision {
    let pools = &numbered(pools)[..];
    decide(&DecisionInput {
        now: Millis(now),
        pools,
        microvms,
        demand,
        budget: host(10),
        draining: false,
    })
}

fn blocker(decision: &Decision, pool: u32) -> Option<Blocker> {
    decision.blockers.get(&PoolId(pool)).cloned().map(|blocker| blocker.reason)
}

fn retire(key: u64, why: RetireReason) -> Action {
    Action::Retire { microvm: MicrovmKey(key), reason: why }
}

#[test]
fn the_oldest_job_takes_the_oldest_microvm_and_the_next_boots() {
    let microvms = [microvm(1, 0, Stage::Warm, 50), microvm(2, 0, Stage::Warm, 20)];
    let demand = [runners(0, 2, 90), local(7, 0, 60)];
    let decision = at(100, &[pool(2, 0, 9, RegistrationPolicy::OnDemand)], &microvms, &demand);
    let expected = [
        Action::Assign { microvm: MicrovmKey(2), job: JobKey(7) },
        Action::Register { microvm: MicrovmKey(1) },
        Action::Boot { pool: PoolId(0) },
    ];
    assert_eq!(decision.actions, expected);
    assert_eq!(blocker(&decision, 0), Some(Blocker::Booting));
}

#[test]
fn runners_that_listen_count_for_the_jobs_that_wait() {
    let microvms = [microvm(1, 0, Stage::Registered, 50), microvm(2, 0, Stage::Registering, 50)];
    let decision =
        at(99, &[pool(2, 0, 9, RegistrationPolicy::OnDemand)], &microvms, &[runners(0, 2, 0)]);
    assert_eq!(decision.actions, []);
    assert_eq!(blocker(&decision, 0), Some(Blocker::Listening));
    assert_eq!(decision.wake, Some(Millis(120_050)), "the runner's time to claim a job");
}

#[test]
fn each_limit_has_its_name() {
    let small = pool(2, 0, 1, RegistrationPolicy::Never);
    let microvms = [microvm(1, 0, Stage::Busy, 0), microvm(2, 1, Stage::Busy, 0)];
    let mut broken = pool(2, 0, 9, RegistrationPolicy::OnDemand);
    let until = Some(Millis(500));
    broken.boot_blocker = Some(ActiveBlocker { until, reason: Blocker::Image("gone".to_owned()) });
    let mut limited = pool(2, 0, 9, RegistrationPolicy::OnDemand);
    limited.forge_blocker = Some(ActiveBlocker { until: None, reason: Blocker::RateLimited });
    let pools = [
        small,
        pool(8, 0, 9, RegistrationPolicy::OnDemand),
        broken,
        pool(16, 0, 9, RegistrationPolicy::OnDemand),
        limited,
    ];
    let demand = [
        local(1, 0, 1),
        runners(0, 1, 1),
        runners(1, 1, 2),
        local(2, 2, 3),
        local(3, 3, 4),
        runners(4, 1, 5),
    ];
    let decision = at(100, &pools, &microvms, &demand);
    assert_eq!(decision.actions, []);
    assert_eq!(blocker(&decision, 0), Some(Blocker::NeverRegisters));
    assert_eq!(blocker(&decision, 1), Some(Blocker::HostBudget));
    assert_eq!(blocker(&decision, 2), Some(Blocker::Image("gone".to_owned())));
    assert_eq!(blocker(&decision, 3), Some(Blocker::LargerThanHost));
    assert_eq!(blocker(&decision, 4), Some(Blocker::RateLimited));
    assert_eq!(decision.wake, Some(Millis(500)));
    let decision = at(100, &pools, &microvms, &demand[..1]);
    assert_eq!(blocker(&decision, 0), Some(Blocker::PoolAtMax(1)));
    // A blocker whose time has passed does not count.
    assert_eq!(
        at(500, &pools, &microvms, &demand[3..4]).actions,
        [Action::Boot { pool: PoolId(2) }]
    );
}

#[test]
fn a_large_microvm_is_not_starved_by_small_ones() {
    let pools =
        [pool(2, 0, 9, RegistrationPolicy::OnDemand), pool(10, 0, 9, RegistrationPolicy::OnDemand)];
    let microvms = [microvm(1, 0, Stage::Busy, 0)];
    let decision = at(9, &pools, &microvms, &[local(1, 0, 8), local(2, 1, 7)]);
    assert_eq!(decision.actions, []);
    assert_eq!(blocker(&decision, 0), Some(Blocker::HostBudget));
}

#[test]
fn warm_microvms_make_room_once_they_are_settled() {
    let pools =
        [pool(2, 5, 5, RegistrationPolicy::Never), pool(4, 0, 9, RegistrationPolicy::OnDemand)];
    let microvms: Vec<MicrovmState> =
        (0..5).map(|key| microvm(key, 0, Stage::Warm, 1000 + key)).collect();
    let decision = at(2000, &pools, &microvms, &[local(1, 1, 7)]);
    assert_eq!((decision.actions, decision.wake), (vec![], Some(Millis(11_000))));
    let decision = at(20_000, &pools, &microvms, &[local(1, 1, 7)]);
    let displaced = |key| retire(key, RetireReason::Displaced);
    assert_eq!(decision.actions, [displaced(0), displaced(1)]);
}

#[test]
fn warm_microvms_beyond_those_that_are_kept_go_after_their_time() {
    let pools = [pool(2, 1, 9, RegistrationPolicy::OnDemand)];
    let microvms = [microvm(1, 0, Stage::Warm, 10), microvm(2, 0, Stage::Warm, 0)];
    let decision = at(299_999, &pools, &microvms, &[]);
    assert_eq!((decision.actions, decision.wake), (vec![], Some(Millis(300_000))));
    let decision = at(300_000, &pools, &microvms, &[]);
    assert_eq!(decision.actions, [retire(2, RetireReason::Idle)]);
    let decision = at(900_000, &pools, &microvms[..1], &[]);
    assert_eq!((decision.actions, decision.wake), (vec![], None));
    assert_eq!(at(0, &pools, &[], &[]).actions, [Action::Boot { pool: PoolId(0) }]);
}

#[test]
fn a_runner_without_a_job_is_retired_even_if_jobs_seem_to_wait() {
    let pools = [pool(2, 0, 9, RegistrationPolicy::OnDemand)];
    let microvms = [microvm(1, 0, Stage::Registered, 0), microvm(2, 0, Stage::Busy, 0)];
    let decision = at(120_000, &pools, &microvms, &[runners(0, 1, 0)]);
    assert_eq!(decision.actions, [retire(1, RetireReason::Unclaimed)]);
}

#[test]
fn a_pool_that_always_registers_keeps_its_warm_microvms_as_runners() {
    let pools = [pool(2, 2, 9, RegistrationPolicy::Always)];
    let warm = [microvm(1, 0, Stage::Warm, 0)];
    let expected = [Action::Register { microvm: MicrovmKey(1) }, Action::Boot { pool: PoolId(0) }];
    assert_eq!(at(1, &pools, &warm, &[]).actions, expected);
    let three = [1, 2, 3].map(|key| microvm(key, 0, Stage::Registered, key));
    let late = 10 * 120_000;
    assert_eq!(at(late, &pools, &three[..2], &[]).actions, []);
    assert_eq!(at(late, &pools, &three, &[]).actions, [retire(1, RetireReason::Unclaimed)]);
}

#[test]
fn draining_ends_what_has_no_job_and_takes_none() {
    let pools = [pool(2, 2, 9, RegistrationPolicy::OnDemand)];
    let stages = [Stage::Booting, Stage::Warm, Stage::Registered, Stage::Assigned, Stage::Busy];
    let microvms: Vec<MicrovmState> =
        (0..).zip(stages).map(|(key, stage)| microvm(key, 0, stage, 0)).collect();
    let input = DecisionInput {
        now: Millis(1),
        pools: &pools,
        microvms: &microvms,
        demand: &[local(1, 0, 0)],
        budget: host(100),
        draining: true,
    };
    let decision = decide(&input);
    assert_eq!(decision.actions, [0, 1, 2].map(|key| retire(key, RetireReason::Draining)));
    assert_eq!(blocker(&decision, 0), Some(Blocker::Draining));
}

#[test]
fn a_microvm_of_a_removed_pool_is_retired_unless_it_has_a_job() {
    let orphan = |key, stage| MicrovmState { pool: PoolId(99), ..microvm(key, 0, stage, 0) };
    let microvms = [orphan(1, Stage::Warm), orphan(2, Stage::Busy)];
    let decision = at(1, &[pool(2, 0, 9, RegistrationPolicy::OnDemand)], &microvms, &[]);
    assert_eq!(decision.actions, [retire(1, RetireReason::Orphaned)]);
    // Its load counts: 2 of 10 processors each.
    let decision =
        at(1, &[pool(7, 0, 9, RegistrationPolicy::OnDemand)], &microvms, &[local(1, 0, 0)]);
    assert_eq!(blocker(&decision, 0), Some(Blocker::HostBudget));
}

#[test]
fn the_time_to_wake_is_the_earliest() {
    let pools = [pool(2, 0, 9, RegistrationPolicy::OnDemand)];
    let microvms = [microvm(1, 0, Stage::Warm, 5000), microvm(2, 0, Stage::Registered, 6000)];
    let claim = Millis(6000) + Duration::from_secs(120);
    assert_eq!(at(7000, &pools, &microvms, &[]).wake, Some(claim));
}

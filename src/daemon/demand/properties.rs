//! Properties of the demand under hints in any order, repeated or missing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::{Demand, DemandEvent, DemandSettings, ForgeJob};
use crate::decide::{PoolId, WaitingJobs};
use crate::time::Millis;

const POOLS: u32 = 3;

/// The real state of a job: its stage (0 waits, 1 runs, 2 is done) and its runner.
#[derive(Debug, Clone)]
struct Truth {
    pool: PoolId,
    stage: u8,
    repository: usize,
    ours: bool,
}

fn truths() -> impl Strategy<Value = Vec<Truth>> {
    let one = ((0..POOLS).prop_map(PoolId), 0..3_u8, 0..2_usize, any::<bool>())
        .prop_map(|(pool, stage, repository, ours)| Truth { pool, stage, repository, ours });
    prop::collection::vec(one, 0..20)
}

fn job(number: usize) -> ForgeJob {
    ForgeJob { id: number as u64, attempt: 1 }
}

fn repository(number: usize) -> String {
    format!("octo/repository-{number}")
}

fn runner(number: usize) -> String {
    format!("mayfly-{number}")
}

/// Returns all hints about these jobs.
fn hints(truths: &[Truth]) -> Vec<DemandEvent> {
    let mut hints = Vec::new();
    for (number, truth) in truths.iter().enumerate() {
        let (job, pool) = (job(number), truth.pool);
        let on = truth.ours.then(|| runner(number));
        let repository = repository(truth.repository);
        hints.push(DemandEvent::Queued { job, repository, pool });
        if truth.stage > 0 {
            hints.push(DemandEvent::InProgress { job, runner: on.clone() });
            if truth.ours {
                hints.push(DemandEvent::Taken { runner: runner(number), pool });
            }
        }
        if truth.stage > 1 {
            hints.push(DemandEvent::Completed { job, runner: on });
        }
    }
    hints
}

/// Any of the hints, in any order, with duplicates.
fn event_sequences() -> impl Strategy<Value = (Vec<Truth>, Vec<DemandEvent>)> {
    truths().prop_flat_map(|truths| {
        let hints = hints(&truths);
        let most = hints.len() * 2;
        let any = if hints.is_empty() {
            Just(Vec::new()).boxed()
        } else {
            prop::collection::vec(prop::sample::select(hints), 0..=most).boxed()
        };
        (Just(truths), any)
    })
}

fn waiting(demand: &Demand) -> BTreeMap<PoolId, u32> {
    let mut counts = BTreeMap::new();
    for waiting in demand.waiting() {
        let WaitingJobs::Runners { pool, count, .. } = waiting else { panic!("{waiting:?}") };
        *counts.entry(pool).or_default() += count;
    }
    counts
}

fn snapshot(demand: &mut Demand, truths: &[Truth], at: Millis) {
    for number in 0..2 {
        let waits = |truth: &Truth| truth.stage == 0 && truth.repository == number;
        let queued = truths.iter().enumerate().filter(|(_, truth)| waits(truth));
        let queued = queued.map(|(number, truth)| (job(number), truth.pool, Millis(0))).collect();
        demand.apply(DemandEvent::Snapshot { repository: repository(number), queued }, at);
    }
}

fn expected(truths: &[Truth]) -> BTreeMap<PoolId, u32> {
    let mut counts = BTreeMap::new();
    for truth in truths.iter().filter(|truth| truth.stage == 0) {
        *counts.entry(truth.pool).or_default() += 1;
    }
    counts
}

/// Applies events one second apart. Returns the time after the last.
fn apply_all(demand: &mut Demand, events: Vec<DemandEvent>, begin: Millis) -> Millis {
    let mut now = begin;
    for event in events {
        demand.apply(event, now);
        now = now + Duration::from_secs(1);
    }
    now
}

proptest! {
    #[test]
    fn a_snapshot_settles_what_hints_left_open((truths, events) in event_sequences()) {
        let settings = DemandSettings::default();
        let mut demand = Demand::new(settings);
        let now = apply_all(&mut demand, events, Millis(1));
        // A snapshot does not resolve marks of pools without known jobs. They expire.
        let later = now + settings.lag;
        snapshot(&mut demand, &truths, later);
        demand.expire(later + settings.lag * 30);
        prop_assert_eq!(waiting(&demand), expected(&truths));
    }

    #[test]
    fn late_hints_after_a_snapshot_add_no_job((truths, events) in event_sequences()) {
        let settings = DemandSettings::default();
        let mut demand = Demand::new(settings);
        let now = apply_all(&mut demand, hints(&truths), Millis(1)) + settings.lag;
        snapshot(&mut demand, &truths, now);
        let known: BTreeSet<ForgeJob> = demand.queued().map(|(_, job, _)| job).collect();
        apply_all(&mut demand, events, now);
        let after: BTreeSet<ForgeJob> = demand.queued().map(|(_, job, _)| job).collect();
        prop_assert_eq!(after, known);
    }

    #[test]
    fn the_order_of_all_hints_makes_no_difference(
        (truths, order) in truths().prop_flat_map(|truths| {
            let hints = hints(&truths);
            (Just(truths), Just(hints).prop_shuffle())
        })
    ) {
        let mut demand = Demand::new(DemandSettings::default());
        apply_all(&mut demand, order, Millis(1));
        prop_assert_eq!(waiting(&demand), expected(&truths));
    }

    #[test]
    fn without_a_snapshot_every_hint_expires((_, events) in event_sequences()) {
        let settings = DemandSettings::default();
        let mut demand = Demand::new(settings);
        let now = apply_all(&mut demand, events, Millis(1));
        demand.expire(now + settings.expiry);
        prop_assert_eq!(demand.waiting(), vec![]);
        // All information about them is forgotten in the end.
        demand.expire(now + settings.expiry + settings.memory);
        prop_assert_eq!(format!("{demand:?}"), format!("{:?}", Demand::new(settings)));
    }

    #[test]
    fn the_number_of_known_jobs_is_limited(count in 0..40_u64, capacity in 0..20_usize) {
        let mut demand = Demand::new(DemandSettings { capacity, ..DemandSettings::default() });
        for id in 0..count {
            let job = ForgeJob { id, attempt: 1 };
            let repository = repository(0);
            demand.apply(DemandEvent::Queued { job, repository, pool: PoolId(0) }, Millis(id));
        }
        prop_assert_eq!(demand.queued().count() as u64, count.min(capacity as u64));
    }
}

fn queued(id: u64) -> DemandEvent {
    let job = ForgeJob { id, attempt: 1 };
    DemandEvent::Queued { job, repository: repository(0), pool: PoolId(0) }
}

fn taken(number: usize) -> DemandEvent {
    DemandEvent::Taken { runner: runner(number), pool: PoolId(0) }
}

#[test]
fn a_mark_counts_as_one_job_less_until_its_job_is_known() {
    let mut demand = Demand::new(DemandSettings::default());
    demand.apply(queued(1), Millis(1));
    demand.apply(queued(2), Millis(2));
    demand.apply(taken(9), Millis(3));
    demand.apply(taken(9), Millis(3));
    assert_eq!(
        demand.waiting(),
        [WaitingJobs::Runners { pool: PoolId(0), count: 1, since: Millis(2) }]
    );
    let job = ForgeJob { id: 2, attempt: 1 };
    demand.apply(DemandEvent::InProgress { job, runner: Some(runner(9)) }, Millis(4));
    demand.apply(taken(9), Millis(5));
    assert_eq!(
        demand.waiting(),
        [WaitingJobs::Runners { pool: PoolId(0), count: 1, since: Millis(1) }]
    );
}

#[test]
fn statistics_count_instead_of_jobs_and_the_newest_win() {
    let mut demand = Demand::new(DemandSettings::default());
    demand.apply(queued(1), Millis(1));
    demand.apply(DemandEvent::Statistics { pool: PoolId(0), waiting: 3 }, Millis(10));
    demand.apply(DemandEvent::Statistics { pool: PoolId(0), waiting: 7 }, Millis(5));
    demand.apply(taken(9), Millis(11));
    assert_eq!(
        demand.waiting(),
        [WaitingJobs::Runners { pool: PoolId(0), count: 2, since: Millis(10) }]
    );
    demand.apply(DemandEvent::Statistics { pool: PoolId(0), waiting: 2 }, Millis(20));
    assert_eq!(
        demand.waiting(),
        [WaitingJobs::Runners { pool: PoolId(0), count: 2, since: Millis(10) }]
    );
    demand.apply(DemandEvent::Statistics { pool: PoolId(0), waiting: 0 }, Millis(30));
    assert_eq!(demand.waiting(), []);
}

#[test]
fn only_a_snapshot_newer_than_the_lag_removes_or_restores_jobs() {
    let lag = DemandSettings::default().lag;
    let mut demand = Demand::new(DemandSettings::default());
    let begin = Millis(100_000);
    demand.apply(queued(1), begin);
    let empty = || DemandEvent::Snapshot { repository: repository(0), queued: vec![] };
    demand.apply(empty(), begin + lag / 2);
    assert_eq!(demand.waiting().len(), 1);
    demand.apply(empty(), begin + lag);
    assert_eq!(demand.waiting(), []);
    let job = ForgeJob { id: 1, attempt: 1 };
    let listed = |at| {
        (
            DemandEvent::Snapshot {
                repository: repository(0),
                queued: vec![(job, PoolId(0), begin)],
            },
            at,
        )
    };
    let (event, at) = listed(begin + lag * 2);
    demand.apply(event, at);
    assert_eq!(demand.waiting().len(), 1);
    // The forge requeued a job that a runner had lost. A done job stays done.
    demand.apply(DemandEvent::InProgress { job, runner: None }, begin + lag * 2);
    let (event, at) = listed(begin + lag * 3);
    demand.apply(event, at);
    assert_eq!(demand.waiting().len(), 1);
    demand.apply(DemandEvent::Completed { job, runner: None }, begin + lag * 3);
    let (event, at) = listed(begin + lag * 9);
    demand.apply(event, at);
    assert_eq!(demand.waiting(), []);
}

#[test]
fn jobs_of_a_removed_pool_are_forgotten() {
    let mut demand = Demand::new(DemandSettings::default());
    demand.apply(queued(1), Millis(1));
    demand.apply(DemandEvent::Statistics { pool: PoolId(1), waiting: 3 }, Millis(10));
    demand.keep_pools(|pool| pool == PoolId(0));
    assert_eq!(
        demand.waiting(),
        [WaitingJobs::Runners { pool: PoolId(0), count: 1, since: Millis(1) }]
    );
}

#[test]
fn a_seeded_job_keeps_its_age_and_expires_like_others() {
    let settings = DemandSettings { expiry: Duration::from_secs(60), ..DemandSettings::default() };
    let mut demand = Demand::new(settings);
    let now = Millis(1_000_000);
    let since = |seconds: u64| Millis(now.0 - seconds * 1000);
    demand.apply(DemandEvent::Completed { job: job(3), runner: None }, since(2));
    for (number, ago) in [(1, 30), (2, 61), (3, 10), (4, 60)] {
        demand.seed(job(number), repository(0), PoolId(0), since(ago), now);
    }
    let waits = |demand: &Demand| demand.queued().map(|(_, job, _)| job.id).collect::<Vec<_>>();
    assert_eq!(waits(&demand), [1], "neither expired jobs nor completed ones");
    assert_eq!(demand.waiting()[0].since(), since(30));
    // A second seed does not make it younger.
    demand.seed(job(1), repository(0), PoolId(0), now, now);
    demand.expire(now + Duration::from_secs(29));
    assert_eq!(waits(&demand), [1]);
    demand.expire(now + Duration::from_secs(30));
    assert_eq!(waits(&demand), Vec::<u64>::new());
}

#[test]
fn a_wrongly_matched_job_waits_again() {
    let mut demand = Demand::new(DemandSettings::default());
    let now = Millis(1_000);
    for number in [1, 2] {
        demand.apply(
            DemandEvent::Queued { job: job(number), repository: repository(0), pool: PoolId(0) },
            now,
        );
    }
    demand.apply(DemandEvent::InProgress { job: job(1), runner: Some(runner(1)) }, now);
    demand.apply(DemandEvent::InProgress { job: job(2), runner: Some(runner(1)) }, now);
    assert_eq!(waiting(&demand), BTreeMap::new());
    demand.forget(job(1));
    demand.seed(job(1), repository(0), PoolId(0), now, now);
    assert_eq!(waiting(&demand), BTreeMap::from([(PoolId(0), 1)]));
}

//! What holds in whatever order, how often and whether at all hints come.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::{Demand, ForgeJob, Heard, Settings};
use crate::daemon::decide::{PoolId, Waiting};
use crate::daemon::millis::Millis;

const POOLS: u32 = 3;

/// A job as it truly is: how far it came (0 waits, 1 runs, 2 is done), and on what runner.
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

/// All that is ever told of these jobs.
fn hints(truths: &[Truth]) -> Vec<Heard> {
    let mut hints = Vec::new();
    for (number, truth) in truths.iter().enumerate() {
        let (job, pool) = (job(number), truth.pool);
        let on = truth.ours.then(|| runner(number));
        let repository = repository(truth.repository);
        hints.push(Heard::Queued { job, repository, pool });
        if truth.stage > 0 {
            hints.push(Heard::InProgress { job, runner: on.clone() });
            if truth.ours {
                hints.push(Heard::Taken { runner: runner(number), pool });
            }
        }
        if truth.stage > 1 {
            hints.push(Heard::Completed { job, runner: on });
        }
    }
    hints
}

/// Any of the hints, in any order, any of them twice.
fn heard() -> impl Strategy<Value = (Vec<Truth>, Vec<Heard>)> {
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
        let Waiting::Runners { pool, count, .. } = waiting else { panic!("{waiting:?}") };
        *counts.entry(pool).or_default() += count;
    }
    counts
}

fn snapshot(demand: &mut Demand, truths: &[Truth], at: Millis) {
    for number in 0..2 {
        let waits = |truth: &Truth| truth.stage == 0 && truth.repository == number;
        let queued = truths.iter().enumerate().filter(|(_, truth)| waits(truth));
        let queued = queued.map(|(number, truth)| (job(number), truth.pool, Millis(0))).collect();
        demand.hear(Heard::Snapshot { repository: repository(number), queued }, at);
    }
}

fn expected(truths: &[Truth]) -> BTreeMap<PoolId, u32> {
    let mut counts = BTreeMap::new();
    for truth in truths.iter().filter(|truth| truth.stage == 0) {
        *counts.entry(truth.pool).or_default() += 1;
    }
    counts
}

/// Tells everything, a second apart; the time after.
fn tell(demand: &mut Demand, heard: Vec<Heard>, begin: Millis) -> Millis {
    let mut now = begin;
    for heard in heard {
        demand.hear(heard, now);
        now = now + Duration::from_secs(1);
    }
    now
}

proptest! {
    #[test]
    fn a_snapshot_settles_what_hints_left_open((truths, heard) in heard()) {
        let settings = Settings::default();
        let mut demand = Demand::new(settings);
        let now = tell(&mut demand, heard, Millis(1));
        // Marks of pools of which no job is known are beyond a snapshot; time settles them.
        let later = now + settings.lag;
        snapshot(&mut demand, &truths, later);
        demand.expire(later + settings.lag * 30);
        prop_assert_eq!(waiting(&demand), expected(&truths));
    }

    #[test]
    fn late_hints_after_a_snapshot_add_no_job((truths, heard) in heard()) {
        let settings = Settings::default();
        let mut demand = Demand::new(settings);
        let now = tell(&mut demand, hints(&truths), Millis(1)) + settings.lag;
        snapshot(&mut demand, &truths, now);
        let known: BTreeSet<ForgeJob> = demand.queued().map(|(_, job, _)| job).collect();
        tell(&mut demand, heard, now);
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
        let mut demand = Demand::new(Settings::default());
        tell(&mut demand, order, Millis(1));
        prop_assert_eq!(waiting(&demand), expected(&truths));
    }

    #[test]
    fn without_a_snapshot_every_hint_expires((_, heard) in heard()) {
        let settings = Settings::default();
        let mut demand = Demand::new(settings);
        let now = tell(&mut demand, heard, Millis(1));
        demand.expire(now + settings.expiry);
        prop_assert_eq!(demand.waiting(), vec![]);
        // And what was told of them is forgotten in the end.
        demand.expire(now + settings.expiry + settings.memory);
        prop_assert_eq!(format!("{demand:?}"), format!("{:?}", Demand::new(settings)));
    }

    #[test]
    fn no_more_is_known_than_there_is_room_for(count in 0..40_u64, capacity in 0..20_usize) {
        let mut demand = Demand::new(Settings { capacity, ..Settings::default() });
        for id in 0..count {
            let job = ForgeJob { id, attempt: 1 };
            demand.hear(Heard::Queued { job, repository: repository(0), pool: PoolId(0) }, Millis(id));
        }
        prop_assert_eq!(demand.queued().count() as u64, count.min(capacity as u64));
    }
}

fn queued(id: u64) -> Heard {
    let job = ForgeJob { id, attempt: 1 };
    Heard::Queued { job, repository: repository(0), pool: PoolId(0) }
}

fn taken(number: usize) -> Heard {
    Heard::Taken { runner: runner(number), pool: PoolId(0) }
}

#[test]
fn a_mark_counts_as_one_job_less_until_its_job_is_known() {
    let mut demand = Demand::new(Settings::default());
    demand.hear(queued(1), Millis(1));
    demand.hear(queued(2), Millis(2));
    demand.hear(taken(9), Millis(3));
    demand.hear(taken(9), Millis(3));
    assert_eq!(
        demand.waiting(),
        [Waiting::Runners { pool: PoolId(0), count: 1, since: Millis(2) }]
    );
    let job = ForgeJob { id: 2, attempt: 1 };
    demand.hear(Heard::InProgress { job, runner: Some(runner(9)) }, Millis(4));
    demand.hear(taken(9), Millis(5));
    assert_eq!(
        demand.waiting(),
        [Waiting::Runners { pool: PoolId(0), count: 1, since: Millis(1) }]
    );
}

#[test]
fn statistics_count_instead_of_jobs_and_the_newest_win() {
    let mut demand = Demand::new(Settings::default());
    demand.hear(queued(1), Millis(1));
    demand.hear(Heard::Statistics { pool: PoolId(0), waiting: 3 }, Millis(10));
    demand.hear(Heard::Statistics { pool: PoolId(0), waiting: 7 }, Millis(5));
    demand.hear(taken(9), Millis(11));
    assert_eq!(
        demand.waiting(),
        [Waiting::Runners { pool: PoolId(0), count: 2, since: Millis(10) }]
    );
    demand.hear(Heard::Statistics { pool: PoolId(0), waiting: 2 }, Millis(20));
    assert_eq!(
        demand.waiting(),
        [Waiting::Runners { pool: PoolId(0), count: 2, since: Millis(10) }]
    );
    demand.hear(Heard::Statistics { pool: PoolId(0), waiting: 0 }, Millis(30));
    assert_eq!(demand.waiting(), []);
}

#[test]
fn a_snapshot_that_may_be_behind_removes_nothing_and_one_that_is_not_brings_back() {
    let lag = Settings::default().lag;
    let mut demand = Demand::new(Settings::default());
    let begin = Millis(100_000);
    demand.hear(queued(1), begin);
    let empty = || Heard::Snapshot { repository: repository(0), queued: vec![] };
    demand.hear(empty(), begin + lag / 2);
    assert_eq!(demand.waiting().len(), 1);
    demand.hear(empty(), begin + lag);
    assert_eq!(demand.waiting(), []);
    let job = ForgeJob { id: 1, attempt: 1 };
    let listed = |at| {
        (Heard::Snapshot { repository: repository(0), queued: vec![(job, PoolId(0), begin)] }, at)
    };
    let (heard, at) = listed(begin + lag * 2);
    demand.hear(heard, at);
    assert_eq!(demand.waiting().len(), 1);
    // The forge put a job back that a runner had lost; one that is done stays so.
    demand.hear(Heard::InProgress { job, runner: None }, begin + lag * 2);
    let (heard, at) = listed(begin + lag * 3);
    demand.hear(heard, at);
    assert_eq!(demand.waiting().len(), 1);
    demand.hear(Heard::Completed { job, runner: None }, begin + lag * 3);
    let (heard, at) = listed(begin + lag * 9);
    demand.hear(heard, at);
    assert_eq!(demand.waiting(), []);
}

#[test]
fn what_waits_for_a_pool_that_is_gone_is_forgotten() {
    let mut demand = Demand::new(Settings::default());
    demand.hear(queued(1), Millis(1));
    demand.hear(Heard::Statistics { pool: PoolId(1), waiting: 3 }, Millis(10));
    demand.keep_pools(|pool| pool == PoolId(0));
    assert_eq!(
        demand.waiting(),
        [Waiting::Runners { pool: PoolId(0), count: 1, since: Millis(1) }]
    );
}

#[test]
fn what_waited_before_the_daemon_counts_from_then_and_no_longer_than_else() {
    let settings = Settings { expiry: Duration::from_secs(60), ..Settings::default() };
    let mut demand = Demand::new(settings);
    let now = Millis(1_000_000);
    let since = |seconds: u64| Millis(now.0 - seconds * 1000);
    demand.hear(Heard::Completed { job: job(3), runner: None }, since(2));
    for (number, ago) in [(1, 30), (2, 61), (3, 10), (4, 60)] {
        demand.seed(job(number), repository(0), PoolId(0), since(ago), now);
    }
    let waits = |demand: &Demand| demand.queued().map(|(_, job, _)| job.id).collect::<Vec<_>>();
    assert_eq!(waits(&demand), [1], "not what is too old, nor what is known to be over");
    assert_eq!(demand.waiting()[0].since(), since(30));
    // Again does not make it younger.
    demand.seed(job(1), repository(0), PoolId(0), now, now);
    demand.expire(now + Duration::from_secs(29));
    assert_eq!(waits(&demand), [1]);
    demand.expire(now + Duration::from_secs(30));
    assert_eq!(waits(&demand), Vec::<u64>::new());
}

#[test]
fn what_was_guessed_wrongly_waits_again() {
    let mut demand = Demand::new(Settings::default());
    let now = Millis(1_000);
    for number in [1, 2] {
        demand.hear(
            Heard::Queued { job: job(number), repository: repository(0), pool: PoolId(0) },
            now,
        );
    }
    demand.hear(Heard::InProgress { job: job(1), runner: Some(runner(1)) }, now);
    demand.hear(Heard::InProgress { job: job(2), runner: Some(runner(1)) }, now);
    assert_eq!(waiting(&demand), BTreeMap::new());
    demand.forget(job(1));
    demand.seed(job(1), repository(0), PoolId(0), now, now);
    assert_eq!(waiting(&demand), BTreeMap::from([(PoolId(0), 1)]));
}

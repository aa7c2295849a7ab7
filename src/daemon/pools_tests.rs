//! What stands in a pool's way, from errors to blockers.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use super::clock::Clock;
use super::decide::{Blocker, Obstacle, Registers};
use super::millis::Millis;
use super::pools::{Pool, blocker};
use crate::config::{Environment, Settings, Trigger};
use crate::github::CallError;
use crate::host::size::Size;

/// A pool that nothing is said about, but for its trigger.
fn pool(trigger: Trigger) -> Pool {
    let environment =
        Environment { variables: BTreeMap::new(), processors: 4, memory: Size::gibibytes(8) };
    let settings = Settings::load(None, &environment).unwrap();
    let mut settings = settings.pools.into_iter().next().unwrap();
    settings.trigger = trigger;
    Pool::new(settings, None)
}

fn refused() -> CallError {
    CallError::Refused {
        call: "POST /x".to_owned(),
        status: 403,
        message: "no such right".to_owned(),
        needs: None,
    }
}

fn why(obstacle: Option<Obstacle>) -> Option<Blocker> {
    obstacle.map(|obstacle| obstacle.why)
}

#[test]
fn a_pool_for_local_jobs_needs_nothing_of_github() {
    let mut pool = pool(Trigger::None);
    pool.call_failed(&refused(), Clock::start());
    let decided = pool.decided();
    assert_eq!(decided.registers, Registers::Never);
    assert_eq!((decided.github_obstacle, decided.boot_obstacle), (None, None));
}

#[test]
fn a_pool_whose_registration_is_not_set_up_says_so_until_it_knows_more() {
    let mut pool = pool(Trigger::ScaleSet);
    assert_eq!(pool.decided().registers, Registers::Late);
    let Some(Obstacle { until: None, why: Blocker::Unreachable(_) }) =
        pool.decided().github_obstacle
    else {
        panic!("{:?}", pool.decided());
    };
    pool.call_failed(&refused(), Clock::start());
    let Some(Blocker::Refused(words)) = why(pool.decided().github_obstacle) else {
        panic!("{:?}", pool.decided());
    };
    assert!(words.contains("no such right"), "{words}");
}

#[test]
fn boots_that_fail_wait_longer_each_time_until_one_works() {
    let mut pool = pool(Trigger::None);
    let (mut now, mut waits) = (Millis(0), Vec::new());
    for _ in 0..4 {
        pool.boot_failed(Blocker::BootsFail("kernel panic".to_owned()), now);
        let obstacle = pool.decided().boot_obstacle.unwrap();
        assert_eq!(obstacle.why, Blocker::BootsFail("kernel panic".to_owned()));
        let until = obstacle.until.unwrap();
        waits.push(until.since(now));
        now = until;
    }
    assert!(waits.windows(2).all(|pair| pair[0] < pair[1]), "{waits:?}");
    pool.boot_worked();
    assert_eq!(pool.decided().boot_obstacle, None);
}

#[test]
fn a_rate_limit_lasts_as_long_as_github_says() {
    let mut pool = pool(Trigger::Always);
    assert_eq!(pool.decided().registers, Registers::Always);
    let clock = Clock::start();
    let now = clock.now();
    let limit = Duration::from_secs(1800);
    let limited =
        CallError::RateLimited { call: "GET /x".to_owned(), until: SystemTime::now() + limit };
    pool.call_failed(&limited, clock);
    let obstacle = pool.decided().github_obstacle.unwrap();
    assert_eq!(obstacle.why, Blocker::RateLimited);
    let left = obstacle.until.unwrap().since(now);
    assert!(left > limit / 2 && left < limit * 2, "{left:?}");
}

#[test]
fn runners_that_end_before_a_job_wait_longer_each_time_until_one_has_a_job() {
    let mut pool = pool(Trigger::Poll);
    let (mut now, mut waits) = (Millis(5), Vec::new());
    for _ in 0..4 {
        pool.runner_failed("the runner is too old".to_owned(), now);
        // Each was registered: that is no sign that a runner works.
        pool.call_worked();
        let failure = pool.runner_failure().unwrap();
        assert_eq!(failure.why, Blocker::RunnersFail("the runner is too old".to_owned()));
        let until = failure.until.unwrap();
        waits.push(until.since(now).as_secs());
        now = until;
    }
    assert_eq!(waits, [1, 2, 4, 8]);
    pool.runner_worked();
    assert_eq!(pool.runner_failure(), None);
}

#[test]
fn an_error_is_what_a_person_can_do_about_it() {
    let call = || "GET /x".to_owned();
    let message = || "words".to_owned();
    let source = || "a cause".into();
    let unreachable = [
        CallError::NotSent { call: call(), source: source() },
        CallError::Ambiguous { call: call(), source: source() },
    ];
    for error in unreachable {
        let Blocker::Unreachable(words) = blocker(&error) else { panic!("{error:?}") };
        assert!(words.ends_with(": a cause"), "{words}");
    }
    let refused = [
        refused(),
        CallError::Unauthorized { call: call(), message: message() },
        CallError::NameTaken { call: call() },
        CallError::NotFound { call: call(), message: message(), needs: None },
    ];
    for error in refused {
        assert!(matches!(blocker(&error), Blocker::Refused(_)), "{error:?}");
    }
    let limited = CallError::RateLimited { call: call(), until: SystemTime::now() };
    assert_eq!(blocker(&limited), Blocker::RateLimited);
}

//! Measures one decision for a fleet of 2,000 microVMs and 100,000 jobs a day.
//!
//! Simulates a day on a virtual clock, with a decision after every event. The figures are processor
//! time. Run by `cargo bench --bench decide`.

#![allow(
    clippy::print_stdout,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a benchmark prints results and may panic"
)]
#![allow(missing_docs, reason = "a program")]

#[path = "../src/daemon/decide/fleet.rs"]
mod fleet;
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
#[path = "../src/daemon/decide/world.rs"]
mod world;

use std::time::Duration;

use mayfly_daemon::decide::{
    Action, ActiveBlocker, Backoff, Blocker, Decision, DecisionInput, JobKey, MicrovmKey,
    MicrovmState, Pool, PoolId, RegistrationPolicy, Resources, Stage, WaitingJobs,
};
use mayfly_daemon::time::Millis;

thread_local! {
    static TIMES: std::cell::RefCell<Vec<(Duration, usize)>> =
        const { std::cell::RefCell::new(Vec::new()) };
}

/// Decides and records the time. The simulated world calls it.
fn decide(input: &DecisionInput<'_>) -> Decision {
    let start = processor_time();
    let decision = mayfly_daemon::decide::decide(input);
    let time = processor_time().saturating_sub(start);
    TIMES.with_borrow_mut(|times| times.push((time, input.microvms.len())));
    decision
}

/// Returns the processor time of this thread, which other processes do not affect.
fn processor_time() -> Duration {
    let clock = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID;
    nix::time::clock_gettime(clock).expect("a clock").into()
}

fn main() {
    let (mut world, jobs) = fleet::fleet();
    for (at, pool) in jobs {
        world.run_until(at, Duration::ZERO);
        world.queue(pool);
    }
    let mut times = TIMES.take();
    let all = times.len();
    print(&mut times, &format!("all {all} decisions"));
    times.retain(|(_, microvms)| *microvms >= 1500);
    let busy = times.len();
    print(&mut times, &format!("{busy} with at least 1,500 microVMs"));
    println!("\n{:?}", world.statistics);
}

fn print(times: &mut [(Duration, usize)], what: &str) {
    times.sort_unstable();
    let at = |per_mille: usize| times[(times.len() * per_mille).div_ceil(1000) - 1].0;
    println!("{what}: median {:?}, p99 {:?}, max {:?}", at(500), at(990), at(1000));
}

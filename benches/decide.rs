//! What one decision costs, for a fleet of 2,000 microVMs and 100,000 jobs a day.
//!
//! A day on a virtual clock, a decision after every event; figures are processor time. Run by `cargo bench --bench decide`.

#![allow(
    clippy::print_stdout,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a benchmark talks, and may fail"
)]
#![allow(missing_docs, reason = "a program")]

#[path = "../src/daemon/decide/fleet.rs"]
mod fleet;
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
#[path = "../src/daemon/decide/world.rs"]
mod world;

use std::time::Duration;

use mayfly::daemon::decide::{
    Action, Backoff, Blocker, Decision, JobKey, Load, Machine, MachineKey, Obstacle, Pool, PoolId,
    Registers, Stage, View, Waiting,
};
use mayfly::daemon::millis::Millis;

thread_local! {
    static TIMES: std::cell::RefCell<Vec<(Duration, usize)>> =
        const { std::cell::RefCell::new(Vec::new()) };
}

/// The decision, timed; the world calls it.
fn decide(view: &View<'_>) -> Decision {
    let begin = processor_time();
    let decision = mayfly::daemon::decide::decide(view);
    let time = processor_time().saturating_sub(begin);
    TIMES.with_borrow_mut(|times| times.push((time, view.machines.len())));
    decision
}

/// What this thread used of a processor: what others do on the machine does not count.
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
    times.retain(|(_, machines)| *machines >= 1500);
    let busy = times.len();
    print(&mut times, &format!("{busy} with 1,500 machines and more"));
    println!("\n{:?}", world.tally);
}

fn print(times: &mut [(Duration, usize)], what: &str) {
    times.sort_unstable();
    let at = |per_mille: usize| times[(times.len() * per_mille).div_ceil(1000) - 1].0;
    println!("{what}: median {:?}, p99 {:?}, max {:?}", at(500), at(990), at(1000));
}

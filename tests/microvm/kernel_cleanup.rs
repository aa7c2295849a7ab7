//! Cleanup by the kernel: whichever process is killed, and whenever, nothing remains.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::inventory::{Inventory, Sandbox};
use crate::support::{Host, Running, TIMEOUT, is_long_run, processes, until};

/// The time limit for the cleanup.
const CLEANUP_LIMIT: Duration = Duration::from_secs(1);

/// A sandbox with a host on which a microVM has run, and the inventory after that.
struct Fixture {
    host: Host,
    sandbox: Sandbox,
    before: Inventory,
}

impl Fixture {
    fn new() -> Self {
        let mut host = Host::new();
        let sandbox = Sandbox::around(&mut host);
        // Creates everything permanent (the layout of the state directory) now.
        host.shell("exit 3").assert_code(3);
        let before = sandbox.inventory();
        Self { host, sandbox, before }
    }

    fn start(&self) -> (Running, Pid) {
        let running =
            self.host.start(["--json", "--memory", "256M", "--", "sh", "-c", "sleep 0.3"]);
        let front = Sandbox::find_front(running.pid());
        (running, front)
    }

    /// Checks that everything disappears in time. Returns the time it took.
    fn assert_gone(&self, when: &str) -> Duration {
        let start = Instant::now();
        loop {
            let left = self.sandbox.inventory().added_since(&self.before);
            if left.is_empty() {
                return start.elapsed();
            }
            assert!(
                start.elapsed() < CLEANUP_LIMIT,
                "killed {when}, {:?} later: {left:#?}",
                start.elapsed()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Sends SIGKILL. Fails silently if the process has just exited.
fn kill_process(victim: Pid) {
    let _ = kill(victim, Signal::SIGKILL);
}

#[test]
fn a_successful_run_leaves_nothing() {
    let fixture = Fixture::new();
    let (running, _) = fixture.start();
    running.finish(TIMEOUT).assert_code(0);
    fixture.assert_gone("after its end");
    assert_eq!(fixture.host.microvms().len(), 0);
}

#[test]
fn an_inventory_contains_the_resources_of_a_running_microvm() {
    let fixture = Fixture::new();
    let (mut running, _) = fixture.start();
    running.wait_for_phase("running");
    let there = fixture.sandbox.inventory().added_since(&fixture.before);
    // Without this, the tests below could pass by inspecting nothing.
    for kind in ["process ", "namespace net:", "namespace pid:", "namespace user:", "socket "] {
        assert!(there.iter().any(|line| line.starts_with(kind)), "{kind}: {there:#?}");
    }
    running.finish(TIMEOUT).assert_code(0);
    fixture.assert_gone("after its end");
}

#[test]
fn a_shepherd_killed_in_any_phase_leaves_nothing() {
    let fixture = Fixture::new();
    let mut longest = Duration::ZERO;
    for phase in
        ["planned", "prepared", "booting", "ready", "claimed", "running", "finished", "destroyed"]
    {
        let (mut running, front) = fixture.start();
        running.wait_for_phase(phase);
        if let Some(shepherd) = processes::shepherd(front) {
            kill_process(shepherd);
        }
        longest = longest.max(fixture.assert_gone(&format!("in the phase {phase}")));
        running.finish(TIMEOUT);
    }
    eprintln!("gone after {longest:?} at the latest");
}

#[test]
fn a_shepherd_killed_at_any_moment_leaves_nothing() {
    let fixture = Fixture::new();
    let count = if is_long_run() { 100 } else { 12 };
    let mut longest = Duration::ZERO;
    for round in 0..count {
        let (running, front) = fixture.start();
        // At a random moment in the life of a microVM.
        let moment = Duration::from_micros(random() % 2_200_000);
        let shepherd = until("the shepherd", TIMEOUT, || processes::shepherd(front));
        std::thread::sleep(moment);
        kill_process(shepherd);
        let when = format!("{moment:?} after its start, in round {round}");
        longest = longest.max(fixture.assert_gone(&when));
        running.finish(TIMEOUT);
    }
    eprintln!("{count} times, gone after {longest:?} at the latest");
}

#[test]
fn a_front_end_killed_at_any_moment_leaves_nothing() {
    let fixture = Fixture::new();
    let count = if is_long_run() { 50 } else { 6 };
    let mut longest = Duration::ZERO;
    for round in 0..count {
        let (running, front) = fixture.start();
        let moment = Duration::from_micros(random() % 2_000_000);
        std::thread::sleep(moment);
        kill_process(front);
        let when = format!("{moment:?} after its start, in round {round}");
        longest = longest.max(fixture.assert_gone(&when));
        running.finish(TIMEOUT);
    }
    eprintln!("{count} times, gone after {longest:?} at the latest");
}

fn random() -> u64 {
    u64::from_ne_bytes(mayfly_host::random::<8>().unwrap())
}

//! Gone by construction: whatever is killed and whenever, the kernel takes the rest.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::inventory::{Inventory, Sandbox};
use crate::support::{Host, PATIENCE, Running, long, processes, until};

/// Within this time nothing may be left.
const GONE: Duration = Duration::from_secs(1);

/// A sandbox, a host in it on which one microVM has lived, and what is there then.
struct Scene {
    host: Host,
    sandbox: Sandbox,
    before: Inventory,
}

impl Scene {
    fn set() -> Self {
        let mut host = Host::new();
        let sandbox = Sandbox::around(&mut host);
        // What is made once and stays (the state directory's layout) is made now.
        host.shell("exit 3").assert_code(3);
        let before = sandbox.inventory();
        Self { host, sandbox, before }
    }

    fn start(&self) -> (Running, Pid) {
        let running =
            self.host.start(["--json", "--memory", "256M", "--", "sh", "-c", "sleep 0.3"]);
        let front = Sandbox::front(running.pid());
        (running, front)
    }

    /// Fails unless everything is gone in time. Gives how long it took.
    fn assert_gone(&self, when: &str) -> Duration {
        let start = Instant::now();
        loop {
            let left = self.sandbox.inventory().beyond(&self.before);
            if left.is_empty() {
                return start.elapsed();
            }
            assert!(
                start.elapsed() < GONE,
                "killed {when}, {:?} later: {left:#?}",
                start.elapsed()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Sends SIGKILL. A process that has just ended can't be killed.
fn murder(victim: Pid) {
    let _ = kill(victim, Signal::SIGKILL);
}

#[test]
fn a_run_that_ends_well_leaves_nothing() {
    let scene = Scene::set();
    let (running, _) = scene.start();
    running.finish(PATIENCE).assert_code(0);
    scene.assert_gone("after its end");
    assert_eq!(scene.host.microvms().len(), 0);
}

#[test]
fn an_inventory_sees_what_a_living_microvm_has() {
    let scene = Scene::set();
    let (mut running, _) = scene.start();
    running.wait_for_phase("running");
    let there = scene.sandbox.inventory().beyond(&scene.before);
    // Without this, the tests below would find nothing left wherever they look.
    for kind in ["process ", "namespace net:", "namespace pid:", "namespace user:", "socket "] {
        assert!(there.iter().any(|line| line.starts_with(kind)), "{kind}: {there:#?}");
    }
    running.finish(PATIENCE).assert_code(0);
    scene.assert_gone("after its end");
}

#[test]
fn a_shepherd_killed_in_any_phase_leaves_nothing() {
    let scene = Scene::set();
    let mut longest = Duration::ZERO;
    for phase in
        ["planned", "prepared", "booting", "ready", "claimed", "running", "finished", "destroyed"]
    {
        let (mut running, front) = scene.start();
        running.wait_for_phase(phase);
        if let Some(shepherd) = processes::shepherd(front) {
            murder(shepherd);
        }
        longest = longest.max(scene.assert_gone(&format!("in the phase {phase}")));
        running.finish(PATIENCE);
    }
    eprintln!("gone after {longest:?} at the latest");
}

#[test]
fn a_shepherd_killed_at_any_moment_leaves_nothing() {
    let scene = Scene::set();
    let count = if long() { 100 } else { 12 };
    let mut longest = Duration::ZERO;
    for round in 0..count {
        let (running, front) = scene.start();
        // At a moment drawn from the whole life of a microVM.
        let moment = Duration::from_micros(random() % 2_200_000);
        let shepherd = until("the shepherd", PATIENCE, || processes::shepherd(front));
        std::thread::sleep(moment);
        murder(shepherd);
        let when = format!("{moment:?} after its start, in round {round}");
        longest = longest.max(scene.assert_gone(&when));
        running.finish(PATIENCE);
    }
    eprintln!("{count} times, gone after {longest:?} at the latest");
}

#[test]
fn a_front_end_killed_at_any_moment_leaves_nothing() {
    let scene = Scene::set();
    let count = if long() { 50 } else { 6 };
    let mut longest = Duration::ZERO;
    for round in 0..count {
        let (running, front) = scene.start();
        let moment = Duration::from_micros(random() % 2_000_000);
        std::thread::sleep(moment);
        murder(front);
        let when = format!("{moment:?} after its start, in round {round}");
        longest = longest.max(scene.assert_gone(&when));
        running.finish(PATIENCE);
    }
    eprintln!("{count} times, gone after {longest:?} at the latest");
}

fn random() -> u64 {
    u64::from_ne_bytes(mayfly::host::random::<8>().unwrap())
}

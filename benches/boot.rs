//! Measures the cost of a microVM beyond that of booting a kernel.
//!
//! The floor is the same kernel, modules, and QEMU machine, with its disk attached but not mounted,
//! and an init that powers off once its drivers are loaded: from QEMU's start to its exit. Runs of
//! the real image, from the command to `Ready`, are interleaved with it.
//!
//! Run by `scripts/bench boot`. The figures depend on the machine; the ratio is what matters.

#![allow(
    clippy::print_stdout,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a benchmark prints results and may panic"
)]
#![allow(missing_docs, reason = "a program")]

#[allow(dead_code, reason = "shared with the tests, which use all of it")]
#[path = "../tests/microvm/support/mod.rs"]
mod support;

use serde_json::Value;
use support::image::TestImage;
use support::{CommandOutput, Host};

/// Runs of each kind.
const ROUNDS: usize = 20;

fn main() {
    let host = Host::new();
    TestImage::floor().install(&host);
    let mut floor = Sample::new("floor: QEMU's start to the exit of a trivial init");
    let mut ready = Sample::new("mayfly run: the command to Ready");
    let mut own = Sample::new("  before QEMU's start");
    let mut end = Sample::new("end of the job to Destroyed");
    let mut resident = Sample::new("the shepherd's resident memory, KiB");
    // The first runs verify the images and warm the caches.
    for round in 0..=ROUNDS {
        let trivial = host.run(["--accel", "tcg", "--json", "--image", "floor", "--", "true"]);
        let real = run_and_measure(&host, &mut resident);
        if round == 0 {
            continue;
        }
        floor.add(at(&trivial, "failed") - at(&trivial, "booting"));
        ready.add(at(&real, "ready"));
        own.add(at(&real, "booting"));
        end.add(at(&real, "destroyed") - at(&real, "finished"));
    }
    println!("{ROUNDS} rounds, interleaved; milliseconds unless noted\n");
    println!("{:<52} {:>9} {:>9}", "", "median", "p95");
    for sample in [&floor, &ready, &own, &end, &resident] {
        println!("{:<52} {:>9.1} {:>9.1}", sample.name, sample.median(), sample.percentile(95));
    }
    let ratio = |part: fn(&Sample) -> f64| part(&ready) / part(&floor);
    println!(
        "\nReady over the floor: {:.2} (median), {:.2} (p95)",
        ratio(Sample::median),
        ratio(|sample| sample.percentile(95))
    );
}

/// Runs the real image and measures its shepherd while the job runs.
fn run_and_measure(host: &Host, resident: &mut Sample) -> CommandOutput {
    let mut running = host.start(["--accel", "tcg", "--json", "--", "sleep", "0.3"]);
    running.wait_for_phase("running");
    let shepherd = support::processes::shepherd(running.pid()).expect("a shepherd");
    let size = support::processes::size(shepherd, "VmRSS").expect("a size");
    resident.add(f64::from(u32::try_from(size / 1024).expect("a small size")));
    running.finish(support::TIMEOUT)
}

/// Returns the start of a phase, in milliseconds since the command.
fn at(ending: &CommandOutput, phase: &str) -> f64 {
    let event = ending.events().into_iter().find(|event| event["happened"]["phase"] == phase);
    event.as_ref().and_then(|event| event["elapsed_ms"].as_f64()).unwrap_or_else(|| {
        let events: Vec<Value> = ending.events();
        panic!("no phase {phase} in {events:?}")
    })
}

struct Sample {
    name: &'static str,
    values: Vec<f64>,
}

impl Sample {
    fn new(name: &'static str) -> Self {
        Self { name, values: Vec::new() }
    }

    fn add(&mut self, value: f64) {
        self.values.push(value);
        self.values.sort_by(f64::total_cmp);
    }

    fn median(&self) -> f64 {
        self.percentile(50)
    }

    /// Returns a percentile (nearest-rank).
    fn percentile(&self, percent: usize) -> f64 {
        self.values[(self.values.len() * percent).div_ceil(100) - 1]
    }
}

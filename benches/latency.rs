//! Measures how long a GitHub job waits for its runner, and Mayfly's share of that.
//!
//! A simulated GitHub queues one job at a time and notifies `mayfly serve` by webhook: with a warm
//! microVM (`min_idle = 1`), and scaled to zero. The total is the time from the queue to the
//! runner's first request. Mayfly's share ends with the shepherd's event that the job is claimed,
//! without the boot. The guest and the start of the runner take the rest.
//!
//! Run by `scripts/bench latency`. The figures depend on the machine.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_precision_loss,
    reason = "a benchmark prints results and may panic; its figures are small"
)]
#![allow(missing_docs, reason = "a program")]

#[allow(dead_code, reason = "shared with the tests, which use all of it")]
#[path = "../tests/daemon/daemon.rs"]
mod daemon;
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
#[path = "../tests/daemon/service.rs"]
mod service;
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
#[path = "../tests/microvm/support/mod.rs"]
mod support;

use mayfly_github_sim::Settings;
use serde_json::Value;
use service::{JOB_TIMEOUT, Pool, Service};

/// Jobs of each kind.
const ROUNDS: usize = 12;

fn main() {
    println!("{ROUNDS} jobs each; milliseconds\n");
    println!("{:<58} {:>9} {:>9}", "", "median", "p95");
    measure("with a warm microVM", 1);
    measure("scaled to zero", 0);
}

fn measure(name: &str, min_idle: u32) {
    let pool = Pool { trigger: "webhook", min_idle, max: 2 };
    let service = Service::start(Settings::default(), &pool);
    let mut total = Sample::new("queued to the runner's first request");
    let mut boot = Sample::new("  boot of the microVM, planned to ready");
    let mut own = Sample::new("  Mayfly's share");
    let mut rest = Sample::new("  start of the guest's job and of the runner");
    // The first verifies the image and warms the caches.
    for round in 0..=ROUNDS {
        wait_for_warm(&service, min_idle);
        let (job, number) = (service.queue(&["true"]), round + 1);
        assert!(service.github.wait_for_all(JOB_TIMEOUT), "{}", service.log());
        let job = service.github.job(job).expect("the job");
        let exchanges = service.github.exchanges();
        let request = exchanges.iter().rev().find(|one| one.path.ends_with("generate-jitconfig"));
        let requested_at = request.expect("a request for a JIT configuration").at;
        let phases = phases(&service, number);
        let [planned, ready, claimed] =
            ["planned", "ready", "claimed"].map(|phase| at(&phases, phase));
        if round == 0 {
            continue;
        }
        let (queued, connected) = (job.queued_at, job.connected_at.expect("a runner connected"));
        let boots = if min_idle == 0 { ready - planned } else { 0 };
        total.add(connected - queued);
        boot.add(boots);
        own.add((claimed - queued).saturating_sub(boots));
        rest.add(connected - claimed);
        assert!(requested_at >= queued, "the runner was not registered for this job");
    }
    println!("{name}");
    for sample in [&total, &boot, &own, &rest] {
        println!("  {:<56} {:>9} {:>9}", sample.name, sample.percentile(50), sample.percentile(95));
    }
    service.finish();
}

/// Waits until exactly this number of warm microVMs, and no others, exist.
fn wait_for_warm(service: &Service, warm: u32) {
    support::until("warm microVMs and no others", JOB_TIMEOUT, || {
        let pools = service.daemon.ask(&["pools"]);
        let count = |stage: &str| pools[0][stage].as_u64();
        let others = ["booting", "registered", "busy", "ending"].iter().map(|stage| count(stage));
        let others: u64 = others.map(Option::unwrap_or_default).sum();
        (count("warm") == Some(u64::from(warm)) && others == 0).then_some(())
    });
}

/// Returns the phases of a job from the daemon.
fn phases(service: &Service, job: usize) -> Value {
    support::until("the end of the job in the ledger", JOB_TIMEOUT, || {
        let explanation = service.daemon.ask(&["explain", &job.to_string()]);
        (explanation["job"]["state"] == "finished").then(|| explanation["phases"].clone())
    })
}

/// Returns the start of a phase, in milliseconds since the Unix epoch.
fn at(phases: &Value, phase: &str) -> u64 {
    let phases = phases.as_array().expect("a list");
    let found = phases.iter().find(|one| one["phase"] == phase);
    let time = found.and_then(|one| one["at"].as_str()).unwrap_or_else(|| panic!("no {phase}"));
    let time = humantime::parse_rfc3339(time).expect("a time");
    let since = time.duration_since(std::time::SystemTime::UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_millis()).expect("a small number")
}

struct Sample {
    name: &'static str,
    values: Vec<u64>,
}

impl Sample {
    fn new(name: &'static str) -> Self {
        Self { name, values: Vec::new() }
    }

    fn add(&mut self, value: u64) {
        self.values.push(value);
        self.values.sort_unstable();
    }

    /// Returns a percentile (nearest-rank).
    fn percentile(&self, percent: usize) -> u64 {
        self.values[(self.values.len() * percent).div_ceil(100) - 1]
    }
}

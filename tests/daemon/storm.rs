//! All faults of GitHub at once, all the time: each job still runs exactly once, or is reported
//! with its cause, and nothing is left.

use std::fs;
use std::time::{Duration, Instant};

use mayfly_github_sim::state::jobs::Job;
use mayfly_github_sim::{Class, Conclusion, Fault, Rule, Settings, Simulator, Status};

use super::service::{DaemonSettings, JOB_TIMEOUT, Pool, Service, assert_no_violations};
use super::support::is_long_run;

/// The probability of each fault for each class of calls.
const SHARE: f64 = 0.05;

/// The number of jobs that wait or run at the same time.
const AT_ONCE: usize = 16;

/// The maximum number of calls per job. It includes polls: each waiting run is a call of every
/// poll.
const MOST_CALLS: u64 = 80;

/// Faults that any call of the daemon may have.
const OF_CALLS: [Fault; 7] = [
    Fault::ServerError,
    Fault::ServerErrorAfterEffect,
    Fault::CutBody,
    Fault::LostAnswer,
    Fault::Forbidden { retry_after: 1 },
    Fault::TooManyRequests { retry_after: 1 },
    Fault::RevokedToken,
];

/// The calls of the daemon.
const CALLS: [Class; 7] = [
    Class::Authentication,
    Class::Mint,
    Class::Runners,
    Class::Delete,
    Class::Runs,
    Class::ScaleSet,
    Class::Messages,
];

fn faults() -> Vec<Rule> {
    let of_calls = CALLS.into_iter().flat_map(|class| OF_CALLS.map(|fault| (class, fault)));
    let others = [
        (Class::Mint, Fault::Conflict),
        (Class::Delete, Fault::Conflict),
        (Class::ScaleSet, Fault::Conflict),
        (Class::Mint, Fault::ExpiredJit),
        (Class::Mint, Fault::RemovedIdle { after: 300 }),
        (Class::Webhook, Fault::DuplicateWebhook),
        (Class::Webhook, Fault::LateWebhook { by: 10_000 }),
        (Class::Webhook, Fault::LostWebhook),
        (Class::Messages, Fault::ExpiredQueueToken),
        (Class::Job, Fault::ServerError),
    ];
    of_calls.chain(others).map(|(class, fault)| Rule::share(class, fault, SHARE)).collect()
}

#[test]
fn every_job_runs_once_whatever_goes_wrong_at_github() {
    let jobs: u32 = if is_long_run() { 200 } else { 24 };
    let github = Settings {
        faults: faults(),
        lost_answer_hold: 300,
        // A quarter of an hour ahead: a token by this host's clock would be invalid there.
        clock_skew: 900_000,
        poll_hold: 5_000,
        session_life: 10_000,
        seed: 4,
        ..Settings::default()
    };
    let pool = |trigger| Pool { trigger, min_idle: 0, max: 2 };
    let (hook, set) = (pool("webhook"), pool("scale-set"));
    let written = DaemonSettings {
        github: "poll = \"20s\"\nreconcile = \"30s\"",
        host: "cpus = 4\nmemory = \"4G\"\ndrain = \"5m\"",
        pools: &[("hook", &hook), ("set", &set)],
        ..DaemonSettings::default()
    };
    let mut service = Service::configure(github, &written);
    service.serve();
    let start = Instant::now();
    for number in 0..jobs {
        let room = service.github.wait(JOB_TIMEOUT, |state| {
            let open = state.jobs.values().filter(|job| job.status != Status::Completed);
            open.count() < AT_ONCE
        });
        assert!(room, "no job ends: {:?}\n{}", service.github.summary(), service.log());
        let pool = if number % 2 == 0 { "hook" } else { "set" };
        service.queue_for(pool, &["cat /proc/sys/kernel/random/boot_id"]);
    }
    let ended = service.github.wait_for_all(JOB_TIMEOUT);
    let took = start.elapsed();
    assert!(ended, "unfinished jobs: {:?}\n{}", service.github.summary(), service.log());
    assert_once(&service, took);
    let root = service.daemon.host.root().to_owned();
    let Service { github, daemon } = service;
    for failed in daemon.finish_with_evidence() {
        eprintln!("a microVM failed: {failed}");
    }
    assert_few_calls(&github, jobs);
    assert_no_violations(&github);
    // Only a mount lets a namespace outlive its processes.
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let left: Vec<_> =
        mounts.lines().filter(|line| line.contains(&*root.to_string_lossy())).collect();
    assert_eq!(left, Vec::<&str>::new(), "mounts remain");
}

/// Panics if a job ran twice, or did not run and has no cause.
fn assert_once(service: &Service, took: Duration) {
    let all: Vec<Job> = service.github.with(|state, _| state.jobs.values().cloned().collect());
    let known = service.known_jobs();
    let mut once = 0;
    for job in &all {
        let Job { id, conclusion, annotation, started_runs, .. } = job;
        assert!(started_runs.len() <= 1, "job {id} ran more than once");
        if *conclusion == Some(Conclusion::Success) && started_runs.len() == 1 {
            once += 1;
            continue;
        }
        let record = known.iter().find(|record| record["github_id"] == *id);
        eprintln!("job {id}: {conclusion:?}, {annotation:?}, {record:?}");
        let cause = record.and_then(|record| record["cause"].as_str());
        assert!(annotation.is_some() || cause.is_some(), "job {id} failed without a cause");
    }
    eprintln!("{once} of {} jobs ran exactly once, in {took:.0?}", all.len());
}

/// Prints the faults and calls. Panics if there were too many calls.
fn assert_few_calls(github: &Simulator, jobs: u32) {
    let summary = github.summary();
    eprintln!("what went wrong: {:#?}", summary.faults);
    let mut sum = 0;
    for (call, count) in summary.calls.iter().filter(|(call, _)| !call.contains("/_sim/runner")) {
        eprintln!("{count:7} {:7.2} for each job  {call}", each(*count, jobs));
        sum += count;
    }
    eprintln!("{sum} calls, {:.1} for each job", each(sum, jobs));
    assert!(sum <= MOST_CALLS * u64::from(jobs), "{sum} calls for {jobs} jobs");
}

#[expect(clippy::cast_precision_loss, reason = "only printed")]
fn each(count: u64, jobs: u32) -> f64 {
    count as f64 / f64::from(jobs)
}

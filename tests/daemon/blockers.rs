//! Waiting jobs, and the reasons that `mayfly explain` shows.

use mayfly_github_sim::{Settings, Status};

use super::service::{DaemonSettings, JOB_TIMEOUT, Pool, Service};

/// The script of a job that occupies its microVM until the test cancels it.
const HOLD: &str = "sleep 3600";

/// Waits until a job has started.
fn wait_for_start(service: &Service, job: u64) {
    let started =
        service.github.wait(JOB_TIMEOUT, |state| !state.jobs[&job].started_runs.is_empty());
    assert!(started, "{}", service.log());
}

/// Cancels jobs, and waits until they have ended.
fn cancel(service: &Service, jobs: &[u64]) {
    for job in jobs {
        assert!(service.github.with(|state, now| state.cancel(*job, now)));
    }
    let ended = service.github.wait(JOB_TIMEOUT, |state| {
        jobs.iter().all(|job| state.jobs[job].status == Status::Completed)
    });
    assert!(ended, "{}", service.log());
}

#[test]
fn a_job_that_no_pool_matches_and_one_too_many_are_told_apart() {
    let pool = Pool { trigger: "webhook", min_idle: 0, max: 1 };
    let service = Service::start(Settings::default(), &pool);
    let stranger = service.queue_for("nobody", &["true"]);
    let blocker = service.wait_for_blocker(stranger, "no_pool");
    let labels = "\"self-hosted\", \"nobody\"";
    assert!(blocker["message"].as_str().unwrap().contains(labels), "{blocker}");
    let first = service.queue(&[HOLD]);
    wait_for_start(&service, first);
    let second = service.queue(&[HOLD]);
    service.wait_for_blocker(second, "pool_at_max");
    let job = service.github.job(stranger).unwrap();
    assert_eq!((job.status, job.runner), (Status::Queued, None), "the job was served");
    cancel(&service, &[stranger, second, first]);
    service.finish();
}

#[test]
fn a_job_that_waits_for_the_hosts_budget_is_told_so() {
    let pool = Pool { trigger: "poll", min_idle: 0, max: 2 };
    let written = DaemonSettings {
        github: "poll = \"1s\"",
        host: "cpus = 1",
        pools: &[("test", &pool), ("other", &pool)],
        ..DaemonSettings::default()
    };
    let mut service = Service::configure(Settings::default(), &written);
    service.serve();
    let first = service.queue(&[HOLD]);
    wait_for_start(&service, first);
    let second = service.queue_for("other", &["true"]);
    service.wait_for_blocker(second, "host_budget");
    cancel(&service, &[first]);
    service.wait_for_all(2);
    service.finish();
}

//! Jobs from GitHub's queue to their result.

use mayfly_github_sim::{Conclusion, Settings};

use super::service::{Pool, Service};

#[test]
fn each_job_runs_once_in_a_microvm_of_its_own_and_leaves_nothing() {
    let pool = Pool { trigger: "webhook", min_idle: 1, max: 2 };
    let service = Service::start(Settings::default(), &pool);
    let print_boot = "echo boot $(cat /proc/sys/kernel/random/boot_id)";
    let jobs: Vec<u64> = (0..3).map(|_| service.queue(&[print_boot])).collect();
    service.wait_for_all(3);
    let listed = service.daemon.ask(&["jobs"]);
    let mut boots: Vec<String> = Vec::new();
    for job in jobs {
        let job = service.github.job(job).unwrap();
        assert_eq!(job.conclusion, Some(Conclusion::Success), "{}", job.log);
        let page = format!("/octo/hello/actions/runs/{}/job/{}", job.run_id, job.id);
        assert!(listed.to_string().contains(&page), "{page}: {listed:#}");
        let boot = job.log.lines().find(|line| line.starts_with("boot "));
        boots.push(boot.unwrap_or_else(|| panic!("no boot: {:?}", job.log)).to_owned());
    }
    boots.sort();
    boots.dedup();
    assert_eq!(boots.len(), 3, "{boots:?}");
    super::telemetry::assert_served_github(&service.daemon, 3);
    service.finish();
}

#[test]
fn a_job_that_fails_is_reported_as_failed() {
    let pool = Pool { trigger: "poll", min_idle: 0, max: 1 };
    let service = Service::start(Settings::default(), &pool);
    let job = service.queue(&["exit 7"]);
    service.wait_for_all(1);
    assert_eq!(service.github.job(job).unwrap().conclusion, Some(Conclusion::Failure));
    service.finish();
}

#[test]
fn a_running_job_survives_that_the_daemon_is_killed() {
    let pool = Pool { trigger: "webhook", min_idle: 0, max: 1 };
    let mut service = Service::start(Settings::default(), &pool);
    let job = service.queue(&["sleep 10", "echo survived"]);
    let started = service.github.wait(super::service::JOB_TIMEOUT, |state| {
        state.jobs.values().all(|job| !job.started_runs.is_empty())
    });
    assert!(started, "{}", service.log());
    service.kill();
    service.serve();
    service.wait_for_all(1);
    let job = service.github.job(job).unwrap();
    assert_eq!(job.conclusion, Some(Conclusion::Success), "{:?}", job.annotation);
    assert!(job.log.contains("survived"), "{}", job.log);
    service.finish();
}

//! Each trigger, once from end to end. Webhooks and polls are in `jobs`.

use mayfly_github_sim::state::State;
use mayfly_github_sim::{Conclusion, Settings};

use super::service::{JOB_TIMEOUT, Pool, Service};
use super::support::until;

/// Returns how often calls with a given part in their name were made.
fn calls(service: &Service, part: &str) -> u64 {
    let summary = service.github.summary();
    summary.calls.iter().filter(|(call, _)| call.contains(part)).map(|(_, count)| count).sum()
}

/// Panics unless a job has succeeded.
fn assert_success(service: &Service, job: u64) {
    let job = service.github.job(job).unwrap();
    assert_eq!(job.conclusion, Some(Conclusion::Success), "{:?}\n{}", job.annotation, job.log);
}

const SCALE_SET: &str = "POST /_apis/runtime/runnerscalesets/{n}/generatejitconfig";
const SCOPE: &str = "POST /orgs/octo/actions/runners/generate-jitconfig";
const POLL: &str = "GET /repos/octo/hello/actions/runs";

#[test]
fn a_scale_set_hands_over_the_jobs_that_wait_and_those_that_come() {
    let service = Service::prepare(
        Settings { poll_hold: 5_000, ..Settings::default() },
        &Pool { trigger: "scale-set", min_idle: 0, max: 1 },
    );
    let before = service.queue(&["echo before"]);
    let mut service = service;
    service.serve();
    let has_session = service
        .github
        .wait(JOB_TIMEOUT, |state| state.scale_sets.values().any(|set| set.session.is_some()));
    assert!(has_session, "{}", service.log());
    let after = service.queue(&["echo after"]);
    service.wait_for_all(2);
    assert_success(&service, before);
    assert_success(&service, after);
    assert_eq!((calls(&service, SCALE_SET), calls(&service, SCOPE)), (2, 0));
    assert_eq!(calls(&service, POLL), 0, "a scale set needs no polls");
    let shared = service.github.with(|state, _| {
        state.scale_sets.values().map(|set| set.labels.clone()).collect::<Vec<_>>()
    });
    assert_eq!(shared.len(), 1, "{shared:?}");
    service.finish_with(|github| {
        let open = github
            .with(|state, _| state.scale_sets.values().filter(|set| set.session.is_some()).count());
        assert_eq!(open, 0, "a session remains");
    });
}

/// Waits until exactly these groups have scale sets.
#[track_caller]
fn wait_for_sets(service: &Service, groups: &[u64]) {
    let groups_of = |state: &State| state.scale_sets.values().map(|set| set.group).collect();
    until(&format!("scale sets in {groups:?}"), JOB_TIMEOUT, || {
        let found: Vec<_> = service.github.with(|state, _| groups_of(state));
        (found == groups).then_some(())
    });
}

/// Changes the daemon's settings.
fn rewrite(service: &Service, from: &str, to: &str) {
    let path = service.daemon.host.root().join("mayfly.toml");
    let before = std::fs::read_to_string(&path).unwrap();
    let after = before.replace(from, to);
    assert_ne!(after, before);
    std::fs::write(&path, after).unwrap();
}

#[test]
fn a_pool_that_is_moved_to_another_group_leaves_no_scale_set_in_the_old_one() {
    let pool = Pool { trigger: "scale-set", min_idle: 0, max: 1 };
    let settings = Settings { poll_hold: 5_000, ..Settings::default() };
    let service = Service::start(settings, &pool);
    wait_for_sets(&service, &[1]);
    rewrite(&service, "trigger =", "runner_group = \"builders\"\ntrigger =");
    service.daemon.run(&["reload"]).assert_code(0);
    wait_for_sets(&service, &[3]);
    let job = service.queue(&["echo ran"]);
    service.wait_for_all(1);
    assert_success(&service, job);
    service.finish();
}

#[test]
fn a_scale_set_that_was_left_is_removed_by_the_next_daemon() {
    let pool = Pool { trigger: "scale-set", min_idle: 0, max: 1 };
    let settings = Settings { poll_hold: 5_000, ..Settings::default() };
    let mut service = Service::start(settings, &pool);
    wait_for_sets(&service, &[1]);
    // Moved while no daemon runs.
    service.kill();
    rewrite(&service, "trigger =", "runner_group = \"builders\"\ntrigger =");
    service.serve();
    wait_for_sets(&service, &[3]);
    // Another trigger needs no scale set.
    service.kill();
    rewrite(&service, "\"scale-set\"", "\"poll\"");
    service.serve();
    wait_for_sets(&service, &[]);
    service.finish();
}

#[test]
fn a_pool_that_is_always_registered_waits_for_jobs_with_a_runner() {
    let pool = Pool { trigger: "always", min_idle: 1, max: 1 };
    let service = Service::start(Settings::default(), &pool);
    let listens = service
        .github
        .wait(JOB_TIMEOUT, |state| state.runners.values().any(|runner| runner.session.is_some()));
    assert!(listens, "no runner listens\n{}", service.log());
    let job = service.queue(&["echo ran"]);
    service.wait_for_all(1);
    assert_success(&service, job);
    let job = service.github.job(job).unwrap();
    assert!(
        job.connected_at.unwrap() <= job.queued_at,
        "the runner connected after its job was queued"
    );
    // The next runner waits for the next job, and is removed with the daemon.
    let again = service.github.wait(JOB_TIMEOUT, |state| {
        state.runners.values().any(|runner| runner.session.is_some() && runner.job.is_none())
    });
    assert!(again, "no second runner listens\n{}", service.log());
    service.finish();
}

#[test]
fn auto_is_a_scale_set_where_there_are_such() {
    let service = Service::start(
        Settings { poll_hold: 5_000, ..Settings::default() },
        &Pool { trigger: "auto", min_idle: 1, max: 1 },
    );
    let job = service.queue(&["echo ran"]);
    service.wait_for_all(1);
    assert_success(&service, job);
    assert_eq!((calls(&service, SCALE_SET), calls(&service, SCOPE)), (1, 0));
    service.finish();
}

#[test]
fn auto_polls_where_scale_sets_are_refused() {
    let service = Service::start(
        Settings { scale_sets: false, ..Settings::default() },
        &Pool { trigger: "auto", min_idle: 0, max: 1 },
    );
    let job = service.queue(&["echo ran"]);
    service.wait_for_all(1);
    assert_success(&service, job);
    assert_eq!((calls(&service, SCALE_SET), calls(&service, SCOPE)), (0, 1));
    assert!(calls(&service, POLL) > 0);
    service.finish();
}

//! Several daemons: only one per state directory, any number per GitHub scope.

use mayfly_github_sim::{Conclusion, Settings};

use super::daemon::{Daemon, local};
use super::service::{Pool, Service};
use super::support::{Running, TIMEOUT};

#[test]
fn a_second_daemon_on_a_state_directory_is_refused_and_harms_nothing() {
    let mut daemon = Daemon::serving(&local("", "max = 1"));
    let job = daemon.submit("echo begun; sleep 5; echo done");
    daemon.wait_for(&job, &["running"]);
    let second = Running::start(&mut daemon.command(&["serve"])).finish(TIMEOUT);
    second.assert_code(69).assert_stderr_has("another daemon has the ledger");
    second.assert_stderr_has("use a different state directory");
    // The first still responds on the same socket.
    daemon.wait_for(&job, &["finished"]);
    daemon.run(&["logs", &job]).assert_output("begun\ndone\n");
    assert!(daemon.is_running());
    daemon.finish();
}

#[test]
fn daemons_of_one_scope_leave_each_others_runners_alone() {
    // The first has a registered runner that waits for jobs with other labels.
    let pool = Pool { trigger: "always", min_idle: 1, max: 1 };
    let first = Service::start(Settings::default(), &pool);
    let registered = |state: &mayfly_github_sim::state::State, count: usize| {
        state.runners.values().filter(|runner| runner.session.is_some()).count() == count
    };
    let listens = first.github.wait(super::service::JOB_TIMEOUT, |state| registered(state, 1));
    assert!(listens, "{}", first.log());
    let its = first.github.summary().registered;

    // The second lists the runners when it starts, and again after it was killed and restarted.
    let mut second = first.second_daemon(&Pool { trigger: "poll", min_idle: 0, max: 1 }, "other");
    second.serve();
    let queue = |steps: &[&str]| first.queue_for("other", steps);
    let job = queue(&["echo hello", "sleep 5"]);
    let runs = first.github.wait(super::service::JOB_TIMEOUT, |state| {
        state.jobs.values().all(|job| !job.started_runs.is_empty())
    });
    assert!(runs, "{}", second.log());
    second.kill();
    second.serve();
    first.wait_for_all(1);
    assert_eq!(first.github.job(job).unwrap().conclusion, Some(Conclusion::Success));
    second.finish();
    assert_eq!(first.github.summary().registered, its, "{}", first.log());
    first.finish();
}

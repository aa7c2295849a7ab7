//! Draining, and reloads of the settings.

use nix::sys::signal::Signal;
use serde_json::Value;

use super::daemon::{DRAIN_TIMEOUT, Daemon, JOB_TIMEOUT, local, pool_of};
use super::support::{TIMEOUT, processes, until};

/// Drains a daemon by a signal or a command.
fn drain(daemon: &Daemon, by_signal: bool) {
    if by_signal {
        daemon.signal(Signal::SIGTERM);
    } else {
        let report = daemon.ask(&["drain"]);
        assert_eq!((&report["running"], &report["queued"]), (&1.into(), &1.into()), "{report:#}");
    }
    until("a draining daemon", TIMEOUT, || {
        daemon.ask(&["status"])["draining"].as_bool().unwrap().then_some(())
    });
}

#[test]
fn a_draining_daemon_ends_with_its_running_jobs_and_takes_no_more() {
    for by_signal in [true, false] {
        let mut daemon = Daemon::serving(&local("drain = '1h'", "max = 1"));
        let first = daemon.submit("echo begun; sleep 8; echo done");
        let second = daemon.submit("echo later");
        daemon.wait_for(&first, &["running"]);
        drain(&daemon, by_signal);
        let refused = daemon.run(&["submit", "--pool", "test", "--", "true"]);
        refused.assert_code(69).assert_stderr_has("the daemon is draining");
        let waiting = daemon.ask(&["explain", &second]);
        assert_eq!(waiting["blocker"]["code"], "draining", "{waiting:#}");
        let status = daemon.wait_for_exit(JOB_TIMEOUT);
        assert!(status.success(), "{status}: {}", daemon.log());
        daemon.host.assert_clean();
        let ended =
            daemon.ledger().job(mayfly_ledger::JobId(first.parse().unwrap())).unwrap().unwrap();
        assert_eq!(ended.exit_code, Some(0), "{ended:?}");

        daemon.serve();
        daemon.wait_for(&second, &["finished"]);
        daemon.run(&["logs", &first]).assert_output("begun\ndone\n");
        daemon.run(&["logs", &second]).assert_output("later\n");
        daemon.finish();
    }
}

#[test]
fn a_job_that_outlasts_the_drain_is_taken_back_by_the_next_daemon() {
    // Past the deadline, or on a second signal: the job continues in both cases.
    for deadline in ["1s", "1h"] {
        let mut daemon = Daemon::serving(&local(&format!("drain = '{deadline}'"), "max = 1"));
        let job = daemon.submit("echo begun; sleep 15; echo done");
        daemon.wait_for(&job, &["running"]);
        daemon.signal(Signal::SIGTERM);
        if deadline == "1h" {
            until("a draining daemon", TIMEOUT, || {
                daemon.ask(&["status"])["draining"].as_bool().unwrap().then_some(())
            });
            daemon.signal(Signal::SIGTERM);
        }
        let status = daemon.wait_for_exit(DRAIN_TIMEOUT);
        assert!(status.success(), "{status}: {}", daemon.log());
        assert!(daemon.log().contains("the next daemon adopts them"), "{}", daemon.log());
        assert!(!processes::mentioning(daemon.host.root()).is_empty(), "the job has ended");
        daemon.run(&["status"]).assert_code(69).assert_stderr_has("start one with `mayfly serve`");

        daemon.serve();
        let ended = daemon.wait_for(&job, &["finished"]);
        assert_eq!(ended["exit_code"], 0, "{ended:#}");
        daemon.run(&["logs", &job]).assert_output("begun\ndone\n");
        daemon.finish();
    }
}

/// Returns whether a list of a report has a key.
fn has(report: &Value, list: &str, key: &str) -> bool {
    report[list].as_array().unwrap().iter().any(|found| found == key)
}

#[test]
fn changed_settings_take_effect_and_wrong_ones_do_not() {
    let daemon = Daemon::serving(&local("", "max = 1"));
    let first = daemon.submit("sleep 3600");
    let second = daemon.submit("sleep 3600");
    daemon.wait_for(&first, &["running"]);
    assert_eq!(daemon.ask(&["explain", &second])["blocker"]["code"], "pool_at_max");

    daemon.configure(&local("", "max = 2"));
    let report = daemon.ask(&["reload"]);
    assert!(has(&report, "applied", "pool.test.max"), "{report:#}");
    daemon.wait_for(&second, &["running"]);

    daemon.configure(&(local("socket_mode = '0660'", "max = 2") + &pool_of("more", "max = 1")));
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_pool("its settings", "more", |pool| pool["max"] == 1);
    let log = daemon.log();
    assert!(log.contains("settings reloaded") && log.contains("host.socket_mode"), "{log}");
    let more = daemon.run(&["submit", "--pool", "more", "--wait", "--", "true"]);
    more.assert_code(0);

    daemon.configure(&local("", "max = 'many'"));
    daemon.run(&["reload"]).assert_code(78).assert_stderr_has("max");
    daemon.signal(Signal::SIGHUP);
    until("a rejected reload", TIMEOUT, || {
        daemon.log().contains("keeping the current ones").then_some(())
    });
    assert_eq!(daemon.pool("test").unwrap()["max"], 2);
    assert!(daemon.pool("more").is_some());

    daemon.configure(&(local("socket_mode = '0660'", "max = 2") + &pool_of("more", "max = 1")));
    let report = daemon.ask(&["reload"]);
    assert!(has(&report, "needs_restart", "host.socket_mode"), "{report:#}");
    let text = daemon.run(&["reload"]).assert_code(0).text();
    assert!(text.contains("needs restart  host.socket_mode"), "{text}");
    for job in [&first, &second] {
        daemon.run(&["cancel", job]).assert_code(0);
    }
    daemon.finish();
}

#[test]
fn a_pool_that_is_removed_keeps_what_runs_and_drops_what_waits() {
    let keep = local("", "max = 1");
    let daemon = Daemon::serving(&(keep.clone() + &pool_of("gone", "max = 1")));
    let submit = |script: &str| {
        let submit = ["submit", "--pool", "gone", "--", "sh", "-c", script];
        daemon.run(&submit).assert_code(0).text().trim().to_owned()
    };
    let (runs, waits) = (submit("echo begun; sleep 10; echo done"), submit("echo never"));
    daemon.wait_for(&runs, &["running"]);

    daemon.configure(&keep);
    let report = daemon.ask(&["reload"]);
    assert!(has(&report, "applied", "pool.gone.max"), "{report:#}");
    assert_eq!(daemon.pool("gone"), None);
    let refused = daemon.run(&["submit", "--pool", "gone", "--", "true"]);
    refused.assert_code(66).assert_stderr_has("use one of these pools: test");
    let failed = daemon.wait_for(&waits, &["failed"]);
    assert_eq!(failed["cause"], "its pool is no longer configured", "{failed:#}");
    assert_eq!(failed["exit_code"], 78, "{failed:#}");
    let done = daemon.wait_for(&runs, &["finished"]);
    assert_eq!(done["exit_code"], 0, "{done:#}");
    daemon.run(&["logs", &runs]).assert_output("begun\ndone\n");
    daemon.finish();
}

#[test]
fn idle_microvms_of_a_pool_that_is_removed_are_retired() {
    let keep = local("", "max = 1\nmin_idle = 0");
    let daemon = Daemon::serving(&(keep.clone() + &pool_of("gone", "max = 2\nmin_idle = 2")));
    daemon.wait_for_pool("two warm microVMs", "gone", |pool| pool["warm"] == 2);
    daemon.configure(&keep);
    daemon.run(&["reload"]).assert_code(0);
    until("the end of both", TIMEOUT, || (daemon.ask(&["status"])["microvms"] == 0).then_some(()));
    daemon.finish();
}

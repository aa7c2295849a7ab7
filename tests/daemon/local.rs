//! Local jobs without GitHub, from `mayfly submit` to their record.

use std::fs;
use std::process::Stdio;

use serde_json::Value;

use super::daemon::{Daemon, IMAGE, JOB_TIMEOUT, is_over, local};
use super::support::{Running, images, until};

/// Returns the names of an explanation's phases, in order.
fn steps(explanation: &Value) -> Vec<&str> {
    let phases = explanation["phases"].as_array().unwrap();
    phases.iter().map(|phase| phase["phase"].as_str().unwrap()).collect()
}

#[test]
fn a_submitted_command_is_as_if_it_ran_here() {
    let daemon = Daemon::serving(&local("", "max = 1\nenvironment = { FROM = 'pool' }"));
    let script = "echo out $FROM $OWN; echo err >&2; pwd; exit 7";
    let submit = ["submit", "--pool", "test", "--wait", "-e", "OWN=mine", "-w", "/tmp", "--"];
    let ending = daemon.run(&[&submit[..], &["sh", "-c", script]].concat());
    ending.assert_code(7);
    let mut lines: Vec<_> = ending.text().lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["/tmp", "err", "out pool mine"], "{ending:?}");
    let killed =
        daemon.run(&["submit", "--pool", "test", "--wait", "--", "sh", "-c", "kill -9 $$"]);
    killed.assert_code(128 + 9);
    let missing = daemon.run(&["submit", "--pool", "test", "--wait", "--", "no-such-command"]);
    missing.assert_code(127);
    let json = ["submit", "--pool", "test", "--wait", "--json", "--", "sh", "-c", "echo hello"];
    let ending = daemon.run(&json);
    let job: Value = serde_json::from_slice(&ending.assert_code(0).stdout).unwrap();
    assert_eq!((&job["state"], &job["exit_code"]), (&"finished".into(), &0.into()), "{job:#}");
    ending.assert_stderr_has("hello");
    let unknown = daemon.run(&["submit", "--pool", "nowhere", "--", "true"]);
    unknown.assert_code(66).assert_stderr_has("use one of these pools: test");
    daemon.finish();
}

#[test]
fn a_job_that_takes_too_long_is_ended_and_says_so() {
    let daemon = Daemon::serving(&local("", "max = 1"));
    let submit = ["submit", "--pool", "test", "--wait", "--timeout", "3s", "--"];
    let ending = daemon.run(&[&submit[..], &["sh", "-c", "echo begun; sleep 3600"]].concat());
    ending.assert_code(124).assert_output("begun\n").assert_stderr_has("before its timeout");
    let job = daemon.job("1");
    assert_eq!((&job["state"], &job["exit_code"]), (&"failed".into(), &124.into()), "{job:#}");
    daemon.finish();
}

#[test]
fn jobs_are_listed_followed_explained_and_logged() {
    let daemon = Daemon::serving(&local("", "max = 1"));
    let first = daemon.submit("echo one; sleep 8; echo two; exit 3");
    let follow = Running::start(&mut daemon.command(&["logs", "-f", &first]));
    let second = daemon.submit("true");
    daemon.wait_for(&first, &["running"]);
    let waiting = daemon.ask(&["explain", &second]);
    assert_eq!(waiting["blocker"]["code"], "pool_at_max", "{waiting:#}");
    let text = daemon.run(&["explain", &second]);
    assert!(text.assert_code(0).text().contains("the pool is at its maximum of 1"), "{text:?}");
    let microvms = daemon.ask(&["ps"]);
    assert_eq!(microvms[0]["job"].to_string(), first, "{microvms:#}");
    assert_eq!(daemon.run(&["ps"]).assert_code(0).text().lines().count(), 2);
    let pool = daemon.pool("test").unwrap();
    assert_eq!((&pool["busy"], &pool["waiting"]), (&1.into(), &1.into()), "{pool:#}");
    assert!(daemon.run(&["pools"]).assert_code(0).text().contains("its maximum of 1"));
    let status = daemon.ask(&["status"]);
    assert_eq!((&status["running"], &status["waiting"]), (&1.into(), &1.into()), "{status:#}");
    assert!(daemon.run(&["status"]).assert_code(0).text().contains("1 waiting, 1 running"));

    follow.finish(JOB_TIMEOUT).assert_code(0).assert_output("one\ntwo\n");
    daemon.wait_for(&second, &["finished"]);
    let jobs = daemon.ask(&["jobs"]);
    let numbers: Vec<_> =
        jobs.as_array().unwrap().iter().map(|job| job["id"].to_string()).collect();
    assert_eq!(numbers, [second.clone(), first.clone()], "not sorted by age");
    assert_eq!(jobs[1]["exit_code"], 3);
    let list = daemon.run(&["jobs", "--state", "finished", "--pool", "test"]);
    assert!(list.assert_code(0).text().contains("exit 3"), "{list:?}");
    assert_eq!(daemon.ask(&["jobs", "--state", "queued"]), Value::Array(Vec::new()));
    daemon.run(&["logs", &first]).assert_code(0).assert_output("one\ntwo\n");
    for verb in [&["jobs"][..], &["logs", "-f", &first], &["explain", &first]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let unread = Running::start_with_io(&mut daemon.command(verb), Stdio::null(), writer);
        assert_eq!(unread.finish(JOB_TIMEOUT).assert_code(0).stderr, "", "{verb:?}");
    }
    daemon.run(&["logs", "77"]).assert_code(66).assert_stderr_has("unknown job 77");

    let story = daemon.ask(&["explain", &first]);
    let expected = ["queued", "planned", "prepared", "booting", "ready", "assigned to a microVM"];
    let expected = [&expected[..], &["claimed", "running", "finished"]].concat();
    let steps = steps(&story);
    assert_eq!(steps.iter().filter(|step| expected.contains(step)).count(), 10, "{steps:?}");
    let untimed = story["phases"].as_array().unwrap().iter();
    let untimed = untimed.filter(|phase| phase["lasted_ms"].is_null()).count();
    assert_eq!(untimed, 1, "not exactly one phase is open: {story:#}");
    assert_eq!(story["blocker"], Value::Null);
    assert!(daemon.run(&["explain", &first]).assert_code(0).text().contains("DURATION"));

    let audit = daemon.run(&["audit", "show"]);
    let actions: Vec<String> = audit.assert_code(0).text().lines().map(action).collect();
    for expected in ["job.queued", "microvm.planned", "job.claimed", "job.finished"] {
        assert!(actions.iter().any(|action| action == expected), "{expected}: {actions:?}");
    }
    daemon.finish();
}

fn action(line: &str) -> String {
    let line: Value = serde_json::from_str(line).unwrap();
    line["action"].as_str().unwrap().to_owned()
}

#[test]
fn a_job_is_cancelled_wherever_it_is() {
    let daemon = Daemon::serving(&local("", "max = 1"));
    let mut waiting =
        daemon.command(&["submit", "--pool", "test", "--wait", "--", "sleep", "3600"]);
    let waiting = Running::start(&mut waiting);
    daemon.wait_for_pool("a job", "test", |pool| pool["busy"] == 1);
    let queued = daemon.submit("echo never");
    assert!(daemon.run(&["cancel", &queued]).assert_code(0).text().contains("cancelled"));
    daemon.wait_for("1", &["running"]);
    assert_eq!(daemon.ask(&["cancel", "1"])["state"], "cancelled");
    waiting.finish(JOB_TIMEOUT).assert_code(130).assert_stderr_has("canceled by user");
    for job in ["1", &queued] {
        let job = daemon.job(job);
        assert_eq!(
            (&job["state"], &job["exit_code"]),
            (&"cancelled".into(), &130.into()),
            "{job:#}"
        );
    }
    daemon
        .run(&["cancel", "1"])
        .assert_code(69)
        .assert_stderr_has("job 1 has already ended: cancelled");
    daemon.run(&["logs", &queued]).assert_code(0).assert_output("");
    let after = daemon.submit("echo after");
    daemon.wait_for(&after, &["finished"]);
    daemon.finish();
}

#[test]
fn what_keeps_a_job_waiting_is_named_until_it_is_gone() {
    // The budget allows one microVM; the second pool's job waits for the first's.
    let mut daemon = Daemon::new();
    fs::remove_file(daemon.host.images().join(IMAGE)).unwrap();
    let other = super::daemon::pool_of("other", "max = 1");
    let settings = local("", "max = 2").replace("cpus = 8", "cpus = 1") + &other;
    daemon.configure(&settings);
    daemon.serve();
    let job = daemon.submit("echo at last; sleep 5");
    let explanation = until("the reason", JOB_TIMEOUT, || {
        let explanation = daemon.ask(&["explain", &job]);
        (explanation["blocker"]["code"] == "image").then_some(explanation)
    });
    assert!(explanation["blocker"]["message"].as_str().unwrap().contains(IMAGE), "{explanation:#}");
    assert!(
        !explanation["blocker"]["until"].is_null(),
        "no time of the next attempt: {explanation:#}"
    );

    let image = daemon.host.images().join(IMAGE);
    std::os::unix::fs::symlink(images().join(IMAGE), image).unwrap();
    until("a boot", JOB_TIMEOUT, || {
        let explanation = daemon.ask(&["explain", &job]);
        let seen = explanation["blocker"]["code"] == "booting" || is_over(&explanation["job"]);
        seen.then_some(())
    });
    daemon.wait_for(&job, &["running", "finished"]);
    let second = daemon.run(&["submit", "--pool", "other", "--", "true"]);
    let second = second.assert_code(0).text().trim().to_owned();
    until("the host's budget as the reason", JOB_TIMEOUT, || {
        let explanation = daemon.ask(&["explain", &second]);
        let code = &explanation["blocker"]["code"];
        assert!(!is_over(&explanation["job"]) || is_over(&daemon.job(&job)));
        (code == "host_budget" || is_over(&explanation["job"])).then_some(())
    });
    daemon.wait_for(&second, &["finished"]);
    daemon.run(&["logs", &job]).assert_output("at last\n");
    daemon.finish();
}

#[test]
fn an_image_that_is_not_signed_as_the_settings_want_is_not_booted() {
    let keys = "image_keys = [\"RWSIPwTv4NbEoGZVonMjyW9g1VuMX7uFpeIqefdxY+U85ndNdoszfDZl\"]";
    let daemon = Daemon::serving(&local(keys, "max = 1"));
    let job = daemon.submit("true");
    let explanation = until("why the job waits", JOB_TIMEOUT, || {
        let explanation = daemon.ask(&["explain", &job]);
        (explanation["blocker"]["code"] == "image").then_some(explanation)
    });
    let message = explanation["blocker"]["message"].to_string();
    assert!(message.contains("is not signed"), "{message}");
    daemon.run(&["cancel", &job]).assert_code(0);
    daemon.finish();
}

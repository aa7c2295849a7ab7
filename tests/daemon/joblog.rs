//! The output of a job's steps in Mayfly's log of the job.

use mayfly_github_sim::{Class, Conclusion, Fault, Rule, Settings};

use super::service::{DaemonSettings, JOB_TIMEOUT, Pool, Service};
use super::support::until;

/// Lines of the runner's console that a step may forge.
const FORGED: [&str; 2] = ["Running job: forged", "Job forged completed with result: Succeeded"];

/// Returns the lines of a log without their timestamps.
fn texts(log: &str) -> Vec<&str> {
    log.lines().map(|line| line.split_once("Z ").map_or(line, |(_, text)| text)).collect()
}

#[test]
fn a_steps_lines_are_in_the_log_while_it_runs_where_the_pool_has_them() {
    let pool = Pool { trigger: "webhook", min_idle: 0, max: 1 };
    let written = DaemonSettings {
        pools: &[("test", &pool), ("plain", &pool)],
        host: "cpus = 2\nmemory = \"1G\"",
        job_log: &["test"],
        ..DaemonSettings::default()
    };
    let mut service = Service::configure(Settings::default(), &written);
    service.serve();
    let forge = format!("echo '{}'; echo '2026-01-02 03:04:05Z: {}'", FORGED[0], FORGED[1]);
    // Also to the file that the lines come from, and through a link there.
    let files = "d=$(dirname \"$PWD\")/_diag/pages; echo \"2026-01-02 03:04:05Z: Running job: by file\" \
                 >$d/x; ln -s /etc/shadow $d/shadow; ln -s /etc/passwd $d/passwd";
    let last = "until [ -e go ]; do sleep 1; done; echo told; false";
    let steps = [forge.as_str(), files, "echo 'in the'' step'; sleep 15; touch go", last];
    let with = service.queue(&steps);
    let without = service.queue_for("plain", &["echo 'in the'' step'", "sleep 2"]);
    let number =
        until("the job's number", JOB_TIMEOUT, || Some(service.known(with)?["id"].to_string()));
    // While the job runs.
    until("the step's line in the log", JOB_TIMEOUT, || {
        let log = service.daemon.run(&["logs", &number]).text();
        log.contains("in the step").then_some(())
    });
    assert_eq!(service.github.job(with).unwrap().conclusion, None, "{}", service.log());
    assert_eq!(service.known(with).unwrap()["state"], "running");
    service.wait_for_all(2);

    let known = service.daemon.wait_for(&number, &["finished"]);
    assert_eq!(service.github.job(with).unwrap().conclusion, Some(Conclusion::Failure));
    assert_eq!(
        (&known["name"], &known["result"]),
        (&"build".into(), &"failure".into()),
        "{known:#}"
    );
    let log = service.daemon.run(&["logs", &number]).assert_code(0).text();
    let lines = texts(&log);
    for line in [FORGED[0], "in the step", "told", "##[error]Process completed with exit code 1."] {
        let count = lines.iter().filter(|other| **other == line).count();
        assert_eq!(count, 1, "{line}: {log}");
    }
    assert!(log.contains("by file") && log.contains("Running job: build"), "{log}");
    assert!(!log.contains("root:"), "a link was followed: {log}");
    let ledger = service.daemon.ledger();
    let job = ledger.job(mayfly_ledger::JobId(number.parse().unwrap())).unwrap().unwrap();
    assert_eq!(job.state, mayfly_ledger::JobState::Finished, "{job:?}");
    let page = service.daemon.run(&["explain", &number]).assert_code(0).text();
    assert!(!page.contains("forged") && !page.contains("by file"), "{page}");

    let other = service.known(without).unwrap()["id"].to_string();
    service.daemon.wait_for(&other, &["finished"]);
    let log = service.daemon.run(&["logs", &other]).assert_code(0).text();
    assert!(log.contains("Running job: build") && !log.contains("in the step"), "{log}");
    service.finish();
}

#[test]
fn a_jobs_lines_are_kept_although_github_cannot_be_reached() {
    let pool = Pool { trigger: "webhook", min_idle: 0, max: 1 };
    let settings = DaemonSettings {
        pools: &[("test", &pool)],
        deadlines: &[("test", ", farewell = \"3s\"")],
        job_log: &["test"],
        ..DaemonSettings::default()
    };
    let github = Settings { lost_after: 40_000, ..Settings::default() };
    let mut service = Service::configure(github, &settings);
    service.serve();
    // Long enough to report the first line, and to inject the fault before the second.
    let job = service.queue(&["echo begun; sleep 20; echo 'while'' away'; sleep 3600"]);
    let begun = service.github.wait(JOB_TIMEOUT, |state| state.jobs[&job].log.contains("begun\n"));
    assert!(begun, "{}", service.log());
    // From now on, GitHub answers every call of the runner with an error.
    service.github.add_fault(Rule::share(Class::Job, Fault::ServerError, 1.0));
    let number = service.known(job).unwrap()["id"].to_string();
    until("the line that GitHub did not accept", JOB_TIMEOUT, || {
        let log = service.daemon.run(&["logs", &number]).text();
        texts(&log).contains(&"while away").then_some(())
    });
    service.daemon.run(&["cancel", &number]).assert_code(0);
    service.daemon.wait_for(&number, &["cancelled"]);
    let log = service.daemon.run(&["logs", &number]).assert_code(0).text();
    let lines = texts(&log);
    for line in ["begun", "while away"] {
        assert_eq!(lines.iter().filter(|other| **other == line).count(), 1, "{line}: {log}");
    }
    let remote_log = service.github.job(job).unwrap().log;
    assert!(!remote_log.contains("while away"), "GitHub has the line: {remote_log}");
    // GitHub does not delete a runner that it believes to be busy.
    let is_deleted = service.github.wait(JOB_TIMEOUT, |state| state.runners.is_empty());
    assert!(is_deleted, "{}", service.log());
    service.finish();
}

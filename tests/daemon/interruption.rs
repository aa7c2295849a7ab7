//! Ends of jobs that Mayfly causes: the runner is interrupted first, so that GitHub gets the job's
//! end and log. A runner that does not react ends with its microVM at the deadline.

use std::time::{Duration, Instant};

use mayfly_github_sim::state::runners::{NewRunner, Scope};
use mayfly_github_sim::{Conclusion, NewJob, RunnerKind, Settings};
use nix::sys::signal::Signal;
use nix::unistd::getuid;

use super::secrets::{files, found, needles_of};
use super::service::{DaemonSettings, JOB_TIMEOUT, Pool, Service};
use super::support::{CommandOutput, Running};

/// The steps of a job that does not end by itself, and of its cleanup.
const STEPS: [&str; 2] = ["echo begun; sleep 3600", "# if: always()\necho cleaned up"];

/// How long an interrupted job may take to end, under emulation beside others.
const END_LIMIT: Duration = Duration::from_secs(60);

/// Starts a service with two pools: one whose jobs are canceled or end with the daemon, and one
/// whose jobs end at their deadline.
fn serve(kind: RunnerKind, farewell: &str) -> Service {
    let pool = Pool { trigger: "webhook", min_idle: 0, max: 2 };
    let farewell = format!(", farewell = \"{farewell}\"");
    let short = format!("{farewell}, job = \"20s\"");
    let written = DaemonSettings {
        pools: &[("test", &pool), ("short", &pool)],
        deadlines: &[("test", &farewell), ("short", &short)],
        host: "cpus = 3\nmemory = \"2G\"",
        ..DaemonSettings::default()
    };
    let github = Settings { runner_kind: kind, ..Settings::default() };
    let mut service = Service::configure(github, &written);
    service.serve();
    service
}

/// Waits until jobs have written their first line. GitHub gets it with the next report.
fn wait_until_started(service: &Service, jobs: &[u64]) {
    let started = service
        .github
        .wait(JOB_TIMEOUT, |state| jobs.iter().all(|job| state.jobs[job].log.contains("begun\n")));
    assert!(started, "{:?}\n{}", service.github.summary(), service.log());
}

/// Panics unless the runner reported its job's end to GitHub, with its log.
fn assert_reported(service: &Service, job: u64) {
    let ended = service.github.wait(JOB_TIMEOUT, |state| state.jobs[&job].conclusion.is_some());
    let job = service.github.job(job).unwrap();
    assert!(ended && job.reported, "{job:#?}\n{}", service.log());
    assert_eq!(job.conclusion, Some(Conclusion::Failure));
    assert!(job.annotation.as_deref().unwrap().contains("shutdown signal"), "{job:#?}");
    for line in ["begun\n", "The operation was canceled.", "cleaned up\n"] {
        assert!(job.log.contains(line), "{line}: {}", job.log);
    }
}

/// Returns the daemon's number of GitHub's job as text.
fn number(service: &Service, job: u64) -> String {
    service.known(job).unwrap_or_else(|| panic!("unknown job {job}"))["id"].to_string()
}

/// Panics unless the ledger has a job as canceled with this cause.
#[track_caller]
fn assert_cancelled(service: &Service, job: &str, cause: &str) {
    let ledger = service.daemon.ledger();
    let found = ledger.job(mayfly_ledger::JobId(job.parse().unwrap())).unwrap().unwrap();
    assert_eq!(found.state, mayfly_ledger::JobState::Cancelled, "{found:?}");
    assert_eq!(found.cause.as_deref(), Some(cause), "{found:?}");
    let phases = ledger.phases(&found.microvm.unwrap()).unwrap();
    let phases: Vec<_> = phases.iter().map(|phase| phase.phase.as_str()).collect();
    assert!(phases.contains(&"interrupted"), "{phases:?}");
    let audit = service.daemon.run(&["audit", "show"]).assert_code(0).text();
    let is_logged =
        audit.lines().any(|line| line.contains("microvm.interrupted") && line.contains(cause));
    assert!(is_logged, "{cause}: {audit}");
}

/// Tests a deadline, a cancel, and the end of all jobs with the daemon.
fn check_each_end(kind: RunnerKind, by_host: bool) {
    let mut service = serve(kind, "1m");
    let late = service.queue_for("short", &STEPS);
    let (cancelled, last) = (service.queue(&STEPS), service.queue(&STEPS));
    wait_until_started(&service, &[cancelled, last]);
    assert_reported(&service, late);
    let numbers = [late, cancelled, last].map(|job| number(&service, job));

    let start = Instant::now();
    service.daemon.run(&["cancel", &numbers[1]]).assert_code(0);
    assert_reported(&service, cancelled);
    assert!(start.elapsed() < END_LIMIT, "{:?}", start.elapsed());
    let known = service.daemon.wait_for(&numbers[1], &["cancelled"]);
    let by = format!("canceled by user {}", getuid());
    assert_eq!(known["cause"], by, "{known:#}");
    let page = service.daemon.run(&["explain", &numbers[1]]).assert_code(0).text();
    assert!(page.contains(&by) && page.contains("interrupted"), "{page}");

    let start = Instant::now();
    let reason = if by_host {
        service.daemon.signal(Signal::SIGUSR1);
        // A service manager sends this right afterwards.
        service.daemon.signal(Signal::SIGTERM);
        "the host is shutting down".to_owned()
    } else {
        service.daemon.run(&["drain", "--end-jobs"]).assert_code(0);
        format!("drained by user {}", getuid())
    };
    let status = service.daemon.wait_for_exit(JOB_TIMEOUT);
    let took = start.elapsed();
    assert!(status.success() && took < END_LIMIT, "{status} after {took:?}: {}", service.log());
    assert_reported(&service, last);
    assert_cancelled(&service, &numbers[0], "the job did not end within 20s");
    assert_cancelled(&service, &numbers[1], &by);
    assert_cancelled(&service, &numbers[2], &reason);
    // The job that reached its deadline leaves a black box.
    service.daemon.host.assert_no_process();
    let left = service.daemon.host.microvms();
    assert_eq!(left.len(), 1, "{left:?}");
    service.daemon.assert_ledger();
    super::service::assert_no_violations(&service.github);
}

#[test]
fn deadline_cancel_and_forced_drain_are_told_to_a_runner_on_dotnet_8() {
    check_each_end(RunnerKind::Dotnet8, false);
}

#[test]
fn deadline_cancel_and_the_hosts_shutdown_are_told_to_a_runner_on_dotnet_10() {
    check_each_end(RunnerKind::Dotnet10, true);
}

#[test]
fn a_runner_that_hears_nothing_ends_with_its_microvm_at_the_bound() {
    let mut service = serve(RunnerKind::Deaf, "4s");
    let late = service.queue_for("short", &STEPS);
    let (cancelled, last) = (service.queue(&STEPS), service.queue(&STEPS));
    wait_until_started(&service, &[cancelled, last]);
    let numbers = [late, cancelled, last].map(|job| number(&service, job));
    let start = Instant::now();
    service.daemon.run(&["cancel", &numbers[1]]).assert_code(0);
    service.daemon.wait_for(&numbers[1], &["cancelled"]);
    let took = start.elapsed();
    assert!(took >= Duration::from_secs(4) && took < END_LIMIT, "{took:?}");
    service.daemon.wait_for(&numbers[0], &["cancelled"]);
    service.daemon.run(&["drain", "--end-jobs"]).assert_code(0);
    assert!(service.daemon.wait_for_exit(JOB_TIMEOUT).success(), "{}", service.log());
    assert_cancelled(&service, &numbers[0], "the job did not end within 20s");
    assert_cancelled(&service, &numbers[1], &format!("canceled by user {}", getuid()));
    assert_cancelled(&service, &numbers[2], &format!("drained by user {}", getuid()));
    // None of them reported anything to GitHub.
    for job in [late, cancelled, last] {
        let job = service.github.job(job).unwrap();
        assert!(!job.reported && job.conclusion.is_none(), "{job:#?}");
    }
    service.daemon.host.assert_no_process();
}

/// Runs `mayfly once` with a job of the simulator, and interrupts it after it started.
fn once(service: &Service, farewell: &str) -> (u64, String, CommandOutput, Duration) {
    let labels = vec!["self-hosted".to_owned(), "once".to_owned()];
    let new = NewRunner {
        name: "once-1".to_owned(),
        scope: Scope::Organization("octo".to_owned()),
        group: 1,
        labels: labels.clone(),
        work_folder: "_work".to_owned(),
        scale_set: None,
    };
    let (_, config): (_, String) =
        service.github.with(|state, now| state.register(new, now).unwrap());
    let job = service.github.queue(NewJob {
        repository: "octo/hello".to_owned(),
        name: "build".to_owned(),
        labels,
        steps: STEPS.map(str::to_owned).to_vec(),
    });
    let file = service.daemon.host.root().join("jit");
    std::fs::write(&file, &config).unwrap();
    let diag = service.daemon.host.root().join("diag");
    let arguments =
        ["once", "--image", super::daemon::IMAGE, "--memory", "512M", "--egress", "test"];
    let more = ["--farewell", farewell, "--diag", diag.to_str().unwrap()];
    let more = [&more[..], &["--jitconfig-file", file.to_str().unwrap()]].concat();
    let running = Running::start(&mut service.daemon.command(&[&arguments[..], &more].concat()));
    wait_until_started(service, &[job]);
    let start = Instant::now();
    running.signal(Signal::SIGTERM);
    (job, config, running.finish(JOB_TIMEOUT), start.elapsed())
}

#[test]
fn sigterm_to_once_is_told_to_the_runner_and_has_a_bound() {
    for (kind, farewell, code) in [
        (RunnerKind::Dotnet8, "1m", 0),
        (RunnerKind::Dotnet10, "1m", 0),
        (RunnerKind::Deaf, "3s", 143),
    ] {
        let pool = Pool { trigger: "webhook", min_idle: 0, max: 1 };
        let github = Settings { runner_kind: kind, ..Settings::default() };
        let service = Service::prepare(github, &pool);
        let (job, config, ending, took) = once(&service, farewell);
        ending.assert_code(code);
        assert!(took < END_LIMIT, "{took:?}: {ending:?}");
        if kind == RunnerKind::Deaf {
            assert!(took >= Duration::from_secs(3), "{took:?}");
            assert!(!service.github.job(job).unwrap().reported);
        } else {
            assert_reported(&service, job);
            let text = ending.text();
            assert!(text.contains("completed with result: Canceled"), "{text}");
            assert!(!ending.stderr.contains("warning"), "{ending:?}");
        }
        service.daemon.host.assert_no_process();
        // Neither in the copied files, nor in the state directory with its black box.
        let root = service.daemon.host.root();
        let files = ["diag", "state"].map(|name| files(&root.join(name))).concat();
        assert!(kind == RunnerKind::Deaf || files.iter().any(|(path, _)| path.contains("/diag/")));
        assert_eq!(found(&needles_of(&config), &files), Vec::<String>::new());
    }
}

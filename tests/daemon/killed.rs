//! The daemon is killed, or hands over, at any time, under load, without polling: jobs continue,
//! and none is lost or runs twice.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use mayfly_github_sim::{Conclusion, Settings};
use mayfly_ledger::{JobId, JobResult, Ledger};
use nix::sys::signal::{Signal, kill};

use super::daemon::{Daemon, JOB_TIMEOUT, is_over, local};
use super::service::{DaemonSettings, Pool, Service, assert_no_violations};
use super::support::{Running, TIMEOUT, is_long_run, processes};

/// The number of unfinished jobs of each source at any time.
const BACKLOG: usize = 3;

/// The longest time between two kills of the daemon: a boot and a short job under emulation.
const LONGEST: Duration = Duration::from_secs(6);

/// The submitted jobs so far.
#[derive(Default)]
struct Load {
    /// Local jobs by number, each with its mark.
    local: Vec<(String, usize)>,
    /// Marks of submissions without a response, because the daemon was killed.
    unacknowledged: BTreeSet<usize>,
    marks: usize,
    queued: Vec<u64>,
}

impl Load {
    /// Keeps the backlog filled while the daemon runs.
    fn feed(&mut self, service: &Service) {
        let ended =
            |id: &&u64| service.github.job(**id).is_some_and(|job| job.conclusion.is_none());
        if self.queued.iter().filter(ended).count() < BACKLOG {
            self.queued.push(service.queue(&["echo begun", "sleep 1", "echo done"]));
        }
        let Some(unfinished) = unfinished(service) else { return };
        if unfinished < BACKLOG {
            self.submit(service);
        }
    }

    /// Submits a job that leaves its mark at the simulator, then in its log.
    fn submit(&mut self, service: &Service) {
        self.marks += 1;
        let mark = self.marks;
        let script = format!(
            "echo begun {mark}; curl -s -o /dev/null http://github.example{}; \
             sleep 1; echo done {mark}",
            path(mark)
        );
        let submit = ["submit", "--pool", "test", "--", "sh", "-c", &script];
        let ending = Running::start(&mut service.daemon.command(&submit)).finish(TIMEOUT);
        match ending.code() {
            0 => self.local.push((ending.text().trim().to_owned(), mark)),
            _ => _ = self.unacknowledged.insert(mark),
        }
    }

    /// Panics unless every job ran once and its output exists. Returns how many are reported with a
    /// cause instead: an emulated guest on a busy host may hang by itself.
    fn assert_all_ran_once(&self, service: &Service) -> usize {
        let mut reported = 0;
        for (job, mark) in &self.local {
            let found = service.daemon.job(job);
            if found["exit_code"] != 0 {
                assert!(found["cause"].is_string(), "{found:#}\n{}", service.log());
                assert!(runs(service, *mark) <= 1, "job {job}");
                eprintln!("not done: {found:#}");
                reported += 1;
                continue;
            }
            let log = service.daemon.run(&["logs", job]);
            log.assert_code(0).assert_output(&format!("begun {mark}\ndone {mark}\n"));
            assert_eq!(runs(service, *mark), 1, "job {job}");
        }
        for mark in &self.unacknowledged {
            assert!(runs(service, *mark) <= 1, "a job that was not acknowledged ran twice");
        }
        for id in &self.queued {
            let job = service.github.job(*id).unwrap();
            assert_eq!(job.started_runs.len(), 1, "{job:#?}");
            if job.conclusion != Some(Conclusion::Success) {
                let known = service.known(*id).expect("the job in the ledger");
                assert!(known["cause"].is_string(), "{known:#}\n{}", service.log());
                eprintln!("not done: {known:#}");
                reported += 1;
            }
        }
        reported
    }
}

/// The path at the simulator where a local job leaves its mark. The simulator records every call.
fn path(mark: usize) -> String {
    format!("/_sim/ran/{mark}/")
}

/// Returns how often a local job left its mark.
fn runs(service: &Service, mark: usize) -> usize {
    let path = path(mark);
    let exchanges = service.github.exchanges();
    exchanges
        .iter()
        .filter(|exchange| exchange.path == path.trim_end_matches('/') || exchange.path == path)
        .count()
}

/// Returns the number of unfinished local jobs; `None` while no daemon responds.
fn unfinished(service: &Service) -> Option<usize> {
    let list = ["jobs", "--limit", "1000", "--json"];
    let ending = Running::start(&mut service.daemon.command(&list)).finish(TIMEOUT);
    let jobs: serde_json::Value = serde_json::from_slice(&ending.stdout).ok()?;
    let local = jobs.as_array()?.iter().filter(|job| job["source"] == "local");
    Some(local.filter(|job| !is_over(job)).count())
}

#[test]
fn a_daemon_killed_at_any_moment_loses_no_job_and_runs_none_twice() {
    let (rounds, longest) = if is_long_run() { (200, LONGEST / 2) } else { (6, LONGEST) };
    let pool = Pool { trigger: "webhook", min_idle: 1, max: 2 };
    let pools = [("test", &pool)];
    let written =
        DaemonSettings { webhooks_only: true, pools: &pools, ..DaemonSettings::default() };
    let github = Settings { lost_after: 240_000, ..Settings::default() };
    let mut service = Service::configure(github, &written);
    let mut load = Load::default();
    let (start, mut handovers) = (Instant::now(), 0);
    for round in 0..rounds {
        service.daemon.launch();
        let moment = Duration::from_micros(random() % u64::try_from(longest.as_micros()).unwrap());
        let pid = service.daemon.pid();
        // Before it has a handler, a handover signal ends it too.
        let end = if round % 2 == 0 { Signal::SIGKILL } else { Signal::SIGUSR2 };
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(moment);
                kill(pid, end).unwrap();
            });
            while service.daemon.is_running() {
                load.feed(&service);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let status = service.daemon.wait_for_exit(TIMEOUT);
        let killed = std::os::unix::process::ExitStatusExt::signal(&status);
        let handed_over = end == Signal::SIGUSR2 && status.success();
        handovers += u32::from(handed_over);
        let log = || service.log();
        let is_right = killed == Some(end as i32) || handed_over;
        assert!(is_right, "the daemon exited by itself in round {round}: {status}\n{}", log());
    }
    let killing = start.elapsed();
    service.serve();
    let jobs = u32::try_from(load.local.len() + load.queued.len()).unwrap();
    service.wait_for_all(jobs);
    let left = || unfinished(&service).unwrap();
    super::support::until("the end of all local jobs", JOB_TIMEOUT * jobs, || {
        (left() == 0).then_some(())
    });
    eprintln!(
        "{rounds} ends in {killing:?}, {handovers} of them handovers; {} local jobs ({} more not acknowledged), {} of GitHub's, \
         all done after {:?}",
        load.local.len(),
        load.unacknowledged.len(),
        load.queued.len(),
        start.elapsed()
    );
    assert!(!is_long_run() || handovers >= 50, "only {handovers} handovers");
    let reported = load.assert_all_ran_once(&service);
    let Service { github, daemon } = service;
    let failed = daemon.finish_with_evidence();
    eprintln!("microVMs that failed: {failed:?}");
    // Each with a cause in its guest, none because the daemon ended.
    let is_the_guests = |cause: &String| cause.contains("no heartbeat from the guest");
    assert!(failed.iter().all(is_the_guests) && failed.len() <= 2, "{failed:?}");
    assert!(reported <= failed.len(), "{reported} unfinished jobs");
    assert_no_violations(&github);
}

fn random() -> u64 {
    u64::from_ne_bytes(mayfly_host::random::<8>().unwrap())
}

#[test]
fn what_webhooks_told_is_served_after_a_death_and_after_an_absence() {
    let pool = Pool { trigger: "webhook", min_idle: 0, max: 1 };
    let pools = [("test", &pool)];
    let written =
        DaemonSettings { webhooks_only: true, pools: &pools, ..DaemonSettings::default() };
    let mut service = Service::configure(Settings::default(), &written);
    service.serve();
    // Acknowledged, so never delivered again.
    let delivered = service.queue(&["echo told"]);
    super::support::until("the job in the ledger", TIMEOUT, || service.known(delivered));
    service.kill();
    service.serve();
    service.wait_for_all(1);
    // Stopped like a paused container, for longer than GitHub waits for a response.
    let pid = service.daemon.pid();
    kill(pid, Signal::SIGSTOP).unwrap();
    service.queue(&["echo missed"]);
    std::thread::sleep(Duration::from_secs(12));
    kill(pid, Signal::SIGCONT).unwrap();
    service.wait_for_all(2);
    service.finish();
}

#[test]
fn what_was_settled_just_before_the_daemon_was_killed_is_put_away() {
    let mut daemon = Daemon::serving(&local("", "max = 1\nmin_idle = 0"));
    let ledger = daemon.host.state().join("ledger.db");

    // Killed between the ledger's change and the command to end: what still runs is unknown.
    let cancelled = daemon.submit("echo begun; sleep 3600");
    daemon.wait_for_log(&cancelled, "begun");
    daemon.kill();
    let number = JobId(cancelled.parse().unwrap());
    Ledger::open(&ledger).unwrap().cancel(number, "on request", Some(130)).unwrap();
    daemon.serve();
    let next = daemon.submit("echo next");
    daemon.wait_for(&next, &["finished"]);
    daemon.run(&["logs", &next]).assert_output("next\n");
    daemon.run(&["logs", &cancelled]).assert_output("begun\n");

    // Killed between the ledger's change and saving the log.
    let last = daemon.submit("echo begun; sleep 6; echo done");
    daemon.wait_for_log(&last, "begun");
    daemon.kill();
    super::support::until("the end of the microVM", JOB_TIMEOUT, || {
        processes::mentioning(daemon.host.root()).is_empty().then_some(())
    });
    let number = JobId(last.parse().unwrap());
    Ledger::open(&ledger).unwrap().finish(number, &JobResult::Exited(0)).unwrap();
    daemon.serve();
    daemon.run(&["logs", &last]).assert_output("begun\ndone\n");
    daemon.finish();
}

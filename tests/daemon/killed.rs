//! The daemon killed, or handing over, at any moment, under load, where nothing is polled: jobs go on,
//! none is lost or run twice.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use mayfly::ledger::{JobId, JobResult, Ledger};
use mayfly_github_sim::{Conclusion, Settings};
use nix::sys::signal::{Signal, kill};

use super::daemon::{Daemon, JOB_PATIENCE, is_over, local};
use super::service::{Pool, Service, Written, assert_well};
use super::support::{PATIENCE, Running, long, processes};

/// So many jobs of either source are unfinished at any time.
const BACKLOG: usize = 3;

/// The daemon lives no longer than this between two deaths: a boot and a short job, in emulation.
const LONGEST: Duration = Duration::from_secs(6);

/// What was asked for so far.
#[derive(Default)]
struct Load {
    /// Local jobs by the daemon's numbers, each with its mark.
    local: Vec<(String, usize)>,
    /// Marks of submissions that were not answered: the daemon was killed.
    unanswered: BTreeSet<usize>,
    marks: usize,
    queued: Vec<u64>,
}

impl Load {
    /// Keeps the backlog filled, as far as the daemon lives.
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

    /// Submits a job that tells GitHub's place that it ran, then its log.
    fn submit(&mut self, service: &Service) {
        self.marks += 1;
        let mark = self.marks;
        let script = format!(
            "echo begun {mark}; curl -s -o /dev/null http://github.example{}; \
             sleep 1; echo done {mark}",
            path(mark)
        );
        let submit = ["submit", "--pool", "test", "--", "sh", "-c", &script];
        let ending = Running::start(&mut service.daemon.verb(&submit)).finish(PATIENCE);
        match ending.code() {
            0 => self.local.push((ending.text().trim().to_owned(), mark)),
            _ => _ = self.unanswered.insert(mark),
        }
    }

    /// Fails unless every job ran once, and what it wrote is there. Gives how many are reported with a
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
        for mark in &self.unanswered {
            assert!(runs(service, *mark) <= 1, "a job that was not answered for ran twice");
        }
        for id in &self.queued {
            let job = service.github.job(*id).unwrap();
            assert_eq!(job.started_runs.len(), 1, "{job:#?}");
            if job.conclusion != Some(Conclusion::Success) {
                let known = service.known(*id).expect("the ledger has it");
                assert!(known["cause"].is_string(), "{known:#}\n{}", service.log());
                eprintln!("not done: {known:#}");
                reported += 1;
            }
        }
        reported
    }
}

/// Where a local job leaves its mark at the simulator, which records every call.
fn path(mark: usize) -> String {
    format!("/_sim/ran/{mark}/")
}

/// How often a local job left its mark.
fn runs(service: &Service, mark: usize) -> usize {
    let path = path(mark);
    let exchanges = service.github.exchanges();
    exchanges
        .iter()
        .filter(|exchange| exchange.path == path.trim_end_matches('/') || exchange.path == path)
        .count()
}

/// How many local jobs are not over; none while no daemon answers.
fn unfinished(service: &Service) -> Option<usize> {
    let list = ["jobs", "--limit", "1000", "--json"];
    let ending = Running::start(&mut service.daemon.verb(&list)).finish(PATIENCE);
    let jobs: serde_json::Value = serde_json::from_slice(&ending.stdout).ok()?;
    let local = jobs.as_array()?.iter().filter(|job| job["source"] == "local");
    Some(local.filter(|job| !is_over(job)).count())
}

#[test]
fn a_daemon_killed_at_any_moment_loses_no_job_and_runs_none_twice() {
    let (rounds, longest) = if long() { (200, LONGEST / 2) } else { (6, LONGEST) };
    let pool = Pool { trigger: "webhook", min_idle: 1, max: 2 };
    let pools = [("test", &pool)];
    let written = Written { webhooks_only: true, pools: &pools, ..Written::default() };
    let github = Settings { lost_after: 240_000, ..Settings::default() };
    let mut service = Service::configure(github, &written);
    let mut load = Load::default();
    let (begun, mut handovers) = (Instant::now(), 0);
    for round in 0..rounds {
        service.daemon.launch();
        let moment = Duration::from_micros(random() % u64::try_from(longest.as_micros()).unwrap());
        let pid = service.daemon.pid();
        // Before it listens to it, a signal to hand over is its end, too.
        let end = if round % 2 == 0 { Signal::SIGKILL } else { Signal::SIGUSR2 };
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(moment);
                kill(pid, end).unwrap();
            });
            while service.daemon.is_there() {
                load.feed(&service);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let status = service.daemon.ended(PATIENCE);
        let killed = std::os::unix::process::ExitStatusExt::signal(&status);
        let handed_over = end == Signal::SIGUSR2 && status.success();
        handovers += u32::from(handed_over);
        let log = || service.log();
        let is_right = killed == Some(end as i32) || handed_over;
        assert!(is_right, "it ended by itself in round {round}: {status}\n{}", log());
    }
    let killing = begun.elapsed();
    service.serve();
    let jobs = u32::try_from(load.local.len() + load.queued.len()).unwrap();
    service.wait_for_all(jobs);
    let left = || unfinished(&service).unwrap();
    super::support::until("the end of all local jobs", JOB_PATIENCE * jobs, || {
        (left() == 0).then_some(())
    });
    eprintln!(
        "{rounds} ends in {killing:?}, {handovers} of them handovers; {} local jobs ({} more not answered for), {} of GitHub's, \
         all done after {:?}",
        load.local.len(),
        load.unanswered.len(),
        load.queued.len(),
        begun.elapsed()
    );
    assert!(!long() || handovers >= 50, "only {handovers} handovers");
    let reported = load.assert_all_ran_once(&service);
    let Service { github, daemon } = service;
    let failed = daemon.finish_with_evidence();
    eprintln!("microVMs that failed: {failed:?}");
    // Each for a cause of its guest's own, none for the ends of the daemon.
    let is_the_guests = |cause: &String| cause.contains("the guest has not been heard of");
    assert!(failed.iter().all(is_the_guests) && failed.len() <= 2, "{failed:?}");
    assert!(reported <= failed.len(), "{reported} jobs are not done");
    assert_well(&github);
}

fn random() -> u64 {
    u64::from_ne_bytes(mayfly::host::random::<8>().unwrap())
}

#[test]
fn what_webhooks_told_is_served_after_a_death_and_after_an_absence() {
    let pool = Pool { trigger: "webhook", min_idle: 0, max: 1 };
    let pools = [("test", &pool)];
    let written = Written { webhooks_only: true, pools: &pools, ..Written::default() };
    let mut service = Service::configure(Settings::default(), &written);
    service.serve();
    // Answered, and never said again.
    let told = service.queue(&["echo told"]);
    super::support::until("the job in the ledger", PATIENCE, || service.known(told));
    service.kill();
    service.serve();
    service.wait_for_all(1);
    // Stopped as a paused container is, for longer than GitHub waits for an answer.
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

    // Killed between the ledger and the order to end: what runs on is taken for nobody's.
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

    // Killed between the ledger and the log.
    let last = daemon.submit("echo begun; sleep 6; echo done");
    daemon.wait_for_log(&last, "begun");
    daemon.kill();
    super::support::until("the end of the microVM", JOB_PATIENCE, || {
        processes::mentioning(daemon.host.root()).is_empty().then_some(())
    });
    let number = JobId(last.parse().unwrap());
    Ledger::open(&ledger).unwrap().finish(number, &JobResult::Exited(0)).unwrap();
    daemon.serve();
    daemon.run(&["logs", &last]).assert_output("begun\ndone\n");
    daemon.finish();
}

//! A daemon with a simulated GitHub.

use std::net::{SocketAddr, TcpListener};

use mayfly_github_sim::contract::{Contract, VARIABLE};
use mayfly_github_sim::{App, Hook, NewJob, Settings, Simulator, app_key};
use serde_json::Value;

pub(crate) use super::daemon::JOB_TIMEOUT;
use super::daemon::{Daemon, IMAGE, write_private};
use super::support::until;

/// The webhook's secret.
pub(crate) const SECRET: &str = "a secret of the tests";

/// The name of GitHub in the guest.
const GITHUB: &str = "github.example";

/// A pool's settings that differ between tests.
pub(crate) struct Pool {
    pub(crate) trigger: &'static str,
    pub(crate) min_idle: u32,
    pub(crate) max: u32,
}

impl Pool {
    /// Returns the settings as text, with a label that its jobs have.
    fn text(&self, name: &str, label: &str, deadlines: &str) -> String {
        let Self { trigger, min_idle, max } = self;
        format!(
            r#"
            [[pool]]
            name = "{name}"
            labels = ["self-hosted", "{label}"]
            image = "{IMAGE}"
            memory = "512M"
            min_idle = {min_idle}
            max = {max}
            trigger = "{trigger}"
            egress = "test"
            runner_directory = "/home/runner/actions-runner"
            deadlines = {{ claim = "1m"{deadlines} }}
            "#
        )
    }
}

/// The parts of the settings that a test sets.
#[derive(Default)]
pub(crate) struct DaemonSettings<'a> {
    /// Additional lines of `[github]`.
    pub(crate) github: &'a str,
    /// Additional lines of `[host]`.
    pub(crate) host: &'a str,
    /// Whether polling is off, so that jobs are known from deliveries only.
    pub(crate) webhooks_only: bool,
    /// The pools. A pool's name is its label.
    pub(crate) pools: &'a [(&'a str, &'a Pool)],
    /// Additional `deadlines` of pools by name, each with a leading comma.
    pub(crate) deadlines: &'a [(&'a str, &'a str)],
    /// The pools whose logs include the output of steps.
    pub(crate) job_log: &'a [&'a str],
}

/// `mayfly serve` with a simulated GitHub.
pub(crate) struct Service {
    pub(crate) github: Simulator,
    pub(crate) daemon: Daemon,
}

impl Service {
    /// Starts a simulated GitHub, and a daemon with one pool.
    pub(crate) fn start(github: Settings, pool: &Pool) -> Self {
        let mut service = Self::prepare(github, pool);
        service.serve();
        service
    }

    /// Starts a simulated GitHub, and writes the settings of a daemon.
    pub(crate) fn prepare(github: Settings, pool: &Pool) -> Self {
        Self::configure(
            github,
            &DaemonSettings { pools: &[("test", pool)], ..DaemonSettings::default() },
        )
    }

    /// Starts a simulated GitHub, and writes the given settings of a daemon.
    pub(crate) fn configure(github: Settings, settings: &DaemonSettings<'_>) -> Self {
        let daemon = Daemon::new();
        let host = &daemon.host;
        let key = host.root().join("app.pem");
        app_key::generate(&key).unwrap();
        let webhook = free_address();
        let github = Settings {
            app: Some(App::new("octo", app_key::public_key(&key).unwrap())),
            hook: Some(Hook {
                url: format!("http://{webhook}/webhook"),
                secret: SECRET.to_owned(),
            }),
            runner_url: Some(format!("http://{GITHUB}")),
            ..github
        };
        let github = Simulator::start(github).unwrap();
        let service = Self { github, daemon };
        let pools = settings.pools.iter().map(|(name, pool)| {
            let more = settings.deadlines.iter().find(|(of, _)| of == name);
            let text = pool.text(name, name, more.map_or("", |(_, more)| more));
            text + if settings.job_log.contains(name) { "job_log = true\n" } else { "" }
        });
        let pools: String = pools.collect();
        service.write_settings(&service.daemon, webhook, settings, &pools);
        service
    }

    /// Creates another daemon on another host, with the same GitHub and another label. Does not
    /// start it.
    pub(crate) fn second_daemon(&self, pool: &Pool, label: &str) -> Daemon {
        let daemon = Daemon::new();
        let key = |daemon: &Daemon| daemon.host.root().join("app.pem");
        std::fs::copy(key(&self.daemon), key(&daemon)).unwrap();
        let pools = pool.text("test", label, "");
        self.write_settings(&daemon, free_address(), &DaemonSettings::default(), &pools);
        daemon
    }

    /// Writes a daemon's settings and secrets.
    fn write_settings(
        &self,
        daemon: &Daemon,
        webhook: SocketAddr,
        settings: &DaemonSettings<'_>,
        pools: &str,
    ) {
        let root = daemon.host.root();
        write_private(&root.join("webhook-secret"), SECRET);
        let (root, url, address) = (root.display(), self.github.url(), self.github.address());
        let DaemonSettings { github: more_of_github, host: more_of_host, .. } = settings;
        let polled = if settings.webhooks_only { "" } else { "repositories = [\"octo/hello\"]" };
        daemon.configure(&format!(
            r#"
            [github]
            url = "{url}/octo"
            {polled}
            app = {{ client_id = "Iv23simulated", private_key_file = "{root}/app.pem" }}
            webhook = {{ listen = "{webhook}", secret_file = "{root}/webhook-secret" }}
            {more_of_github}
            [host]
            state_directory = "{root}/state"
            allow_emulation = true
            {more_of_host}
            {pools}
            [egress.policy.test]
            mode = "enforce"
            allow = [{{ host = "{GITHUB}" }}]
            resolve = {{ "{GITHUB}" = "{address}" }}
            "#
        ));
    }

    /// Starts the daemon, also after it was killed.
    pub(crate) fn serve(&mut self) {
        self.daemon.serve();
    }

    /// Kills the daemon with SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.daemon.kill();
    }

    /// Queues a job that this daemon's pool matches.
    pub(crate) fn queue(&self, steps: &[&str]) -> u64 {
        self.queue_for("test", steps)
    }

    /// Queues a job for pools with a label.
    pub(crate) fn queue_for(&self, label: &str, steps: &[&str]) -> u64 {
        self.github.queue(NewJob {
            repository: "octo/hello".to_owned(),
            name: "build".to_owned(),
            labels: vec!["self-hosted".to_owned(), label.to_owned()],
            steps: steps.iter().map(|step| (*step).to_owned()).collect(),
        })
    }

    /// Returns GitHub's jobs as the daemon knows them.
    pub(crate) fn known_jobs(&self) -> Vec<Value> {
        match self.daemon.ask(&["jobs", "--limit", "1000"]) {
            Value::Array(jobs) => jobs,
            other => panic!("not a list of jobs: {other}"),
        }
    }

    /// Returns one of GitHub's jobs as the daemon knows it, if it does.
    pub(crate) fn known(&self, job: u64) -> Option<Value> {
        self.known_jobs().into_iter().find(|known| known["github_id"] == job)
    }

    /// Waits until the daemon reports the blocker `code` for a job of GitHub.
    pub(crate) fn wait_for_blocker(&self, job: u64, code: &str) -> Value {
        until(&format!("{code} for job {job}"), JOB_TIMEOUT, || {
            let known = self.known(job)?;
            let explanation = self.daemon.ask(&["explain", &known["id"].to_string()]);
            Some(explanation["blocker"].clone()).filter(|blocker| blocker["code"] == code)
        })
    }

    /// Returns the daemon's log so far.
    pub(crate) fn log(&self) -> String {
        self.daemon.log()
    }

    /// Panics with the daemon's log if a job has not ended in time.
    pub(crate) fn wait_for_all(&self, jobs: u32) {
        let ended = self.github.wait_for_all(JOB_TIMEOUT * jobs);
        assert!(ended, "unfinished jobs: {:?}\n{}", self.github.summary(), self.log());
    }

    /// Stops the daemon, and panics if anything is left or a call was invalid.
    pub(crate) fn finish(self) {
        self.finish_with(|_| {});
    }

    /// Like [`Self::finish`], with a check of GitHub's state in between.
    pub(crate) fn finish_with(self, check: impl FnOnce(&Simulator)) {
        self.daemon.finish();
        check(&self.github);
        assert_no_violations(&self.github);
    }
}

/// Panics if GitHub received anything unexpected or invalid.
pub(crate) fn assert_no_violations(github: &Simulator) {
    let summary = github.summary();
    assert_eq!(summary.not_once, Vec::<u64>::new(), "jobs that did not run exactly once");
    assert_eq!(summary.registered, Vec::<String>::new(), "registrations remain");
    match Contract::from_environment().unwrap() {
        Some(contract) => {
            if let Err(violations) = github.validate(&contract) {
                panic!("{violations:#?}");
            }
        }
        None => eprintln!("skipped: {VARIABLE} names no description of GitHub's calls"),
    }
}

/// Returns an address that is free now.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

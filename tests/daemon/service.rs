//! A daemon with a GitHub of its own.

use std::net::{SocketAddr, TcpListener};

use mayfly_github_sim::contract::{Contract, VARIABLE};
use mayfly_github_sim::{App, Hook, NewJob, Settings, Simulator, app_key};
use serde_json::Value;

pub(crate) use super::daemon::JOB_PATIENCE;
use super::daemon::{Daemon, IMAGE, write_private};
use super::support::until;

/// The webhook's secret.
pub(crate) const SECRET: &str = "a secret of the tests";

/// The name that the guest knows GitHub by.
const GITHUB: &str = "github.example";

/// A pool's settings; the rest of what is needed is the same for all tests.
pub(crate) struct Pool {
    pub(crate) trigger: &'static str,
    pub(crate) min_idle: u32,
    pub(crate) max: u32,
}

impl Pool {
    /// Its settings, with a label that its jobs have.
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

/// What a test writes into the settings.
#[derive(Default)]
pub(crate) struct Written<'a> {
    /// More of `[github]`.
    pub(crate) github: &'a str,
    /// More of `[host]`.
    pub(crate) host: &'a str,
    /// Nothing is polled: jobs are heard of from deliveries only.
    pub(crate) webhooks_only: bool,
    /// The pools; a pool's name is its label.
    pub(crate) pools: &'a [(&'a str, &'a Pool)],
    /// More of `deadlines`, of pools by name, each with a comma before it.
    pub(crate) deadlines: &'a [(&'a str, &'a str)],
    /// The pools that have the lines of their jobs' steps in the log.
    pub(crate) job_log: &'a [&'a str],
}

/// `mayfly serve` with a GitHub of its own.
pub(crate) struct Service {
    pub(crate) github: Simulator,
    pub(crate) daemon: Daemon,
}

impl Service {
    /// Starts a GitHub and a daemon with one pool.
    pub(crate) fn start(github: Settings, pool: &Pool) -> Self {
        let mut service = Self::prepare(github, pool);
        service.serve();
        service
    }

    /// Starts a GitHub, and writes the settings of a daemon.
    pub(crate) fn prepare(github: Settings, pool: &Pool) -> Self {
        Self::configure(github, &Written { pools: &[("test", pool)], ..Written::default() })
    }

    /// The same, with whatever is written into the settings.
    pub(crate) fn configure(github: Settings, written: &Written<'_>) -> Self {
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
        let pools = written.pools.iter().map(|(name, pool)| {
            let more = written.deadlines.iter().find(|(of, _)| of == name);
            let text = pool.text(name, name, more.map_or("", |(_, more)| more));
            text + if written.job_log.contains(name) { "job_log = true\n" } else { "" }
        });
        let pools: String = pools.collect();
        service.furnish(&service.daemon, webhook, written, &pools);
        service
    }

    /// Another daemon on a host of its own, at the same GitHub, whose pool has another label. Not
    /// started yet.
    pub(crate) fn beside(&self, pool: &Pool, label: &str) -> Daemon {
        let daemon = Daemon::new();
        let key = |daemon: &Daemon| daemon.host.root().join("app.pem");
        std::fs::copy(key(&self.daemon), key(&daemon)).unwrap();
        let pools = pool.text("test", label, "");
        self.furnish(&daemon, free_address(), &Written::default(), &pools);
        daemon
    }

    /// Writes a daemon's settings and secrets.
    fn furnish(&self, daemon: &Daemon, webhook: SocketAddr, written: &Written<'_>, pools: &str) {
        let root = daemon.host.root();
        write_private(&root.join("webhook-secret"), SECRET);
        let (root, url, address) = (root.display(), self.github.url(), self.github.address());
        let Written { github: more_of_github, host: more_of_host, .. } = written;
        let polled = if written.webhooks_only { "" } else { "repositories = [\"octo/hello\"]" };
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

    /// Starts the daemon, again after it was killed.
    pub(crate) fn serve(&mut self) {
        self.daemon.serve();
    }

    /// Kills the daemon as nothing can prepare for.
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

    /// What the daemon knows of jobs of GitHub's.
    pub(crate) fn known_jobs(&self) -> Vec<Value> {
        match self.daemon.ask(&["jobs", "--limit", "1000"]) {
            Value::Array(jobs) => jobs,
            other => panic!("no list of jobs: {other}"),
        }
    }

    /// What the daemon knows of one, once it knows of it.
    pub(crate) fn known(&self, job: u64) -> Option<Value> {
        self.known_jobs().into_iter().find(|known| known["github_id"] == job)
    }

    /// Waits until the daemon names `code` as what a job of GitHub's waits for.
    pub(crate) fn wait_for_blocker(&self, job: u64, code: &str) -> Value {
        until(&format!("{code} for job {job}"), JOB_PATIENCE, || {
            let known = self.known(job)?;
            let told = self.daemon.ask(&["explain", &known["id"].to_string()]);
            Some(told["blocker"].clone()).filter(|blocker| blocker["code"] == code)
        })
    }

    /// What the daemon has said so far.
    pub(crate) fn log(&self) -> String {
        self.daemon.log()
    }

    /// Fails, with the daemon's log, if a job has not ended in time.
    pub(crate) fn wait_for_all(&self, jobs: u32) {
        let ended = self.github.wait_for_all(JOB_PATIENCE * jobs);
        assert!(ended, "jobs are not done: {:?}\n{}", self.github.summary(), self.log());
    }

    /// Stops the daemon, and fails if anything is left or GitHub would not have understood.
    pub(crate) fn finish(self) {
        self.finish_with(|_| {});
    }

    /// The same, with a last look at GitHub in between.
    pub(crate) fn finish_with(self, look: impl FnOnce(&Simulator)) {
        self.daemon.finish();
        look(&self.github);
        assert_well(&self.github);
    }
}

/// Fails if GitHub saw anything that it should not have, or would not have understood.
pub(crate) fn assert_well(github: &Simulator) {
    let summary = github.summary();
    assert_eq!(summary.not_once, Vec::<u64>::new(), "jobs that did not run exactly once");
    assert_eq!(summary.registered, Vec::<String>::new(), "registrations are left");
    match Contract::from_environment().unwrap() {
        Some(contract) => {
            if let Err(violations) = github.validate(&contract) {
                panic!("{violations:#?}");
            }
        }
        None => eprintln!("skipped: {VARIABLE} names no description of GitHub's calls"),
    }
}

/// An address that is free now.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

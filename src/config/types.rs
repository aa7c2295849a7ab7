//! Settings that have been checked.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;

use crate::egress::policy::{Policies, Policy};
use crate::host::size::Size;
use crate::image::{Reference, Trust};
use crate::machine::accelerator::Wish;
use crate::telemetry::otlp::Collector;

/// Everything that `mayfly serve` is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The file, where there is one.
    pub file: Option<PathBuf>,
    /// Where jobs come from, beside local ones; `None` is local jobs only.
    pub github: Option<GitHub>,
    /// The pools, each name once, in the order they are written.
    pub pools: Vec<Pool>,
    /// What of the host is used, and how the daemon is reached.
    pub host: Host,
    /// Where the status page is offered; `None` is on the unix socket only.
    pub status: Option<StatusPage>,
    /// What is told to whom, beside the log.
    pub telemetry: Telemetry,
    /// All egress policies, those of the pools among them.
    pub policies: Policies,
    /// What is allowed but likely not meant, for a person.
    pub warnings: Vec<String>,
}

impl Settings {
    /// The pool of that name.
    pub fn pool(&self, name: &str) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.name.as_str() == name)
    }
}

/// A secret, and where it was found, which is none.
#[derive(Debug, Clone)]
pub struct Secret {
    /// The secret itself.
    pub value: SecretString,
    /// A file, a variable or the settings file, in words.
    pub source: String,
}

/// `[github]`.
#[derive(Debug, Clone)]
pub struct GitHub {
    /// The web address of the server, without a path or a slash at the end:
    /// `https://github.com`, or that of an Enterprise Server.
    pub server: String,
    /// Whom runners are registered with.
    pub scope: Scope,
    /// The REST API's address without a slash at the end, as written or derived from the server.
    pub api: String,
    /// How Mayfly says who it is.
    pub credentials: Credentials,
    /// Where deliveries are listened for.
    pub webhook: Option<Webhook>,
    /// What is polled: those that are written, else the scope's own one.
    pub repositories: Vec<Repository>,
    /// Between two polls; `None` depends on whether deliveries come.
    pub poll: Option<Duration>,
    /// Between two lists of the scope's runners, which find what was left behind there.
    pub reconcile: Duration,
}

impl GitHub {
    /// The web address of the scope, as a scale set's registration wants it.
    pub fn url(&self) -> String {
        format!("{}/{}", self.server, self.scope)
    }

    /// The web address of a job's page. None where the repository's name is not one that GitHub
    /// gives.
    pub fn job_page(&self, repository: &str, run: u64, job: u64) -> Option<String> {
        let part = |part: &str| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            !part.is_empty() && part.bytes().all(plain)
        };
        let (owner, name) = repository.split_once('/')?;
        let server = &self.server;
        (part(owner) && part(name))
            .then(|| format!("{server}/{owner}/{name}/actions/runs/{run}/job/{job}"))
    }
}

/// Whom runners are registered with. Displays as the path in a web address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// One repository.
    Repository(Repository),
    /// An organisation.
    Organization(String),
    /// An enterprise, by its slug.
    Enterprise(String),
}

impl fmt::Display for Scope {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Repository(repository) => repository.fmt(formatter),
            Self::Organization(name) => formatter.write_str(name),
            Self::Enterprise(slug) => write!(formatter, "enterprises/{slug}"),
        }
    }
}

/// A repository. Displays as `OWNER/NAME`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Repository {
    /// The user or organisation.
    pub owner: String,
    /// Its name there.
    pub name: String,
}

impl fmt::Display for Repository {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.owner, self.name)
    }
}

/// How Mayfly says who it is.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// A personal access token.
    Token(Secret),
    /// A GitHub App.
    App(App),
}

/// A GitHub App.
#[derive(Debug, Clone)]
pub struct App {
    /// The issuer of its JWTs: the client id, or the App's id in digits.
    pub issuer: String,
    /// Its RSA key, in PEM.
    pub private_key: Secret,
    /// The installation; `None` is found out.
    pub installation: Option<u64>,
}

/// `[github.webhook]`.
#[derive(Debug, Clone)]
pub struct Webhook {
    /// Where deliveries are listened for.
    pub listen: SocketAddr,
    /// What they are signed with.
    pub secret: Secret,
    /// The hook's id at GitHub, needed to ask for deliveries that were missed; an App's own hook
    /// has none.
    pub hook: Option<u64>,
}

/// A pool's name: it becomes a part of runner names. A lower-case letter or digit, then letters,
/// digits, `-` and `_`, 32 at most.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolName(String);

impl PoolName {
    /// The most bytes: a runner's name has 64, of which a prefix and a random part need the rest.
    pub const MAX_LENGTH: usize = 32;

    /// A name, if the text is one.
    pub fn parse(text: &str) -> Option<Self> {
        let first = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let rest = |byte: u8| first(byte) || matches!(byte, b'-' | b'_');
        let fits = text.len() <= Self::MAX_LENGTH
            && text.bytes().next().is_some_and(first)
            && text.bytes().all(rest);
        fits.then(|| Self(text.to_owned()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// `[[pool]]`: microVMs that are alike.
#[derive(Debug, Clone)]
pub struct Pool {
    /// Its name.
    pub name: PoolName,
    /// What jobs ask for by `runs-on`, in lower case, each once; empty for local jobs only.
    pub labels: Vec<String>,
    /// The runner group by name; `None` is the scope's default one.
    pub runner_group: Option<String>,
    /// What is booted.
    pub image: Reference,
    /// Virtual processors of each microVM.
    pub cpus: u32,
    /// Memory of each.
    pub memory: Size,
    /// Size of the disk of each; `None` is as `mayfly run` has it.
    pub disk: Option<Size>,
    /// How many are kept warm (with [`Trigger::Always`]: registered) beyond those that work.
    pub min_idle: u32,
    /// How many there may be at the same time, at least one.
    pub max: u32,
    /// How the pool learns that jobs wait at GitHub.
    pub trigger: Trigger,
    /// What its microVMs may reach.
    pub egress: Policy,
    /// How long things may take.
    pub deadlines: Deadlines,
    /// Variables of the runner and of local jobs.
    pub environment: BTreeMap<String, String>,
    /// Scripts that the runner calls.
    pub hooks: Hooks,
    /// Where the runner is in the image, an absolute path.
    pub runner_directory: String,
    /// Whether the lines of the steps of GitHub's jobs are in Mayfly's log of them, too.
    pub job_log: bool,
}

/// How a pool learns that jobs wait at GitHub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trigger {
    /// Deliveries of `workflow_job`.
    Webhook,
    /// Asking for the queued runs of the repositories.
    Poll,
    /// A runner scale set's message session.
    ScaleSet,
    /// Not at all: `min_idle` runners are always registered.
    Always,
    /// A scale set where GitHub has it for this scope, else polling.
    Auto,
    /// Local jobs only.
    None,
}

impl fmt::Display for Trigger {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Webhook => "webhook",
            Self::Poll => "poll",
            Self::ScaleSet => "scale-set",
            Self::Always => "always",
            Self::Auto => "auto",
            Self::None => "none",
        })
    }
}

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// From the start of a boot until the guest is ready; `None` depends on the accelerator.
    pub boot: Option<Duration>,
    /// How long a warm microVM beyond `min_idle` is kept.
    pub idle: Duration,
    /// From registration until the runner has a job.
    pub claim: Duration,
    /// How long a job may run.
    pub job: Duration,
    /// From the interrupt of a runner that has to go until its microVM ends.
    pub farewell: Duration,
}

/// Scripts in the image that the runner calls, by absolute paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hooks {
    /// Before the first step of a job (`ACTIONS_RUNNER_HOOK_JOB_STARTED`).
    pub job_started: Option<String>,
    /// After its last step (`ACTIONS_RUNNER_HOOK_JOB_COMPLETED`).
    pub job_completed: Option<String>,
}

impl Hooks {
    /// The runner's variables for them.
    pub fn variables(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let started = self.job_started.as_deref();
        let completed = self.job_completed.as_deref();
        [
            started.map(|path| ("ACTIONS_RUNNER_HOOK_JOB_STARTED", path)),
            completed.map(|path| ("ACTIONS_RUNNER_HOOK_JOB_COMPLETED", path)),
        ]
        .into_iter()
        .flatten()
    }
}

/// `[host]`.
#[derive(Debug, Clone)]
pub struct Host {
    /// Processors that all microVMs together may have.
    pub cpus: u32,
    /// Memory that all microVMs together may have.
    pub memory: Size,
    /// The state directory; `None` is the command line's, else the default one.
    pub state_directory: Option<PathBuf>,
    /// How the daemon is reached.
    pub api: Api,
    /// What executes the guests' instructions.
    pub accelerator: Wish,
    /// Whether software emulation, which is no isolation boundary, will do.
    pub allow_emulation: bool,
    /// Whose signature an image needs before it is booted.
    pub image_keys: Trust,
    /// How long running jobs are waited for at the end (SIGTERM, `mayfly drain`).
    pub drain: Duration,
    /// How much the logs and egress records of jobs that are over may take together.
    pub log_bytes: Size,
    /// How much the closed segments of the audit log may take.
    pub audit_bytes: Size,
    /// How long they are kept.
    pub audit_age: Duration,
}

/// `[telemetry]`.
#[derive(Debug, Clone)]
pub struct Telemetry {
    /// Where traces go; `None` is nowhere.
    pub otlp: Option<Otlp>,
}

/// A collector of traces.
#[derive(Debug, Clone)]
pub struct Otlp {
    /// Its address as it is written.
    pub endpoint: String,
    /// What it is told beside the traces, e.g. a key.
    pub headers: Option<Secret>,
    /// Both, ready to be used.
    pub collector: Collector,
}

/// How the daemon is reached.
#[derive(Debug, Clone)]
pub struct Api {
    /// The unix socket; `None` is [`Api::DEFAULT_SOCKET`] in the state directory.
    pub socket: Option<PathBuf>,
    /// The mode of the socket.
    pub mode: u32,
    /// Where the read-only API is offered over TCP, and the token for it.
    pub tcp: Option<(SocketAddr, Secret)>,
}

impl Api {
    /// The socket's name in the state directory.
    pub const DEFAULT_SOCKET: &'static str = "api.sock";

    /// The socket, with the state directory that is used.
    pub fn socket(&self, state: &Path) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| state.join(Self::DEFAULT_SOCKET))
    }
}

/// `[status]`: the status page, health and metrics over TCP.
#[derive(Debug, Clone)]
pub struct StatusPage {
    /// Where it is listened.
    pub listen: SocketAddr,
    /// Who may look.
    pub access: Access,
}

/// Who may look at the status page.
#[derive(Debug, Clone)]
pub enum Access {
    /// Who is on this host.
    Host,
    /// Who knows the token.
    Token(Secret),
    /// Who reaches the address.
    Anyone,
}

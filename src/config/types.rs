//! Checked settings.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;

use super::github::{ApiBase, Repository, Target};
use mayfly_egress::policy::{Policies, Policy};
use mayfly_host::size::Size;
use mayfly_image::{Reference, Trust};
use mayfly_machine::accelerator::AcceleratorPreference;
use mayfly_telemetry::otlp::Collector;

/// The settings of `mayfly serve`.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The settings file, if one was given.
    pub file: Option<PathBuf>,
    /// `[github]`. `None` means local jobs only.
    pub github: Option<GitHubConfig>,
    /// The pools in written order. Names are unique.
    pub pools: Vec<PoolConfig>,
    /// `[host]`: the resources that Mayfly may use, and the API.
    pub host: HostConfig,
    /// `[status]`. `None` means that the status page is served on the Unix socket only.
    pub status: Option<StatusConfig>,
    /// `[telemetry]`.
    pub telemetry: TelemetryConfig,
    /// All egress policies, including those of the pools.
    pub policies: Policies,
    /// Warnings about settings that are valid but probably a mistake.
    pub warnings: Vec<String>,
}

impl Settings {
    /// Returns the pool with the given name.
    pub fn pool(&self, name: &str) -> Option<&PoolConfig> {
        self.pools.iter().find(|pool| pool.name.as_str() == name)
    }
}

/// A secret and its origin. The origin is not secret.
#[derive(Debug, Clone)]
pub struct Secret {
    /// The secret itself.
    pub value: SecretString,
    /// The file or variable that it comes from.
    pub source: String,
}

/// `[github]`.
#[derive(Debug, Clone)]
pub struct GitHubConfig {
    /// The scope that runners are registered with, and its server.
    pub target: Target,
    /// The URL of the REST API, as written or derived from the server.
    pub api: ApiBase,
    /// The credentials that Mayfly authenticates with.
    pub credentials: GitHubCredentials,
    /// The listener for webhook deliveries.
    pub webhook: Option<WebhookConfig>,
    /// The repositories to poll: those in the settings, else the one of the scope.
    pub repositories: Vec<Repository>,
    /// The interval between two polls. With `None` it depends on whether deliveries come.
    pub poll: Option<Duration>,
    /// The interval between two lists of the scope's runners, which find orphans.
    pub reconcile: Duration,
}

impl GitHubConfig {
    /// Returns the URL of the scope, as required to register a scale set.
    pub fn url(&self) -> String {
        self.target.to_string()
    }

    /// Returns the URL of a job's page, or `None` if the repository's name is not valid at GitHub.
    pub fn job_page(&self, repository: &str, run: u64, job: u64) -> Option<String> {
        let repository: Repository = repository.parse().ok()?;
        let server = &self.target.origin;
        Some(format!("{server}/{repository}/actions/runs/{run}/job/{job}"))
    }
}

/// The credentials that Mayfly authenticates with.
#[derive(Debug, Clone)]
pub enum GitHubCredentials {
    /// A personal access token.
    Token(Secret),
    /// A GitHub App.
    App(AppCredentials),
}

/// A GitHub App.
#[derive(Debug, Clone)]
pub struct AppCredentials {
    /// The issuer of its JWTs: the client id, or the App's id in digits.
    pub issuer: String,
    /// Its RSA key, in PEM.
    pub private_key: Secret,
    /// The installation. With `None` Mayfly looks it up.
    pub installation: Option<u64>,
}

/// `[github.webhook]`.
#[derive(Debug, Clone)]
pub struct WebhookConfig {
    /// The address to listen on.
    pub listen: SocketAddr,
    /// The secret that deliveries are signed with.
    pub secret: Secret,
    /// The hook's id at GitHub, needed to request missed deliveries. An App's own hook has none.
    pub hook: Option<u64>,
}

/// A pool's name, which becomes a part of runner names: a lowercase letter or digit, then lowercase
/// letters, digits, `-` and `_`, at most 32 characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolName(String);

impl PoolName {
    /// The maximum number of bytes. A runner's name can have 64; a prefix and a random part need
    /// the rest.
    pub const MAX_LENGTH: usize = 32;

    /// Returns the name if the text is a valid one.
    pub fn parse(text: &str) -> Option<Self> {
        let first = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let rest = |byte: u8| first(byte) || matches!(byte, b'-' | b'_');
        let fits = text.len() <= Self::MAX_LENGTH
            && text.bytes().next().is_some_and(first)
            && text.bytes().all(rest);
        fits.then(|| Self(text.to_owned()))
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// `[[pool]]`: a group of identical microVMs.
#[derive(Debug, Clone)]
pub struct PoolConfig {
    /// Its name.
    pub name: PoolName,
    /// The labels that jobs request with `runs-on`, in lowercase, without duplicates. Empty for
    /// local jobs only.
    pub labels: Vec<String>,
    /// The name of the runner group. `None` is the default group of the scope.
    pub runner_group: Option<String>,
    /// The image to boot.
    pub image: Reference,
    /// Virtual processors of each microVM.
    pub cpus: u32,
    /// Memory of each microVM.
    pub memory: Size,
    /// Disk size of each microVM. `None` is the default of `mayfly run`.
    pub disk: Option<Size>,
    /// The number of warm microVMs (with [`Trigger::Always`]: registered runners) to keep in
    /// addition to those that run jobs.
    pub min_idle: u32,
    /// The maximum number of microVMs at the same time, at least one.
    pub max: u32,
    /// How the pool learns about waiting jobs at GitHub.
    pub trigger: Trigger,
    /// The egress policy of its microVMs.
    pub egress: Policy,
    /// Time limits.
    pub deadlines: PoolDeadlines,
    /// Environment variables of the runner and of local jobs.
    pub environment: BTreeMap<String, String>,
    /// Scripts that the runner calls.
    pub hooks: RunnerHooks,
    /// The absolute path of the runner's directory in the image.
    pub runner_directory: String,
    /// Whether Mayfly's log of a GitHub job includes the output of its steps.
    pub job_log: bool,
}

/// How a pool learns about waiting jobs at GitHub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trigger {
    /// Webhook deliveries of `workflow_job`.
    Webhook,
    /// Polling the queued runs of the repositories.
    Poll,
    /// The message session of a runner scale set.
    ScaleSet,
    /// No trigger: `min_idle` runners are always registered.
    Always,
    /// A scale set if GitHub supports it for the scope, else polling.
    Auto,
    /// No trigger: local jobs only.
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

/// The time limits of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolDeadlines {
    /// From the start of a boot until the guest is ready. The default depends on the accelerator.
    pub boot: Option<Duration>,
    /// How long a warm microVM in excess of `min_idle` is kept.
    pub idle: Duration,
    /// From registration until the runner has a job.
    pub claim: Duration,
    /// How long a job may run.
    pub job: Duration,
    /// From SIGINT to a runner until its microVM is ended.
    pub farewell: Duration,
}

/// Absolute paths of scripts in the image that the runner calls.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunnerHooks {
    /// Runs before the first step of a job (`ACTIONS_RUNNER_HOOK_JOB_STARTED`).
    pub job_started: Option<String>,
    /// Runs after the last step of a job (`ACTIONS_RUNNER_HOOK_JOB_COMPLETED`).
    pub job_completed: Option<String>,
}

impl RunnerHooks {
    /// Returns the environment variables that tell the runner about the scripts.
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
pub struct HostConfig {
    /// Processors that all microVMs together may use.
    pub cpus: u32,
    /// Memory that all microVMs together may use.
    pub memory: Size,
    /// The state directory. `None` means the one of the command line, else the default.
    pub state_directory: Option<PathBuf>,
    /// The listeners of the API.
    pub api: ApiConfig,
    /// The accelerator that executes the guests' instructions.
    pub accelerator: AcceleratorPreference,
    /// Whether software emulation, which is not an isolation boundary, is allowed.
    pub allow_emulation: bool,
    /// The keys that images must be signed with.
    pub image_keys: Trust,
    /// How long a drain (SIGTERM, `mayfly drain`) waits for running jobs.
    pub drain: Duration,
    /// The maximum size of all logs and egress records of ended jobs.
    pub log_bytes: Size,
    /// The maximum size of the closed segments of the audit log.
    pub audit_bytes: Size,
    /// How long closed segments are kept.
    pub audit_age: Duration,
}

/// `[telemetry]`.
#[derive(Debug, Clone)]
pub struct TelemetryConfig {
    /// The collector that receives traces. `None` disables traces.
    pub otlp: Option<OtlpConfig>,
}

/// A collector of traces (OpenTelemetry).
#[derive(Debug, Clone)]
pub struct OtlpConfig {
    /// The endpoint as written.
    pub endpoint: String,
    /// Headers that are sent to it, for example an API key.
    pub headers: Option<Secret>,
    /// The collector that is built from both.
    pub collector: Collector,
}

/// The listeners of the daemon's API.
#[derive(Debug, Clone)]
pub struct ApiConfig {
    /// The Unix socket. `None` means [`ApiConfig::DEFAULT_SOCKET`] in the state directory.
    pub socket: Option<PathBuf>,
    /// The mode of the socket.
    pub mode: u32,
    /// The TCP address of the read-only API, and its token.
    pub tcp: Option<(SocketAddr, Secret)>,
}

impl ApiConfig {
    /// The default name of the socket in the state directory.
    pub const DEFAULT_SOCKET: &'static str = "api.sock";

    /// Returns the path of the socket, given the state directory.
    pub fn socket(&self, state: &Path) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| state.join(Self::DEFAULT_SOCKET))
    }
}

/// `[status]`: the status page, health and metrics over TCP.
#[derive(Debug, Clone)]
pub struct StatusConfig {
    /// The address to listen on.
    pub listen: SocketAddr,
    /// Who may read it.
    pub access: StatusAccess,
}

/// Who may read the status page.
#[derive(Debug, Clone)]
pub enum StatusAccess {
    /// Everyone on this host.
    LocalHost,
    /// Everyone who knows the token.
    Token(Secret),
    /// Everyone who can connect to the address.
    Anyone,
}

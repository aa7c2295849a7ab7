//! Valid and invalid settings from files and variables.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::ExposeSecret;

use super::*;
use mayfly_failure::{Code, Failure, chain};
use mayfly_host::size::Size;

mod bounds;
mod credentials;
mod generated;
mod needs;
mod reference;
mod reload;

struct Fixture {
    directory: tempfile::TempDir,
    environment: Environment,
}

impl Fixture {
    fn new() -> Self {
        let environment = Environment {
            variables: std::collections::BTreeMap::new(),
            processors: 8,
            memory: Size::gibibytes(32),
        };
        Self { directory: tempfile::tempdir().unwrap(), environment }
    }

    fn with(variables: &[(&str, &str)]) -> Self {
        let mut fixture = Self::new();
        fixture.set(variables);
        fixture
    }

    fn set(&mut self, variables: &[(&str, &str)]) {
        let pairs = variables.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        self.environment.variables.extend(pairs);
    }

    fn file(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn load(&self, text: &str) -> Result<Settings, ConfigError> {
        let path = self.file("mayfly.toml", text, 0o644);
        Settings::load(Some(&path), &self.environment)
    }

    fn refusal(&self, text: &str) -> String {
        let error = self.load(text).unwrap_err();
        assert_eq!(error.code(), Code::BadConfiguration, "{error}");
        chain(&error).replace(&format!("{}/", self.directory.path().display()), "")
    }
}

fn token(settings: &Settings) -> (&str, &str) {
    match &settings.github.as_ref().unwrap().credentials {
        GitHubCredentials::Token(secret) => (secret.value.expose_secret(), &secret.source),
        GitHubCredentials::App(_) => panic!("an App"),
    }
}

const ORGANIZATION: &str = "[github]\nurl = \"https://github.com/acme\"\n";

#[test]
fn empty_settings_have_one_pool_for_local_jobs() {
    let settings = Settings::load(None, &Fixture::new().environment).unwrap();
    assert!(settings.github.is_none());
    let pool = settings.pool("default").unwrap();
    assert_eq!((pool.trigger, pool.egress.name.as_str()), (Trigger::None, "github"));
    assert_eq!(pool.image.to_string(), "base");
    assert_eq!((pool.cpus, pool.max, pool.min_idle), (1, 8, 1));
    assert_eq!(settings.host.memory.to_string(), "28.8 GiB");
}

#[test]
fn the_variables_of_a_plain_container_work_alone() {
    let fixture = Fixture::with(&[
        ("GITHUB_REPOSITORY", "acme/site"),
        ("GITHUB_TOKEN", "ghp_secret\n"),
        ("NUM_CPUS", "4"),
        ("MEMORY_ALLOC", "8192"),
        ("https_proxy", "http://proxy.example.com:3128"),
        ("no_proxy", "localhost"),
    ]);
    let settings = Settings::load(None, &fixture.environment).unwrap();
    assert_eq!(token(&settings), ("ghp_secret", "GITHUB_TOKEN"));
    let github = settings.github.as_ref().unwrap();
    assert_eq!(github.url(), "https://github.com/acme/site");
    assert_eq!(github.repositories.len(), 1);
    let page = github.job_page("acme/site", 7, 70);
    assert_eq!(page.as_deref(), Some("https://github.com/acme/site/actions/runs/7/job/70"));
    for wrong in ["acme", "acme/", "acme/site/..", "acme/si te", "acme/\"onclick="] {
        assert_eq!(github.job_page(wrong, 7, 70), None, "{wrong}");
    }
    let pool = settings.pool("default").unwrap();
    assert_eq!((pool.cpus, pool.memory, pool.max), (4, Size::gibibytes(8), 2));
    assert_eq!(pool.image.to_string(), "runner");
    assert_eq!((pool.trigger, pool.labels[0].as_str()), (Trigger::Auto, "self-hosted"));
    assert_eq!(pool.egress.parent.as_ref().unwrap().port, 3128);
    assert_eq!(settings.warnings.len(), 1, "{:?}", settings.warnings);
}

#[test]
fn an_unused_token_is_warned_about() {
    let settings = Fixture::with(&[("GITHUB_TOKEN", "ghp_secret")]).load("").unwrap();
    assert!(settings.github.is_none());
    assert!(settings.warnings[0].contains("GITHUB_REPOSITORY is not"), "{:?}", settings.warnings);
}

#[test]
fn an_empty_variable_is_ignored() {
    let fixture = Fixture::with(&[
        ("GITHUB_REPOSITORY", "acme/site"),
        ("GITHUB_TOKEN", "ghp_secret"),
        ("MAYFLY_GITHUB__TOKEN_FILE", ""),
        ("https_proxy", ""),
    ]);
    let settings = Settings::load(None, &fixture.environment).unwrap();
    assert_eq!(token(&settings), ("ghp_secret", "GITHUB_TOKEN"));
    assert!(settings.pool("default").unwrap().egress.parent.is_none());
}

#[test]
fn a_repository_may_be_a_url_and_an_invalid_variable_is_named() {
    let mut fixture = Fixture::with(&[
        ("GITHUB_REPOSITORY", "https://git.example.com/a/b"),
        ("GITHUB_TOKEN", "x"),
    ]);
    let settings = Settings::load(None, &fixture.environment).unwrap();
    assert_eq!(settings.github.unwrap().api.as_str(), "https://git.example.com/api/v3");
    for (name, value) in [("NUM_CPUS", "many"), ("GITHUB_REPOSITORY", "a b"), ("https_proxy", "x")]
    {
        fixture.set(&[("NUM_CPUS", "1"), (name, value)]);
        let error = chain(&Settings::load(None, &fixture.environment).unwrap_err());
        assert!(error.contains(name) && error.contains(value), "{error}");
        fixture.set(&[("GITHUB_REPOSITORY", "a/b")]);
    }
}

#[test]
fn variables_override_the_file_and_errors_name_the_origin() {
    let mut fixture = Fixture::with(&[("MAYFLY_HOST__CPUS", "3"), ("MAYFLY_HOST__MEMORY", "6G")]);
    let settings = fixture.load("[host]\ncpus = 2\ndrain = \"5m\"").unwrap();
    assert_eq!((settings.host.cpus, settings.host.memory), (3, Size::gibibytes(6)));
    assert_eq!(settings.host.drain, Duration::from_secs(300));
    fixture.set(&[("MAYFLY_HOST__CPUS", "0")]);
    let error = fixture.refusal("[host]\ncpus = 2");
    assert_eq!(
        error,
        "MAYFLY_HOST__CPUS: host.cpus = \"0\" can't be used: must be from 1 to 65536"
    );
    fixture.set(&[("MAYFLY_HOST__CPUS", "lots")]);
    let error = fixture.refusal("");
    assert!(error.starts_with("MAYFLY_HOST__CPUS: host.cpus: "), "{error}");
    assert!(error.contains("lots"), "{error}");
}

#[test]
fn unknown_keys_are_rejected_with_their_location() {
    for (text, expected) in [
        ("hots = 1", "mayfly.toml: hots: "),
        ("[host]\ncpu = 1", "mayfly.toml: host.cpu: "),
        ("[[pool]]\nname = 'a'\n[[pool]]\nname = 'b'\nlabel = 'x'", "mayfly.toml: pool[1].label: "),
        ("[[pool]]\nname = 'a'\ndeadlines = { bot = '1s' }", "mayfly.toml: pool[0].deadlines.bot"),
        ("[egress.policy.ci]\nallows = []", "mayfly.toml: egress.policy.ci.allows: "),
    ] {
        let error = Fixture::new().refusal(text);
        assert!(error.starts_with(expected), "{error}");
    }
    let error = Fixture::with(&[("MAYFLY_HOST__CPU", "1")]).refusal("");
    assert!(error.starts_with("MAYFLY_HOST__CPU: host.cpu: "), "{error}");
}

#[test]
fn values_of_the_wrong_type_are_rejected_with_their_location() {
    for (text, expected) in [
        ("[host]\nmemory = 'much'", "host.memory: \"much\" is not a size"),
        ("[host]\naccel = 'xen'", "host.accel: \"xen\": must be one of auto"),
        ("[host]\ndrain = '5'", "host.drain: \"5\" is not a duration"),
        ("[github]\npoll = '15'", "github.poll: \"15\" is not a duration"),
        ("[host]\nlisten = '80'", "host.listen: "),
        ("[[pool]]\nname = 'a'\nimage = 'A/b'", "pool[0].image: \"A/b\": "),
        ("[[pool]]\nname = 'a'\ntrigger = 'cron'", "pool[0].trigger: "),
        ("[[pool]]\nlabels = []", "pool[0]: missing field `name`"),
    ] {
        let error = Fixture::new().refusal(text);
        assert!(error.contains(expected), "{error}");
    }
    let error = Fixture::new().refusal("[host]\ncpus = \n");
    assert!(error.starts_with("mayfly.toml:2: invalid TOML"), "{error}");
}

#[test]
fn a_settings_file_is_read_whole_or_not_at_all() {
    // Valid TOML up to the limit, and beyond it.
    let comments = "#\n".repeat(2 << 20);
    let error = Fixture::new().load(&format!("{comments}[host]\ncpus = 1\n")).unwrap_err();
    let error = chain(&error);
    assert!(error.contains("can't read") && error.contains("too large"), "{error}");
}

#[test]
fn invalid_pools_are_rejected() {
    for (pool, expected) in [
        ("name = 'A'", "pool[0].name = \"A\""),
        ("name = 'a'\ncpus = 9", "pool[0].cpus = \"9\" can't be used: all microVMs together"),
        ("name = 'a'\nmemory = '64G'", "pool[0].memory"),
        ("name = 'a'\nmemory = '64M'", "a microVM needs at least 192 MiB"),
        ("name = 'a'\nmin_idle = 3\nmax = 2", "must not be larger than max = 2"),
        ("name = 'a'\nmax = 0", "pool[0].max = \"0\""),
        ("name = 'a'\negress = 'ci'", "unknown egress policy"),
        ("name = 'a'\ntrigger = 'poll'", "requires a [github] table"),
        ("name = 'a'\nlabels = ['ubuntu-latest']", "pool[0].labels[0] = \"ubuntu-latest\""),
        ("name = 'a'\nlabels = ['a b']", "must be 1 to 256 characters"),
        ("name = 'a'\ndeadlines = { claim = '1s' }", "pool[0].deadlines.claim = \"1s\""),
        ("name = 'a'\ndeadlines = { job = '6d' }", "must be from 1s to 5days"),
        ("name = 'a'\ndeadlines = { farewell = '0s' }", "must be from 1s to 10m"),
        ("name = 'a'\nhooks = { job_started = 'x' }", "must be an absolute path"),
        ("name = 'a'\nenvironment = { '1A' = 'x' }", "not a valid name of an environment variable"),
        ("name = 'a'\nenvironment = { ACTIONS_RUNNER_INPUT_JITCONFIG = 'x' }", "sets this"),
        ("name = 'a'\n[[pool]]\nname = 'a'", "pool[1].name = \"a\""),
    ] {
        let error = Fixture::new().refusal(&format!("[[pool]]\n{pool}"));
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_trigger_that_can_never_fire_is_rejected() {
    let fixture = Fixture::with(&[("GITHUB_TOKEN", "x")]);
    for (trigger, expected) in [
        ("trigger = 'webhook'", "[github.webhook] is missing"),
        ("trigger = 'poll'", "github.repositories is empty"),
        ("trigger = 'always'\nmin_idle = 0", "pool[0].min_idle"),
        ("trigger = 'scale-set'\nlabels = []", "pool[0].labels"),
    ] {
        let labels = if trigger.contains("labels") { "" } else { "labels = ['a']" };
        let error =
            fixture.refusal(&format!("{ORGANIZATION}[[pool]]\nname = 'a'\n{labels}\n{trigger}"));
        assert!(error.contains(expected), "{error}");
    }
    let settings = fixture.load(&format!("{ORGANIZATION}[[pool]]\nname='a'\nlabels=['A','a']"));
    let settings = settings.unwrap();
    assert_eq!(settings.pools[0].labels, ["a"]);
    assert!(settings.warnings[0].contains("trigger auto"), "{:?}", settings.warnings);
}

#[test]
fn pools_that_share_labels_are_warned_about() {
    let text = "[[pool]]\nname='a'\nlabels=['x','y']\n[[pool]]\nname='b'\nlabels=['Y']\n\
                [[pool]]\nname='c'\nlabels=['z']";
    let warnings = Fixture::new().load(text).unwrap().warnings;
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].starts_with("pools a and b share the labels y"), "{warnings:?}");
}

#[test]
fn the_socket_is_for_owner_and_group_only_and_tcp_needs_a_token() {
    let fixture = Fixture::new();
    assert_eq!(fixture.load("[host]\nsocket_mode = '0660'").unwrap().host.api.mode, 0o660);
    for (text, expected) in [
        ("socket_mode = '0666'", "host.socket_mode = \"0666\""),
        ("socket_mode = 'rw'", "host.socket_mode"),
        ("socket = 'api.sock'", "must be an absolute path"),
        ("listen = '127.0.0.1:9000'", "host.token_file is missing"),
        ("token_file = '/x'", "has no effect because host.listen is not set"),
        ("accel = 'tcg'", "not an isolation boundary"),
    ] {
        let error = fixture.refusal(&format!("[host]\n{text}"));
        assert!(error.contains(expected), "{error}");
    }
    let file = fixture.file("api-token", "0123456789abcdef", 0o600);
    let text = format!("[host]\nlisten = '127.0.0.1:9000'\ntoken_file = {:?}", file.display());
    assert!(fixture.load(&text).unwrap().host.api.tcp.is_some());
}

#[test]
fn the_status_page_is_local_unless_configured_otherwise() {
    let fixture = Fixture::new();
    let status = |text: &str| fixture.load(&format!("[status]\n{text}")).unwrap().status.unwrap();
    assert!(fixture.load("").unwrap().status.is_none());
    for address in ["127.0.0.1:9180", "[::1]:9180"] {
        assert!(matches!(status(&format!("listen = '{address}'")).access, StatusAccess::LocalHost));
    }
    let file = fixture.file("status-token", "0123456789abcdef", 0o600);
    let text = format!("listen = '0.0.0.0:9180'\ntoken_file = {:?}", file.display());
    assert!(matches!(status(&text).access, StatusAccess::Token(_)));
    let everyone = "listen = '0.0.0.0:9180'\nallow_unauthenticated = true";
    assert!(matches!(status(everyone).access, StatusAccess::Anyone));
    let weak = fixture.file("weak", "short", 0o600);
    for (text, expected) in [
        (String::new(), "status.listen is missing"),
        ("listen = '0.0.0.0:9180'".to_owned(), "status.listen = \"0.0.0.0:9180\""),
        ("listen = '9180'".to_owned(), "status.listen: "),
        (format!("{text}\nallow_unauthenticated = true"), "the token of [status] is set too"),
        (
            format!("listen = '127.0.0.1:1'\ntoken_file = {:?}", weak.display()),
            "at least 16 printable",
        ),
    ] {
        let error = fixture.refusal(&format!("[status]\n{text}"));
        assert!(error.contains(expected), "{error}");
    }
    let shown = fixture.load(&format!("[status]\n{text}")).unwrap().lines().join("\n");
    assert!(shown.contains("status.token") && !shown.contains("0123456789abcdef"), "{shown}");
}

#[test]
fn a_variable_with_one_underscore_too_few_is_warned_about() {
    let fixture = Fixture::with(&[
        ("MAYFLY_GITHUB_TOKEN", "x"),
        ("MAYFLY_LOG", "x"),
        ("MAYFLY_STATE_DIR", "x"),
    ]);
    let warnings = fixture.load("").unwrap().warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].starts_with("MAYFLY_GITHUB_TOKEN is ignored"));
}

#[test]
fn a_missing_file_is_named() {
    let error = Settings::load(Some("/nowhere/mayfly.toml".as_ref()), &Fixture::new().environment)
        .unwrap_err();
    assert_eq!(
        (error.code(), error.to_string().as_str()),
        (Code::NotFound, "can't read /nowhere/mayfly.toml")
    );
}

#[test]
fn the_intervals_of_requests_to_github_are_bounded() {
    let fixture = Fixture::with(&[("GITHUB_TOKEN", "ghp_secret")]);
    let settings = fixture.load(ORGANIZATION).unwrap();
    let github = settings.github.unwrap();
    assert_eq!((github.poll, github.reconcile), (None, Duration::from_secs(300)));
    let text = format!("{ORGANIZATION}poll = '5s'\nreconcile = '1m'\n");
    let github = fixture.load(&text).unwrap().github.unwrap();
    assert_eq!(github.poll, Some(Duration::from_secs(5)));
    assert_eq!(github.reconcile, Duration::from_secs(60));
    for key in ["poll", "reconcile"] {
        let error = fixture.refusal(&format!("{ORGANIZATION}{key} = '2h'"));
        assert!(error.contains(&format!("github.{key} = \"2h\"")), "{error}");
    }
}

/// A minisign public key. The secret key does not exist any more.
const KEY: &str = "RWSIPwTv4NbEoGZVonMjyW9g1VuMX7uFpeIqefdxY+U85ndNdoszfDZl";

#[test]
fn image_keys_are_validated() {
    let fixture = Fixture::new();
    let settings = fixture.load(&format!("[host]\nimage_keys = [\"{KEY}\"]")).unwrap();
    assert_eq!(settings.host.image_keys.keys().len(), 1);
    let shown = settings.lines().into_iter().find(|line| line.starts_with("host.image_keys"));
    assert_eq!(shown.unwrap(), format!("host.image_keys = [\"{KEY}\"]"));
    let refusal = fixture.refusal(&format!("[host]\nimage_keys = [\"{KEY}\", \"RWnonsense\"]"));
    assert!(
        refusal.contains(
            "host.image_keys[1] = \"RWnonsense\" can't be used: not a minisign public key"
        ),
        "{refusal}"
    );
}

#[test]
fn the_collector_comes_from_the_settings_or_else_from_opentelemetry_variables() {
    const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    const HEADERS: &str = "OTEL_EXPORTER_OTLP_HEADERS";
    let endpoint = |fixture: &Fixture, text: &str| {
        fixture.load(text).unwrap().telemetry.otlp.map(|otlp| otlp.endpoint)
    };
    let mut fixture = Fixture::new();
    assert_eq!(endpoint(&fixture, ""), None);
    fixture.set(&[(ENDPOINT, "http://b:4318"), (HEADERS, "x-key=hunter2")]);
    let text = "[telemetry]\notlp_endpoint = 'http://a:4318'";
    assert_eq!(endpoint(&fixture, text).as_deref(), Some("http://a:4318"));
    assert_eq!(endpoint(&fixture, "").as_deref(), Some("http://b:4318"));
    let shown = fixture.load(text).unwrap().lines().join("\n");
    assert!(shown.contains("telemetry.otlp_endpoint = \"http://a:4318\""), "{shown}");
    assert!(!shown.contains("hunter2"), "{shown}");
    let wrong = fixture.refusal("[telemetry]\notlp_endpoint = 'a:4318'");
    assert!(wrong.starts_with("mayfly.toml: telemetry.otlp_endpoint = \"a:4318\""), "{wrong}");
    fixture.set(&[(HEADERS, "hunter2")]);
    let wrong = fixture.refusal(text);
    assert!(wrong.starts_with(HEADERS) && !wrong.contains("hunter2"), "{wrong}");
    fixture.set(&[(ENDPOINT, "collector")]);
    assert!(fixture.refusal("").starts_with(ENDPOINT));
}

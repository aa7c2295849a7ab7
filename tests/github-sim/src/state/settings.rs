//! The simulator's settings: credentials, lifetimes, faults.

use std::collections::BTreeMap;

use crate::faults::Rule;
use crate::time::{Millis, SECOND};

/// A GitHub App with one installation.
#[derive(Debug, Clone)]
pub struct App {
    /// Its App ID, a valid JWT issuer.
    pub id: u64,
    /// Its client ID, the other valid JWT issuer.
    pub client_id: String,
    /// The installation's ID.
    pub installation: u64,
    /// The organization or user that it is installed for.
    pub owner: String,
    /// Its public key in DER ([`crate::app_key::public_key`]).
    pub public_key: Vec<u8>,
    /// Its permissions.
    pub permissions: BTreeMap<String, String>,
}

impl App {
    /// Creates an App with the permissions that Mayfly's documentation lists.
    pub fn new(owner: &str, public_key: Vec<u8>) -> Self {
        let permissions = [
            ("administration", "write"),
            ("organization_self_hosted_runners", "write"),
            ("actions", "read"),
            ("metadata", "read"),
        ];
        Self {
            id: 4_321,
            client_id: "Iv23simulated".to_owned(),
            installation: 8_765,
            owner: owner.to_owned(),
            public_key,
            permissions: permissions.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        }
    }
}

/// The webhook's receiver.
#[derive(Debug, Clone)]
pub struct Hook {
    /// An `http://` URL.
    pub url: String,
    /// The secret that bodies are signed with.
    pub secret: String,
}

/// A runner archive for download.
#[derive(Debug, Clone)]
pub struct RunnerArchive {
    /// Its version.
    pub version: String,
    /// The archive's content.
    pub bytes: Vec<u8>,
    /// The digest that GitHub reports.
    pub sha256: String,
    /// The bearer token for the download.
    pub token: String,
}

/// The simulated build of the stand-in runner: how it handles signals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RunnerKind {
    /// The current release: handles SIGTERM like SIGINT, with status 143.
    #[default]
    Dotnet8,
    /// The next release: SIGTERM kills it without output.
    Dotnet10,
    /// A hung runner: it, its worker and its steps ignore both signals.
    Deaf,
}

impl RunnerKind {
    /// Returns it as the runner's configuration has it.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Dotnet8 => "dotnet8",
            Self::Dotnet10 => "dotnet10",
            Self::Deaf => "deaf",
        }
    }
}

/// The simulator's settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The App, if any.
    pub app: Option<App>,
    /// Personal access tokens with all permissions.
    pub tokens: Vec<String>,
    /// The webhook's receiver, if any.
    pub hook: Option<Hook>,
    /// The runner archive for download, if any.
    pub runner: Option<RunnerArchive>,
    /// The URL in responses, if not the listening address.
    pub url: Option<String>,
    /// The URL for runners, if not the supervisors' one.
    pub runner_url: Option<String>,
    /// The simulated build of the stand-in runner, passed in its configuration.
    pub runner_kind: RunnerKind,
    /// The lifetime of an installation token: an hour at GitHub.
    pub token_life: Millis,
    /// The lifetime of a queue token of a scale set.
    pub queue_token_life: Millis,
    /// How long a runner can connect with a JIT configuration.
    pub jit_life: Millis,
    /// How long a runner with a job may be silent before its job fails with "lost communication".
    pub lost_after: Millis,
    /// How long a runner may be silent before it is listed as offline.
    pub offline_after: Millis,
    /// How long a scale set's session stays open after its last poll.
    pub session_life: Millis,
    /// The length of a long poll.
    pub poll_hold: Millis,
    /// Whether scale sets can be created; at GitHub, not for every owner.
    pub scale_sets: bool,
    /// The calls per hour and token.
    pub rate_limit: u64,
    /// How long a lost response keeps its caller waiting: 10 s at GitHub.
    pub lost_answer_hold: Millis,
    /// How far the simulated clock is ahead of the machine's, in milliseconds.
    pub clock_skew: i64,
    /// The fault rules.
    pub faults: Vec<Rule>,
    /// The seed that makes a run with faults reproducible.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            app: None,
            tokens: Vec::new(),
            hook: None,
            runner: None,
            url: None,
            runner_url: None,
            runner_kind: RunnerKind::default(),
            token_life: 3_600 * SECOND,
            queue_token_life: 3_600 * SECOND,
            jit_life: 3_600 * SECOND,
            lost_after: 600 * SECOND,
            offline_after: 90 * SECOND,
            session_life: 60 * SECOND,
            poll_hold: 50 * SECOND,
            scale_sets: true,
            rate_limit: 5_000,
            lost_answer_hold: 10 * SECOND,
            clock_skew: 0,
            faults: Vec::new(),
            seed: 1,
        }
    }
}

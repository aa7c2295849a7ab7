//! How this GitHub is: who may call, how long things live, what goes wrong.

use std::collections::BTreeMap;

use crate::faults::Rule;
use crate::time::{Millis, SECOND};

/// A GitHub App with its one installation.
#[derive(Debug, Clone)]
pub struct App {
    /// Its number, which a JWT may name as issuer.
    pub id: u64,
    /// Its client id, the other issuer that GitHub takes.
    pub client_id: String,
    /// The number of its installation.
    pub installation: u64,
    /// The organisation or user that it is installed at.
    pub owner: String,
    /// Its public key in DER ([`crate::app_key::public_key`]).
    pub public_key: Vec<u8>,
    /// What it may do.
    pub permissions: BTreeMap<String, String>,
}

impl App {
    /// An App with the permissions that Mayfly's documentation asks for.
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

/// Where webhooks go.
#[derive(Debug, Clone)]
pub struct Hook {
    /// An `http://` address.
    pub url: String,
    /// The secret that bodies are signed with.
    pub secret: String,
}

/// The archive of the runner that accounts are given.
#[derive(Debug, Clone)]
pub struct RunnerArchive {
    /// Its version.
    pub version: String,
    /// What is downloaded.
    pub bytes: Vec<u8>,
    /// What its digest is said to be.
    pub sha256: String,
    /// The bearer token that it is given for.
    pub token: String,
}

/// What the stand-in runner was built for: how it takes signals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RunnerKind {
    /// As released today: SIGTERM is as good as SIGINT, with status 143.
    #[default]
    Dotnet8,
    /// As what comes next: SIGTERM is its end without a word.
    Dotnet10,
    /// Hangs: it, its worker and its steps ignore both.
    Deaf,
}

impl RunnerKind {
    /// As its configuration has it.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Dotnet8 => "dotnet8",
            Self::Dotnet10 => "dotnet10",
            Self::Deaf => "deaf",
        }
    }
}

/// How this GitHub is.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The App, if there is one.
    pub app: Option<App>,
    /// Personal access tokens that are good for everything.
    pub tokens: Vec<String>,
    /// Where webhooks go, if anywhere.
    pub hook: Option<Hook>,
    /// The runner that is given, if any.
    pub runner: Option<RunnerArchive>,
    /// Its address as it tells it, where that isn't the one that it listens on.
    pub url: Option<String>,
    /// How runners reach this GitHub, where that differs from how supervisors do.
    pub runner_url: Option<String>,
    /// What the stand-in runner is like, which its configuration tells it.
    pub runner_kind: RunnerKind,
    /// How long an installation token lives: an hour at GitHub.
    pub token_life: Millis,
    /// How long the token of a scale set's message queue lives.
    pub queue_token_life: Millis,
    /// How long a JIT configuration can be connected with.
    pub jit_life: Millis,
    /// How long a runner with a job may be silent before its job has "lost communication".
    pub lost_after: Millis,
    /// How long a runner may be silent before it shows as offline.
    pub offline_after: Millis,
    /// How long a scale set's session outlives its last poll.
    pub session_life: Millis,
    /// How long a long poll is held.
    pub poll_hold: Millis,
    /// Whether scale sets can be made: not everywhere, at GitHub.
    pub scale_sets: bool,
    /// Calls per hour and token.
    pub rate_limit: u64,
    /// How long an answer that is lost keeps its caller waiting: 10 s at GitHub.
    pub lost_answer_hold: Millis,
    /// How far this GitHub's clock is ahead of the machine's, in milliseconds.
    pub clock_skew: i64,
    /// What goes wrong.
    pub faults: Vec<Rule>,
    /// Makes a run with faults repeat.
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

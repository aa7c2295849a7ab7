//! Runners: registrations, JIT configurations, sessions.

use data_encoding::BASE64;
use serde::Serialize;
use serde_json::json;

use super::State;
use super::jobs::{Conclusion, Job};
use crate::faults::{Class, Fault};
use crate::time::Millis;

/// The scope of a registration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Scope {
    /// An organization, by name.
    Organization(String),
    /// A repository, as `OWNER/NAME`.
    Repository(String),
    /// An enterprise, by name. It includes every repository.
    Enterprise(String),
}

impl Scope {
    /// Whether a runner in this scope may take a job of a repository.
    pub fn admits(&self, repository: &str) -> bool {
        match self {
            Self::Organization(name) => repository
                .split_once('/')
                .is_some_and(|(owner, _)| owner.eq_ignore_ascii_case(name)),
            Self::Repository(name) => name.eq_ignore_ascii_case(repository),
            Self::Enterprise(_) => true,
        }
    }
}

/// The session of a runner.
#[derive(Debug, Clone, Serialize)]
pub struct Session {
    /// Its ID.
    pub id: String,
    /// When it was opened.
    pub opened: Millis,
    /// The time of the runner's last call.
    pub last_seen: Millis,
}

/// A registered runner.
#[derive(Debug, Clone)]
pub struct Runner {
    /// Its ID.
    pub id: u64,
    /// Its name, unique in its scope.
    pub name: String,
    /// The scope of its registration.
    pub scope: Scope,
    /// Its group.
    pub group: u64,
    /// Its labels, in lowercase.
    pub labels: Vec<String>,
    /// Its scale set.
    pub scale_set: Option<u64>,
    /// Its credential.
    pub credential: String,
    /// When it was registered.
    pub registered_at: Millis,
    /// When its JIT configuration expires unless it has connected.
    pub connect_by: Millis,
    /// How long it may listen before a fault removes it.
    pub removed_after: Option<Millis>,
    /// Its session.
    pub session: Option<Session>,
    /// The ID of its job.
    pub job: Option<u64>,
}

impl Runner {
    /// Whether it has made a call recently.
    pub fn is_online(&self, now: Millis, offline_after: Millis) -> bool {
        self.session.as_ref().is_some_and(|session| now < session.last_seen + offline_after)
    }

    /// Whether it has closed its session.
    pub(crate) fn is_leaving(&self) -> bool {
        self.session.is_none()
    }
}

/// A runner that is no longer registered.
#[derive(Debug, Clone, Serialize)]
pub struct RemovedRunner {
    /// Its ID.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// When it was removed.
    pub at: Millis,
    /// The reason.
    pub why: String,
    /// Its former credential.
    #[serde(skip)]
    pub credential: String,
}

/// A runner to register.
#[derive(Debug, Clone)]
pub struct NewRunner {
    /// Its name.
    pub name: String,
    /// The scope of its registration.
    pub scope: Scope,
    /// Its group.
    pub group: u64,
    /// Its labels.
    pub labels: Vec<String>,
    /// Its work folder.
    pub work_folder: String,
    /// Its scale set.
    pub scale_set: Option<u64>,
}

/// The reason why a runner's call is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunnerRejection {
    /// The credential is unknown, or its JIT configuration has expired.
    Unauthorized,
    /// The registration is gone.
    Gone,
    /// The runner already has a session.
    Conflict,
}

impl State {
    /// Registers a runner and returns its ID and its JIT configuration.
    ///
    /// # Errors
    ///
    /// The name is taken in this scope.
    pub fn register(&mut self, new: NewRunner, now: Millis) -> Result<(u64, String), NameTaken> {
        let same = |runner: &Runner| {
            runner.scope == new.scope && runner.name.eq_ignore_ascii_case(&new.name)
        };
        if self.runners.values().any(same) {
            return Err(NameTaken);
        }
        let fault = self.faults.draw(Class::Mint, Fault::affects_runner);
        if let Some(fault) = fault {
            self.count_fault(fault);
        }
        let id = self.next_id();
        let credential = self.random_text(32);
        let config = self.jit_config(id, &new, &credential);
        let runner = Runner {
            id,
            name: new.name,
            scope: new.scope,
            group: new.group,
            labels: new.labels.iter().map(|label| label.to_lowercase()).collect(),
            scale_set: new.scale_set,
            credential,
            registered_at: now,
            connect_by: match fault {
                Some(Fault::ExpiredJit) => now,
                _ => now + self.settings.jit_life,
            },
            removed_after: match fault {
                Some(Fault::RemovedIdle { after }) => Some(after),
                _ => None,
            },
            session: None,
            job: None,
        };
        self.runners.insert(id, runner);
        Ok((id, config))
    }

    /// Returns a JIT configuration with GitHub's layout and about its size.
    fn jit_config(&mut self, id: u64, new: &NewRunner, credential: &str) -> String {
        let server = self.settings.runner_url.clone().unwrap_or_else(|| self.url.clone());
        let runner = json!({
            "AgentId": id.to_string(), "AgentName": new.name, "PoolId": new.group.to_string(),
            "PoolName": "Default", "ServerUrl": server, "ServerUrlV2": server, "UseV2Flow": "true",
            "GitHubUrl": server, "WorkFolder": new.work_folder, "Ephemeral": "True",
            "DisableUpdate": "True",
            "SimulatedKind": self.settings.runner_kind.text(),
        });
        let credentials = json!({
            "Scheme": "OAuth",
            "Data": {
                "clientId": self.random_uuid(),
                "authorizationUrl": format!("{server}/_sim/runner/token"),
                "requireFipsCryptography": "True",
            },
        });
        // At GitHub these are the numbers of an RSA key; the stand-in runner sends `d`.
        let parameters = json!({
            "d": credential, "dp": self.random_text(128), "dq": self.random_text(128),
            "exponent": "AQAB", "inverseQ": self.random_text(128), "modulus": self.random_text(256),
            "p": self.random_text(128), "q": self.random_text(128),
        });
        let encoded = |value: &serde_json::Value| BASE64.encode(value.to_string().as_bytes());
        let files = json!({
            ".runner": encoded(&runner), ".credentials": encoded(&credentials),
            ".credentials_rsaparams": encoded(&parameters),
        });
        encoded(&files)
    }

    /// Opens a runner's session.
    ///
    /// # Errors
    ///
    /// The reason for the rejection.
    pub fn connect(&mut self, credential: &str, now: Millis) -> Result<u64, RunnerRejection> {
        let session = self.random_uuid();
        let id = self.runner_of(credential)?;
        let Some(runner) = self.runners.get_mut(&id) else { return Err(RunnerRejection::Gone) };
        if runner.session.is_some() {
            return Err(RunnerRejection::Conflict);
        }
        if now >= runner.connect_by {
            return Err(RunnerRejection::Unauthorized);
        }
        runner.session = Some(Session { id: session, opened: now, last_seen: now });
        self.assign_jobs(now);
        Ok(id)
    }

    /// Records a runner's call.
    ///
    /// # Errors
    ///
    /// The runner is no longer registered, or has no session.
    pub fn record_contact(
        &mut self,
        credential: &str,
        now: Millis,
    ) -> Result<u64, RunnerRejection> {
        let id = self.runner_of(credential)?;
        let session = self.runners.get_mut(&id).and_then(|runner| runner.session.as_mut());
        session.ok_or(RunnerRejection::Unauthorized)?.last_seen = now;
        Ok(id)
    }

    /// Closes a runner's session: its job, if any, is canceled; otherwise it stays registered.
    ///
    /// # Errors
    ///
    /// The runner is no longer registered.
    pub fn disconnect(&mut self, credential: &str, now: Millis) -> Result<(), RunnerRejection> {
        let id = self.runner_of(credential)?;
        let Some(runner) = self.runners.get_mut(&id) else { return Err(RunnerRejection::Gone) };
        runner.session = None;
        if let Some(job) = runner.job {
            self.complete(job, Conclusion::Cancelled, Some("the runner was stopped"), now);
        }
        Ok(())
    }

    /// Whether a credential belonged to a runner that reported its job's completion.
    pub fn has_completed(&self, credential: &str) -> bool {
        let removed = self.removed_runners.iter().find(|removed| removed.credential == credential);
        removed.is_some_and(|removed| {
            let reported = |job: &Job| {
                job.reported && job.runner.as_ref().is_some_and(|taken| taken.id == removed.id)
            };
            self.jobs.values().any(reported)
        })
    }

    fn runner_of(&self, credential: &str) -> Result<u64, RunnerRejection> {
        if let Some(runner) = self.runners.values().find(|runner| runner.credential == credential) {
            return Ok(runner.id);
        }
        let removed = self.removed_runners.iter().any(|removed| removed.credential == credential);
        Err(if removed { RunnerRejection::Gone } else { RunnerRejection::Unauthorized })
    }

    /// Removes a registration.
    pub(crate) fn remove_runner(&mut self, id: u64, why: &str, now: Millis) {
        if let Some(Runner { id, name, credential, .. }) = self.runners.remove(&id) {
            self.removed_runners.push(RemovedRunner {
                id,
                name,
                at: now,
                why: why.to_owned(),
                credential,
            });
        }
    }

    /// Fails the jobs of runners that made no call for too long.
    pub(crate) fn fail_lost_jobs(&mut self, now: Millis) {
        let is_silent = |runner: &&Runner| {
            let last_seen = runner.session.as_ref().map_or(0, |session| session.last_seen);
            now >= last_seen + self.settings.lost_after
        };
        let lost: Vec<u64> =
            self.runners.values().filter(is_silent).filter_map(|runner| runner.job).collect();
        for job in lost {
            let why = "The self-hosted runner lost communication with the server.";
            self.complete(job, Conclusion::Failure, Some(why), now);
        }
    }

    /// Removes idle runners that a fault has marked.
    pub(crate) fn remove_marked_runners(&mut self, now: Millis) {
        let is_marked = |runner: &&Runner| {
            let opened = runner.session.as_ref().map(|session| session.opened);
            let listened = opened.map(|opened| now.saturating_sub(opened));
            runner.job.is_none()
                && runner.removed_after.zip(listened).is_some_and(|(after, so_far)| so_far >= after)
        };
        let ids: Vec<u64> =
            self.runners.values().filter(is_marked).map(|runner| runner.id).collect();
        for id in ids {
            self.remove_runner(id, "removed while idle", now);
        }
    }
}

/// The error that a runner's name is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NameTaken;

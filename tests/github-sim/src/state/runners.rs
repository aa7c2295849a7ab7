//! Runners: registrations, their JIT configurations, the sessions of those that connected.

use data_encoding::BASE64;
use serde::Serialize;
use serde_json::json;

use super::State;
use super::jobs::{Conclusion, Job};
use crate::faults::{Class, Fault};
use crate::time::Millis;

/// Where runners are registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Scope {
    /// An organisation, by name.
    Organisation(String),
    /// A repository, as `OWNER/NAME`.
    Repository(String),
    /// An enterprise, by name. Every repository is in it.
    Enterprise(String),
}

impl Scope {
    /// Whether a runner here may take a job of a repository.
    pub fn admits(&self, repository: &str) -> bool {
        match self {
            Self::Organisation(name) => repository
                .split_once('/')
                .is_some_and(|(owner, _)| owner.eq_ignore_ascii_case(name)),
            Self::Repository(name) => name.eq_ignore_ascii_case(repository),
            Self::Enterprise(_) => true,
        }
    }
}

/// The connection of a runner.
#[derive(Debug, Clone, Serialize)]
pub struct Session {
    /// Its id.
    pub id: String,
    /// When it was opened.
    pub opened: Millis,
    /// When the runner was last heard of.
    pub last_seen: Millis,
}

/// A runner that is registered.
#[derive(Debug, Clone)]
pub struct Runner {
    /// Its number.
    pub id: u64,
    /// Its name, unique in its scope.
    pub name: String,
    /// Where it is registered.
    pub scope: Scope,
    /// Its group.
    pub group: u64,
    /// Its labels, in lower case.
    pub labels: Vec<String>,
    /// The scale set that it belongs to.
    pub scale_set: Option<u64>,
    /// What it authenticates with.
    pub credential: String,
    /// When it was registered.
    pub registered_at: Millis,
    /// When its JIT configuration is dead if it has not connected.
    pub connect_by: Millis,
    /// How long it may listen before it is removed, if a fault wants so.
    pub removed_after: Option<Millis>,
    /// Its connection.
    pub session: Option<Session>,
    /// The job that it runs.
    pub job: Option<u64>,
}

impl Runner {
    /// Whether it has been heard of lately.
    pub fn is_online(&self, now: Millis, offline_after: Millis) -> bool {
        self.session.as_ref().is_some_and(|session| now < session.last_seen + offline_after)
    }

    /// Whether it has said that it stops.
    pub(crate) fn is_leaving(&self) -> bool {
        self.session.is_none()
    }
}

/// A runner that was registered.
#[derive(Debug, Clone, Serialize)]
pub struct Departed {
    /// Its number.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// When it went.
    pub at: Millis,
    /// Why.
    pub why: String,
    /// What it authenticated with.
    #[serde(skip)]
    pub credential: String,
}

/// What a runner is to be.
#[derive(Debug, Clone)]
pub struct NewRunner {
    /// Its name.
    pub name: String,
    /// Where it is registered.
    pub scope: Scope,
    /// Its group.
    pub group: u64,
    /// Its labels.
    pub labels: Vec<String>,
    /// The directory of its jobs.
    pub work_folder: String,
    /// The scale set that it belongs to.
    pub scale_set: Option<u64>,
}

/// Why a runner can't connect or go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejected {
    /// The credential is unknown, or its JIT configuration has expired.
    Unauthorized,
    /// The registration is gone.
    Gone,
    /// There is a session already.
    Conflict,
}

impl State {
    /// Registers a runner, and returns its id and its JIT configuration.
    ///
    /// # Errors
    ///
    /// If the name is taken in this scope.
    pub fn register(&mut self, new: NewRunner, now: Millis) -> Result<(u64, String), NameTaken> {
        let same = |runner: &Runner| {
            runner.scope == new.scope && runner.name.eq_ignore_ascii_case(&new.name)
        };
        if self.runners.values().any(same) {
            return Err(NameTaken);
        }
        let fault = self.faults.draw(Class::Mint, Fault::is_of_the_runner);
        if let Some(fault) = fault {
            self.suffer(fault);
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

    /// The files of a runner's configuration, in the layout and about the size of GitHub's.
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
        // At GitHub the numbers of an RSA key; `d` is what the stand-in runner shows.
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

    /// A runner connects.
    ///
    /// # Errors
    ///
    /// Why it can't.
    pub fn connect(&mut self, credential: &str, now: Millis) -> Result<u64, Rejected> {
        let session = self.random_uuid();
        let id = self.runner_of(credential)?;
        let Some(runner) = self.runners.get_mut(&id) else { return Err(Rejected::Gone) };
        if runner.session.is_some() {
            return Err(Rejected::Conflict);
        }
        if now >= runner.connect_by {
            return Err(Rejected::Unauthorized);
        }
        runner.session = Some(Session { id: session, opened: now, last_seen: now });
        self.assign_jobs(now);
        Ok(id)
    }

    /// A runner was heard of.
    ///
    /// # Errors
    ///
    /// If it is no longer registered, or has no session.
    pub fn heard(&mut self, credential: &str, now: Millis) -> Result<u64, Rejected> {
        let id = self.runner_of(credential)?;
        let session = self.runners.get_mut(&id).and_then(|runner| runner.session.as_mut());
        session.ok_or(Rejected::Unauthorized)?.last_seen = now;
        Ok(id)
    }

    /// A runner stops in good order: its job, if any, is cancelled, else it stays registered.
    ///
    /// # Errors
    ///
    /// If it is no longer registered.
    pub fn disconnect(&mut self, credential: &str, now: Millis) -> Result<(), Rejected> {
        let id = self.runner_of(credential)?;
        let Some(runner) = self.runners.get_mut(&id) else { return Err(Rejected::Gone) };
        runner.session = None;
        if let Some(job) = runner.job {
            self.complete(job, Conclusion::Cancelled, Some("the runner was stopped"), now);
        }
        Ok(())
    }

    /// Whether a credential was of a runner whose job it has reported as over.
    pub fn has_completed(&self, credential: &str) -> bool {
        let departed = self.departed.iter().find(|departed| departed.credential == credential);
        departed.is_some_and(|departed| {
            let reported = |job: &Job| {
                job.reported && job.runner.as_ref().is_some_and(|taken| taken.id == departed.id)
            };
            self.jobs.values().any(reported)
        })
    }

    fn runner_of(&self, credential: &str) -> Result<u64, Rejected> {
        if let Some(runner) = self.runners.values().find(|runner| runner.credential == credential) {
            return Ok(runner.id);
        }
        let departed = self.departed.iter().any(|departed| departed.credential == credential);
        Err(if departed { Rejected::Gone } else { Rejected::Unauthorized })
    }

    /// Removes a registration.
    pub(crate) fn remove_runner(&mut self, id: u64, why: &str, now: Millis) {
        if let Some(Runner { id, name, credential, .. }) = self.runners.remove(&id) {
            self.departed.push(Departed { id, name, at: now, why: why.to_owned(), credential });
        }
    }

    /// A runner with a job that was not heard of for long has lost it.
    pub(crate) fn give_up_silent_runners(&mut self, now: Millis) {
        let silent = |runner: &&Runner| {
            let last_seen = runner.session.as_ref().map_or(0, |session| session.last_seen);
            now >= last_seen + self.settings.lost_after
        };
        let lost: Vec<u64> =
            self.runners.values().filter(silent).filter_map(|runner| runner.job).collect();
        for job in lost {
            let why = "The self-hosted runner lost communication with the server.";
            self.complete(job, Conclusion::Failure, Some(why), now);
        }
    }

    /// Removes idle runners that a fault has marked.
    pub(crate) fn remove_unwanted_runners(&mut self, now: Millis) {
        let unwanted = |runner: &&Runner| {
            let opened = runner.session.as_ref().map(|session| session.opened);
            let listened = opened.map(|opened| now.saturating_sub(opened));
            runner.job.is_none()
                && runner.removed_after.zip(listened).is_some_and(|(after, so_far)| so_far >= after)
        };
        let ids: Vec<u64> =
            self.runners.values().filter(unwanted).map(|runner| runner.id).collect();
        for id in ids {
            self.remove_runner(id, "removed while idle", now);
        }
    }
}

/// The name of a runner is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NameTaken;

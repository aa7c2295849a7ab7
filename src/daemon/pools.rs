//! What the daemon keeps of each pool beside its settings: what stands in its way.

use std::time::{Duration, SystemTime};

use super::clock::Clock;
use super::decide::{Backoff, Blocker, Load, Obstacle, Pool as Decided, Registers};
use super::millis::Millis;
use super::registrar::Registrar;
use crate::config::{Pool as Settings, Trigger};
use crate::failure::chain;
use crate::github::CallError;

/// A pool.
pub(super) struct Pool {
    pub(super) settings: Settings,
    /// Whom it registers with; none where it does not, or not yet.
    pub(super) registrar: Option<Registrar>,
    boots: Backoff,
    boot_failure: Option<Blocker>,
    calls: Backoff,
    call_failure: Option<Obstacle>,
    runners: Backoff,
    runner_failure: Option<Obstacle>,
}

impl Pool {
    pub(super) fn new(settings: Settings, registrar: Option<Registrar>) -> Self {
        Self {
            settings,
            registrar,
            boots: Backoff::default(),
            boot_failure: None,
            calls: Backoff::default(),
            call_failure: None,
            runners: Backoff::default(),
            runner_failure: None,
        }
    }

    /// What a microVM of it takes.
    pub(super) fn load(&self) -> Load {
        Load { processors: self.settings.cpus, memory: self.settings.memory.0 }
    }

    /// What the decisions see of it.
    pub(super) fn decided(&self) -> Decided {
        let registers = match (self.settings.trigger, &self.registrar) {
            (Trigger::None, _) => Registers::Never,
            (Trigger::Always, _) => Registers::Always,
            _ => Registers::Late,
        };
        let boot_obstacle =
            self.boot_failure.clone().map(|why| Obstacle { until: self.boots.until(), why });
        let unknown = || Obstacle {
            until: None,
            why: Blocker::Unreachable("its registration is being set up".to_owned()),
        };
        let failure = || self.call_failure.clone().or_else(|| self.runner_failure.clone());
        let github_obstacle = match (registers, &self.registrar) {
            (Registers::Never, _) => None,
            (_, None) => Some(self.call_failure.clone().unwrap_or_else(unknown)),
            (_, Some(_)) => failure(),
        };
        Decided {
            load: self.load(),
            min_idle: self.settings.min_idle,
            max: self.settings.max,
            registers,
            idle: self.settings.deadlines.idle,
            claim: self.settings.deadlines.claim,
            boot_obstacle,
            github_obstacle,
        }
    }

    /// What keeps it from serving anything at all.
    pub(super) fn obstacle(&self) -> Option<Obstacle> {
        let decided = self.decided();
        decided.boot_obstacle.or(decided.github_obstacle)
    }

    /// A microVM of it did not come up.
    pub(super) fn boot_failed(&mut self, why: Blocker, now: Millis) {
        self.boots.failed(now);
        self.boot_failure = Some(why);
    }

    /// One did.
    pub(super) fn boot_worked(&mut self) {
        self.boots.worked();
        self.boot_failure = None;
    }

    /// A call to GitHub for it went wrong.
    pub(super) fn call_failed(&mut self, error: &CallError, clock: Clock) {
        let now = clock.now();
        self.calls.failed(now);
        let until = match error {
            CallError::RateLimited { until, .. } => Some(now + from_now(*until)),
            _ => self.calls.until(),
        };
        self.call_failure = Some(Obstacle { until, why: blocker(error) });
    }

    /// Its runner ended before it had a job.
    pub(super) fn runner_failed(&mut self, why: String, now: Millis) {
        self.runners.failed(now);
        self.runner_failure =
            Some(Obstacle { until: self.runners.until(), why: Blocker::RunnersFail(why) });
    }

    /// Why its runners are waited with.
    #[cfg(test)]
    pub(super) fn runner_failure(&self) -> Option<Obstacle> {
        self.runner_failure.clone()
    }

    /// One took a job: that a configuration was minted, or that a runner listens, does not say that
    /// it can.
    pub(super) fn runner_worked(&mut self) {
        self.runners.worked();
        self.runner_failure = None;
    }

    /// A call went well.
    pub(super) fn call_worked(&mut self) {
        self.calls.worked();
        self.call_failure = None;
    }
}

pub(super) fn from_now(until: SystemTime) -> Duration {
    until.duration_since(SystemTime::now()).unwrap_or_default()
}

/// What an error of GitHub's means for those who wait.
pub(super) fn blocker(error: &CallError) -> Blocker {
    match error {
        CallError::RateLimited { .. } => Blocker::RateLimited,
        CallError::NotSent { .. } | CallError::Ambiguous { .. } => {
            Blocker::Unreachable(chain(error))
        }
        CallError::Unauthorized { .. }
        | CallError::Refused { .. }
        | CallError::NameTaken { .. }
        | CallError::NotFound { .. } => Blocker::Refused(chain(error)),
    }
}

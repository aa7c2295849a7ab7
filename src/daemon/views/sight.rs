//! What others are shown of the daemon at one moment.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::Look;
use super::explaining::blocker_view;
use crate::api::types::{Blocker, Budget, MicrovmView, PoolView, Readiness, Status};
use crate::config::{GitHub, Pool};
use crate::daemon::decide::{self, JobKey, Obstacle, PoolId, Stage, Waiting};
use crate::daemon::fleet::{Microvm, Work};
use crate::ledger::Egress;

/// What is shown of the daemon, as of one moment.
pub(in crate::daemon) struct Sight {
    pub(in crate::daemon) status: Status,
    pub(in crate::daemon) readiness: Readiness,
    pub(in crate::daemon) pools: Vec<PoolView>,
    pub(in crate::daemon) microvms: Vec<MicrovmView>,
    pub(super) budget: Budget,
    pub(super) github: Option<GitHub>,
    /// What jobs wait for, by the names of their pools.
    pub(super) blockers: HashMap<String, Blocker>,
    /// How many local jobs of its pool are before each that waits.
    pub(super) before: BTreeMap<JobKey, usize>,
    /// What the jobs of living microVMs reached so far, by the names of these.
    pub(super) reached: HashMap<String, Egress>,
}

impl Look<'_> {
    /// Everything that others are shown.
    pub(in crate::daemon) fn sight(self) -> Sight {
        let blockers = self.pools.iter().filter_map(|(id, pool)| {
            let blocker = self.blocker(id, self.blockers.get(&id)?);
            Some((pool.name.to_string(), blocker))
        });
        let reached = self
            .fleet
            .iter()
            .filter_map(|microvm| Some((microvm.id()?.to_string(), microvm.reached()?.clone())));
        Sight {
            status: self.status(),
            readiness: self.readiness(),
            pools: self.pools(),
            microvms: self.fleet.iter().map(|microvm| self.microvm(microvm)).collect(),
            budget: self.budget(),
            github: self.settings.github.clone(),
            blockers: blockers.collect(),
            before: self.before(),
            reached: reached.collect(),
        }
    }

    fn before(self) -> BTreeMap<JobKey, usize> {
        let mut counts: HashMap<PoolId, usize> = HashMap::new();
        let mut before = BTreeMap::new();
        for (job, pool) in self.backlog.queue() {
            let count = counts.entry(pool).or_default();
            before.insert(job, *count);
            *count += 1;
        }
        before
    }

    pub(in crate::daemon) fn status(self) -> Status {
        let waiting: u32 = self.backlog.waiting().iter().map(Waiting::count).sum();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started: self.clock.started(),
            draining: self.draining,
            settings: self.settings.file.as_ref().map(|file| file.display().to_string()),
            github: self.settings.github.as_ref().map(GitHub::url),
            waiting,
            running: count(self.fleet.running()),
            microvms: count(self.fleet.len()),
        }
    }

    pub(in crate::daemon) fn pools(self) -> Vec<PoolView> {
        let waiting = self.backlog.waiting();
        self.pools.iter().map(|(id, pool)| self.pool(id, pool, &waiting)).collect()
    }

    fn pool(self, id: PoolId, pool: &Pool, waiting: &[Waiting]) -> PoolView {
        let stages = |wanted: &[Stage]| {
            let its = self.fleet.iter().filter(|microvm| microvm.pool() == id);
            count(its.filter(|microvm| wanted.contains(&microvm.stage())).count())
        };
        let waits = waiting.iter().filter(|one| one.pool() == id).map(Waiting::count);
        let obstacle = || self.fleet.obstacle(id).or_else(|| self.registry.obstacle(id, pool));
        PoolView {
            name: pool.name.to_string(),
            labels: pool.labels.clone(),
            image: pool.image.to_string(),
            trigger: pool.trigger.to_string(),
            min_idle: pool.min_idle,
            max: pool.max,
            booting: stages(&[Stage::Booting]),
            warm: stages(&[Stage::Warm]),
            registered: stages(&[Stage::Registering, Stage::Registered]),
            busy: stages(&[Stage::Assigned, Stage::Busy]),
            ending: stages(&[Stage::Ending]),
            waiting: waits.sum(),
            blocker: self
                .blockers
                .get(&id)
                .cloned()
                .or_else(obstacle)
                .map(|obstacle| self.blocker(id, &obstacle)),
        }
    }

    /// What jobs of a pool wait for. That a runner is registered for them is not the whole truth where
    /// that runner can't reach the forge.
    fn blocker(self, pool: PoolId, obstacle: &Obstacle) -> Blocker {
        let its = self.fleet.iter().filter(|microvm| microvm.pool() == pool);
        let cut_off = its.filter_map(|microvm| Some((microvm.retrying()?, microvm)));
        match cut_off.min_by_key(|(since, _)| *since) {
            Some((since, microvm)) if obstacle.why == decide::Blocker::Listening => {
                let lasts = Duration::from_secs(self.clock.now().since(since).as_secs());
                let lasts = humantime::format_duration(lasts);
                let claim = self.pools.get(pool).map(|pool| pool.deadlines.claim);
                let until = microvm.claim_ends(claim.unwrap_or_default());
                Blocker {
                    code: "runner_cut_off".to_owned(),
                    message: format!(
                        "its runner can't reach GitHub (\"Retrying until reconnected\") for {lasts}"
                    ),
                    until: until.map(|until| self.clock.wall(until)),
                }
            }
            _ => blocker_view(obstacle, self.clock),
        }
    }

    fn microvm(self, microvm: &Microvm) -> MicrovmView {
        let (runner, job) = match microvm.work() {
            Work::None => (None, None),
            Work::Local(job) => (None, Some(job.0)),
            Work::Runner(runner) => (Some(runner.name.clone()), None),
        };
        MicrovmView {
            id: microvm.id().map_or_else(|| "(planned)".to_owned(), ToString::to_string),
            pool: microvm.pool_name().to_owned(),
            stage: stage(microvm.stage()).to_owned(),
            since: self.clock.wall(microvm.since()),
            runner,
            job,
        }
    }

    fn budget(self) -> Budget {
        let (used, host) = (self.fleet.used(), &self.settings.host);
        Budget {
            cpus_used: used.processors,
            cpus: host.cpus,
            memory_used: used.memory,
            memory: host.memory.0,
        }
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

pub(super) fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::Booting => "booting",
        Stage::Warm => "warm",
        Stage::Assigned => "assigned",
        Stage::Registering => "registering",
        Stage::Registered => "registered",
        Stage::Busy => "busy",
        Stage::Ending => "ending",
    }
}

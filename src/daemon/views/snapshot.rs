//! A copy of the daemon's state at one moment, for the API and the status page.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::DaemonView;
use super::explanation::blocker_view;
use crate::decide::{self, ActiveBlocker, JobKey, PoolId, Stage, WaitingJobs};
use crate::fleet::{Assignment, Microvm};
use crate::time::Millis;
use mayfly_api::types::{BlockerView, BudgetView, DaemonStatus, MicrovmView, PoolView, Readiness};
use mayfly_config::{GitHubConfig, PoolConfig};
use mayfly_ledger::EgressSummary;

/// A copy of the daemon's state at one moment.
pub(crate) struct Snapshot {
    pub(crate) status: DaemonStatus,
    pub(crate) readiness: Readiness,
    pub(crate) pools: Vec<PoolView>,
    pub(crate) microvms: Vec<MicrovmView>,
    pub(super) budget: BudgetView,
    pub(super) github: Option<GitHubConfig>,
    /// What jobs wait for, by pool name.
    pub(super) blockers: HashMap<String, BlockerView>,
    /// For each waiting local job: how many jobs of its pool are ahead of it.
    pub(super) jobs_ahead: BTreeMap<JobKey, usize>,
    /// What the running microVMs have reached so far, by microVM id.
    pub(super) egress_so_far: HashMap<String, EgressSummary>,
}

impl DaemonView<'_> {
    /// Copies the state.
    pub(crate) fn snapshot(self) -> Snapshot {
        let blockers = self.pools.iter().filter_map(|(id, pool)| {
            let blocker = self.blocker(id, self.blockers.get(&id)?);
            Some((pool.name.to_string(), blocker))
        });
        let reached = self
            .fleet
            .iter()
            .filter_map(|microvm| Some((microvm.id()?.to_string(), microvm.reached()?.clone())));
        Snapshot {
            status: self.status(),
            readiness: self.readiness(),
            pools: self.pools(),
            microvms: self.fleet.iter().map(|microvm| self.microvm(microvm)).collect(),
            budget: self.budget(),
            github: self.settings.github.clone(),
            blockers: blockers.collect(),
            jobs_ahead: self.jobs_ahead(),
            egress_so_far: reached.collect(),
        }
    }

    fn jobs_ahead(self) -> BTreeMap<JobKey, usize> {
        let mut counts: HashMap<PoolId, usize> = HashMap::new();
        let mut before = BTreeMap::new();
        for (job, pool) in self.backlog.queue() {
            let count = counts.entry(pool).or_default();
            before.insert(job, *count);
            *count += 1;
        }
        before
    }

    pub(crate) fn status(self) -> DaemonStatus {
        let waiting: u32 = self.backlog.waiting().iter().map(WaitingJobs::count).sum();
        DaemonStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started: self.clock.started(),
            draining: self.draining,
            settings: self.settings.file.as_ref().map(|file| file.display().to_string()),
            github: self.settings.github.as_ref().map(GitHubConfig::url),
            waiting,
            running: count(self.fleet.running()),
            microvms: count(self.fleet.len()),
        }
    }

    pub(crate) fn pools(self) -> Vec<PoolView> {
        let waiting = self.backlog.waiting();
        self.pools.iter().map(|(id, pool)| self.pool(id, pool, &waiting)).collect()
    }

    fn pool(self, id: PoolId, pool: &PoolConfig, waiting: &[WaitingJobs]) -> PoolView {
        let stages = |wanted: &[Stage]| {
            let its = self.fleet.iter().filter(|microvm| microvm.pool() == id);
            count(its.filter(|microvm| wanted.contains(&microvm.stage())).count())
        };
        let waits = waiting.iter().filter(|one| one.pool() == id).map(WaitingJobs::count);
        let blocker = || self.fleet.blocker(id).or_else(|| self.registry.blocker(id, pool));
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
                .or_else(blocker)
                .map(|blocker| self.blocker(id, &blocker)),
        }
    }

    /// Returns what jobs of a pool wait for. A runner that can't reach the forge, or has not reached
    /// it yet, is reported as such.
    fn blocker(self, pool: PoolId, blocker: &ActiveBlocker) -> BlockerView {
        let runner = Some(pool).filter(|_| blocker.reason == decide::Blocker::Listening);
        let runner = runner.and_then(|pool| self.cut_off(pool).or_else(|| self.starting(pool)));
        runner.unwrap_or_else(|| blocker_view(blocker, self.clock))
    }

    /// Returns the blocker of a runner that reports that it can't reach the forge.
    fn cut_off(self, pool: PoolId) -> Option<BlockerView> {
        let its = self.fleet.iter().filter(|microvm| microvm.pool() == pool);
        let cut_off = its.filter_map(|microvm| Some((microvm.retrying_since()?, microvm)));
        let (since, microvm) = cut_off.min_by_key(|(since, _)| *since)?;
        let lasts = self.lasts(since);
        let message = format!(
            "its runner has not reached GitHub for {lasts} (\"Retrying until reconnected\")"
        );
        Some(self.runner_blocker("runner_cut_off", message, microvm))
    }

    /// Returns the blocker of a runner that does not listen yet, unless another one of the pool
    /// listens.
    fn starting(self, pool: PoolId) -> Option<BlockerView> {
        let its = || self.fleet.iter().filter(|microvm| microvm.pool() == pool);
        if its().any(|microvm| microvm.stage() == Stage::Registered) {
            return None;
        }
        let registering = its().filter(|microvm| microvm.stage() == Stage::Registering);
        let microvm = registering.min_by_key(|microvm| microvm.since())?;
        let lasts = self.lasts(microvm.since());
        let message = if microvm.runner().is_some_and(|runner| runner.id.is_none()) {
            format!("its runner is being registered at GitHub, for {lasts} so far")
        } else {
            format!("its runner is registered but has not reached GitHub for {lasts}")
        };
        Some(self.runner_blocker("registering", message, microvm))
    }

    /// Returns a blocker that ends when its runner is given up.
    fn runner_blocker(self, code: &str, message: String, microvm: &Microvm) -> BlockerView {
        let claim = self.pools.get(microvm.pool()).map(|pool| pool.deadlines.claim);
        let until = microvm.claim_ends(claim.unwrap_or_default());
        let until = until.map(|until| self.clock.wall_time(until));
        BlockerView { code: code.to_owned(), message, until }
    }

    /// Returns the time since a moment, in words.
    fn lasts(self, since: Millis) -> humantime::FormattedDuration {
        let lasts = self.clock.now().since(since);
        humantime::format_duration(Duration::from_secs(lasts.as_secs()))
    }

    fn microvm(self, microvm: &Microvm) -> MicrovmView {
        let (runner, job) = match microvm.assignment() {
            Assignment::None => (None, None),
            Assignment::Local(job) => (None, Some(job.0)),
            Assignment::Runner(runner) => (Some(runner.name.clone()), None),
        };
        MicrovmView {
            id: microvm.id().map_or_else(|| "(planned)".to_owned(), ToString::to_string),
            pool: microvm.pool_name().to_owned(),
            stage: stage(microvm.stage()).to_owned(),
            since: self.clock.wall_time(microvm.since()),
            runner,
            job,
        }
    }

    fn budget(self) -> BudgetView {
        let (used, host) = (self.fleet.used(), &self.settings.host);
        BudgetView {
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

//! What there is, pool by pool: one pass over machines and waiting jobs.

use std::collections::VecDeque;

use super::{Action, Load, Machine, Millis, Pool, PoolId, Retirement, Stage, View, Waiting, step};

/// What a pool has.
#[derive(Debug, Default)]
pub(super) struct Census<'a> {
    /// Machines in whatever stage.
    pub(super) machines: u32,
    /// Machines that boot and that no job counts on yet.
    pub(super) booting: u32,
    /// Warm machines that no job took yet, the oldest first.
    pub(super) warm: VecDeque<&'a Machine>,
    /// Runners without a job, those included that are being registered.
    pub(super) runners: u32,
    /// Runners that listen, the oldest first.
    pub(super) registered: Vec<&'a Machine>,
    /// What waits, the oldest first.
    pub(super) waiting: Vec<&'a Waiting>,
}

/// Where each pool is in the view. Names are small numbers, so this is a table of them.
struct Places(Vec<Option<usize>>);

impl Places {
    fn of(pools: &[Pool]) -> Self {
        let names = pools.iter().map(|pool| pool.id.0 as usize + 1).max().unwrap_or_default();
        let mut places = vec![None; names];
        for (place, pool) in pools.iter().enumerate() {
            places[pool.id.0 as usize] = Some(place);
        }
        Self(places)
    }

    fn get(&self, pool: PoolId) -> Option<usize> {
        self.0.get(pool.0 as usize).copied().flatten()
    }
}

/// What all pools have.
#[derive(Debug, Default)]
pub(super) struct Survey<'a> {
    /// For each pool of the view.
    pub(super) pools: Vec<Census<'a>>,
    /// What all machines take.
    pub(super) used: Load,
    /// What of it is about to be free.
    pub(super) ending: Load,
    /// The ends of warm machines whose pool is no longer configured.
    pub(super) orphans: Vec<Action>,
}

impl<'a> Survey<'a> {
    pub(super) fn of(view: &View<'a>) -> Self {
        let mut survey = Self::default();
        survey.pools.resize_with(view.pools.len(), Census::default);
        let places = Places::of(view.pools);
        for machine in view.machines {
            step();
            survey.count(machine, &places);
        }
        for waiting in view.demand {
            step();
            if let Some(place) = places.get(waiting.pool()) {
                survey.pools[place].waiting.push(waiting);
            }
        }
        for census in &mut survey.pools {
            census.warm.make_contiguous().sort_by_key(|machine| machine.since);
            census.registered.sort_by_key(|machine| machine.since);
            census.waiting.sort_by_key(|waiting| waiting.since());
        }
        survey
    }

    fn count(&mut self, machine: &'a Machine, places: &Places) {
        self.used = self.used.plus(machine.load);
        if machine.stage == Stage::Ending {
            self.ending = self.ending.plus(machine.load);
        }
        let Some(census) = places.get(machine.pool).map(|place| &mut self.pools[place]) else {
            if matches!(machine.stage, Stage::Warm | Stage::Registered) {
                let why = Retirement::Orphaned;
                self.orphans.push(Action::Retire { machine: machine.key, why });
            }
            return;
        };
        census.machines += 1;
        match machine.stage {
            Stage::Booting => census.booting += 1,
            Stage::Warm => census.warm.push_back(machine),
            Stage::Registering => census.runners += 1,
            Stage::Registered => {
                census.runners += 1;
                census.registered.push(machine);
            }
            Stage::Assigned | Stage::Busy | Stage::Ending => {}
        }
    }
}

impl Waiting {
    /// The pool that it waits for.
    pub fn pool(&self) -> PoolId {
        match self {
            Self::Local { pool, .. } | Self::Runners { pool, .. } => *pool,
        }
    }

    /// Since when it waits.
    pub fn since(&self) -> Millis {
        match self {
            Self::Local { since, .. } | Self::Runners { since, .. } => *since,
        }
    }

    /// How many machines it wants.
    pub fn count(&self) -> u32 {
        match self {
            Self::Local { .. } => 1,
            Self::Runners { count, .. } => *count,
        }
    }
}

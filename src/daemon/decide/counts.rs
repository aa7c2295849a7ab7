//! The counts of each pool, from one pass over microVMs and waiting jobs.

use std::collections::VecDeque;

use super::{
    Action, DecisionInput, MicrovmState, Millis, Pool, PoolId, Resources, RetireReason, Stage,
    WaitingJobs, count_step,
};

/// The microVMs and waiting jobs of a pool.
#[derive(Debug, Default)]
pub(super) struct PoolCounts<'a> {
    /// `MicroVMs` in any stage.
    pub(super) microvms: u32,
    /// Booting microVMs that no job counts on yet.
    pub(super) booting: u32,
    /// Warm microVMs without a job, the oldest first.
    pub(super) warm: VecDeque<&'a MicrovmState>,
    /// Runners without a job, including those that are being registered.
    pub(super) runners: u32,
    /// Runners that listen, the oldest first.
    pub(super) registered: Vec<&'a MicrovmState>,
    /// Waiting jobs, the oldest first.
    pub(super) waiting: Vec<&'a WaitingJobs>,
}

/// The position of each pool in the input. Ids are small numbers, so a table is enough.
struct PoolIndex(Vec<Option<usize>>);

impl PoolIndex {
    fn of(pools: &[Pool]) -> Self {
        let names = pools.iter().map(|pool| pool.id.0 as usize + 1).max().unwrap_or_default();
        let mut index = vec![None; names];
        for (position, pool) in pools.iter().enumerate() {
            index[pool.id.0 as usize] = Some(position);
        }
        Self(index)
    }

    fn get(&self, pool: PoolId) -> Option<usize> {
        self.0.get(pool.0 as usize).copied().flatten()
    }
}

/// The counts of all pools.
#[derive(Debug, Default)]
pub(super) struct Counts<'a> {
    /// One for each pool of the input.
    pub(super) pools: Vec<PoolCounts<'a>>,
    /// The resources of all microVMs.
    pub(super) used: Resources,
    /// The part of `used` that is about to be free.
    pub(super) ending: Resources,
    /// Actions that retire microVMs whose pool is no longer configured.
    pub(super) orphans: Vec<Action>,
}

impl<'a> Counts<'a> {
    pub(super) fn of(input: &DecisionInput<'a>) -> Self {
        let mut counts = Self::default();
        counts.pools.resize_with(input.pools.len(), PoolCounts::default);
        let index = PoolIndex::of(input.pools);
        for microvm in input.microvms {
            count_step();
            counts.count(microvm, &index);
        }
        for waiting in input.demand {
            count_step();
            if let Some(position) = index.get(waiting.pool()) {
                counts.pools[position].waiting.push(waiting);
            }
        }
        for pool_counts in &mut counts.pools {
            pool_counts.warm.make_contiguous().sort_by_key(|microvm| microvm.since);
            pool_counts.registered.sort_by_key(|microvm| microvm.since);
            pool_counts.waiting.sort_by_key(|waiting| waiting.since());
        }
        counts
    }

    fn count(&mut self, microvm: &'a MicrovmState, index: &PoolIndex) {
        self.used = self.used.plus(microvm.resources);
        if microvm.stage == Stage::Ending {
            self.ending = self.ending.plus(microvm.resources);
        }
        let Some(pool_counts) = index.get(microvm.pool).map(|position| &mut self.pools[position])
        else {
            if matches!(microvm.stage, Stage::Warm | Stage::Registered) {
                let why = RetireReason::Orphaned;
                self.orphans.push(Action::Retire { microvm: microvm.key, reason: why });
            }
            return;
        };
        pool_counts.microvms += 1;
        match microvm.stage {
            Stage::Booting => pool_counts.booting += 1,
            Stage::Warm => pool_counts.warm.push_back(microvm),
            Stage::Registering => pool_counts.runners += 1,
            Stage::Registered => {
                pool_counts.runners += 1;
                pool_counts.registered.push(microvm);
            }
            Stage::Assigned | Stage::Busy | Stage::Ending => {}
        }
    }
}

impl WaitingJobs {
    /// Returns the pool that the jobs wait for.
    pub fn pool(&self) -> PoolId {
        match self {
            Self::Local { pool, .. } | Self::Runners { pool, .. } => *pool,
        }
    }

    /// Returns since when the oldest job waits.
    pub fn since(&self) -> Millis {
        match self {
            Self::Local { since, .. } | Self::Runners { since, .. } => *since,
        }
    }

    /// Returns the number of jobs.
    pub fn count(&self) -> u32 {
        match self {
            Self::Local { .. } => 1,
            Self::Runners { count, .. } => *count,
        }
    }
}

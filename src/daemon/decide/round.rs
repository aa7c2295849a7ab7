//! The state of one decision: the counts, minus what is already assigned.

use super::counts::{Counts, PoolCounts};
use super::{
    Action, Blocker, Decision, DecisionInput, Machine, Millis, Obstacle, Pool, RegistrationPolicy,
    Resources, RetireReason, Stage, WaitingJobs, count_step,
};

/// How long a spare machine stays with its own pool before a job of another pool may displace it.
/// Prevents endless reboots when the demand of two pools alternates.
pub(super) const SETTLED: std::time::Duration = std::time::Duration::from_secs(10);

pub(super) struct Round<'a> {
    input: &'a DecisionInput<'a>,
    pools: Vec<PoolCounts<'a>>,
    /// The free part of the budget.
    free: Resources,
    ending: Resources,
    /// Jobs without a machine, not even a booting one.
    missing: Vec<MissingMachines>,
    /// Whether a waiting job needs more of the budget than is free. Later jobs may not take any of
    /// it.
    is_budget_reserved: bool,
    /// What the jobs of each pool of the input wait for.
    blockers: Vec<Option<Obstacle>>,
    decision: Decision,
}

struct MissingMachines {
    since: Millis,
    pool: usize,
    count: u32,
}

impl<'a> Round<'a> {
    pub(super) fn begin(input: &'a DecisionInput<'a>) -> Self {
        let counts = Counts::of(input);
        let blockers = vec![None; input.pools.len()];
        Self {
            input,
            pools: counts.pools,
            free: input.budget.minus(counts.used),
            ending: counts.ending,
            missing: Vec::new(),
            is_budget_reserved: false,
            blockers,
            decision: Decision { actions: counts.orphans, ..Decision::default() },
        }
    }

    pub(super) fn end(self) -> Decision {
        let named = self.input.pools.iter().zip(self.blockers);
        let blockers = named.filter_map(|(pool, blocker)| Some((pool.id, blocker?))).collect();
        Decision { blockers, ..self.decision }
    }

    /// Assigns warm and booting machines and idle runners to waiting jobs.
    pub(super) fn serve(&mut self) {
        for pool in 0..self.pools.len() {
            for waiting in std::mem::take(&mut self.pools[pool].waiting) {
                count_step();
                let missing = match waiting {
                    WaitingJobs::Local { job, .. } => match self.pools[pool].warm.pop_front() {
                        Some(Machine { key, .. }) => {
                            self.decision.actions.push(Action::Assign { machine: *key, job: *job });
                            0
                        }
                        None => 1,
                    },
                    WaitingJobs::Runners { count, .. } => self.serve_runners(pool, *count),
                };
                let booting = missing.min(self.pools[pool].booting);
                self.pools[pool].booting -= booting;
                if booting > 0 {
                    self.block(pool, Blocker::Booting);
                }
                if missing > booting {
                    let (since, count) = (waiting.since(), missing - booting);
                    self.missing.push(MissingMachines { since, pool, count });
                }
            }
        }
    }

    /// Serves jobs of the forge. Returns how many of them lack a machine.
    fn serve_runners(&mut self, pool: usize, count: u32) -> u32 {
        let input = self.input;
        let listening = count.min(self.pools[pool].runners);
        self.pools[pool].runners -= listening;
        if listening > 0 {
            self.block(pool, Blocker::Listening);
        }
        let mut left = count - listening;
        if left == 0 {
            return 0;
        }
        if input.pools[pool].registration == RegistrationPolicy::Never {
            self.block(pool, Blocker::NeverRegisters);
            return 0;
        }
        if let Some(obstacle) = self.current_obstacle(input.pools[pool].forge_obstacle.as_ref()) {
            self.block_until_over(pool, obstacle);
            return 0;
        }
        while left > 0 && self.register_one(pool) {
            left -= 1;
        }
        left
    }

    fn register_one(&mut self, pool: usize) -> bool {
        count_step();
        let Some(Machine { key, .. }) = self.pools[pool].warm.pop_front() else { return false };
        self.decision.actions.push(Action::Register { machine: *key });
        true
    }

    /// Boots the missing machines, for the oldest job first.
    pub(super) fn boot(&mut self) {
        let mut missing = std::mem::take(&mut self.missing);
        missing.sort_by_key(|missing| missing.since);
        for MissingMachines { pool, count, .. } in missing {
            count_step();
            self.boot_for(pool, count);
        }
    }

    fn boot_for(&mut self, index: usize, count: u32) {
        let input = self.input;
        let pool = &input.pools[index];
        if let Some(obstacle) = self.current_obstacle(pool.boot_obstacle.as_ref()) {
            return self.block_until_over(index, obstacle);
        }
        if input.budget.fits(pool.resources) == 0 {
            return self.block(index, Blocker::LargerThanHost);
        }
        let wanted = count.min(pool.max.saturating_sub(self.pools[index].machines));
        if wanted < count {
            self.block(index, Blocker::PoolAtMax(pool.max));
        }
        let booted = if self.is_budget_reserved { 0 } else { self.boot_up_to(index, wanted) };
        if booted > 0 {
            self.block(index, Blocker::Booting);
        }
        if booted < wanted {
            self.block(index, Blocker::HostBudget);
            if !self.is_budget_reserved {
                self.is_budget_reserved = true;
                self.make_room(index, wanted - booted);
            }
        }
    }

    /// Boots up to `wanted` machines if they fit. Returns how many.
    fn boot_up_to(&mut self, index: usize, wanted: u32) -> u32 {
        let Pool { id, resources, .. } = self.input.pools[index];
        let count = wanted.min(self.free.fits(resources));
        for _ in 0..count {
            count_step();
            self.decision.actions.push(Action::Boot { pool: id });
        }
        self.free = self.free.minus(resources.times(count));
        self.pools[index].machines += count;
        count
    }

    /// Retires as many spare machines of other pools as machines of this one need.
    fn make_room(&mut self, index: usize, wanted: u32) {
        let (now, resources) = (self.input.now, self.input.pools[index].resources);
        let soon = self.free.plus(self.ending);
        let mut spares = soon;
        for (other, pool_counts) in self.pools.iter().enumerate() {
            for machine in pool_counts.warm.iter().filter(|_| other != index) {
                count_step();
                spares = spares.plus(machine.resources);
            }
        }
        let needed = resources.times(wanted.min(spares.fits(resources)));
        let mut room = soon;
        for other in (0..self.pools.len()).filter(|other| *other != index) {
            while !covers(room, needed) {
                count_step();
                let Some(machine) = self.pools[other].warm.front().copied() else { break };
                if machine.since + SETTLED > now {
                    self.wake_at(machine.since + SETTLED);
                    break;
                }
                self.pools[other].warm.pop_front();
                self.retire_one(machine, RetireReason::Displaced);
                room = room.plus(machine.resources);
            }
        }
    }

    /// Boots or registers the missing spare machines of each pool.
    pub(super) fn keep_spares(&mut self) {
        let input = self.input;
        for (index, pool) in input.pools.iter().enumerate() {
            let mut lacking = spare_target(pool);
            if pool.registration == RegistrationPolicy::Always {
                lacking = lacking.saturating_sub(self.pools[index].runners);
                self.register_spares(index, lacking);
            }
            let pool_counts = &self.pools[index];
            let warm = u32::try_from(pool_counts.warm.len()).unwrap_or(u32::MAX);
            let registered_now = if pool.registration == RegistrationPolicy::Always {
                self.pools[index].runners.min(spare_target(pool))
            } else {
                0
            };
            let there = warm.saturating_add(pool_counts.booting).saturating_add(registered_now);
            let room = pool.max.saturating_sub(pool_counts.machines);
            let wanted = spare_target(pool).saturating_sub(there).min(room);
            if wanted == 0 || self.is_budget_reserved {
                continue;
            }
            match self.current_obstacle(pool.boot_obstacle.as_ref()) {
                Some(obstacle) => self.wake_when_over(obstacle),
                None => _ = self.boot_up_to(index, wanted),
            }
        }
    }

    /// Registers up to `wanted` spare machines as runners.
    fn register_spares(&mut self, index: usize, wanted: u32) {
        let obstacle = self.current_obstacle(self.input.pools[index].forge_obstacle.as_ref());
        if let Some(obstacle) = obstacle.filter(|_| wanted > 0) {
            return self.wake_when_over(obstacle);
        }
        for _ in 0..wanted {
            if !self.register_one(index) {
                break;
            }
            self.pools[index].runners += 1;
        }
    }

    /// Retires spares that were idle for too long, and runners that got no job.
    pub(super) fn retire(&mut self) {
        let input = self.input;
        for (index, pool) in input.pools.iter().enumerate() {
            let pool_counts = &mut self.pools[index];
            let (warm, registered) = (
                std::mem::take(&mut pool_counts.warm),
                std::mem::take(&mut pool_counts.registered),
            );
            let mut spare = spare_target(pool) as usize;
            let mut runners = 0;
            if pool.registration == RegistrationPolicy::Always {
                runners = spare;
                spare = spare.saturating_sub(registered.len());
            }
            let idle = warm.iter().take(warm.len().saturating_sub(spare));
            self.retire_after(idle.copied(), pool.idle, RetireReason::Idle);
            let unclaimed = registered.iter().take(registered.len().saturating_sub(runners));
            self.retire_after(unclaimed.copied(), pool.claim, RetireReason::Unclaimed);
        }
    }

    /// Retires machines of at least that age. They come the oldest first.
    fn retire_after<'m>(
        &mut self,
        machines: impl Iterator<Item = &'m Machine>,
        age: std::time::Duration,
        why: RetireReason,
    ) {
        for machine in machines {
            count_step();
            let due = machine.since + age;
            if due > self.input.now {
                return self.wake_at(due);
            }
            self.retire_one(machine, why);
        }
    }

    /// Retires all machines without a job.
    pub(super) fn drain(&mut self) {
        self.decision.actions.clear();
        for machine in self.input.machines {
            count_step();
            if matches!(machine.stage, Stage::Booting | Stage::Warm | Stage::Registered) {
                self.retire_one(machine, RetireReason::Draining);
            }
        }
        for pool in 0..self.pools.len() {
            if self.pools[pool].waiting.iter().any(|waiting| waiting.count() > 0) {
                self.block(pool, Blocker::Draining);
            }
        }
    }

    fn retire_one(&mut self, machine: &Machine, why: RetireReason) {
        self.decision.actions.push(Action::Retire { machine: machine.key, reason: why });
    }

    /// Returns the obstacle if it still applies.
    fn current_obstacle(&self, obstacle: Option<&'a Obstacle>) -> Option<&'a Obstacle> {
        obstacle.filter(|obstacle| obstacle.until.is_none_or(|until| until > self.input.now))
    }

    /// Records that jobs of the pool wait for the end of an obstacle.
    fn block_until_over(&mut self, pool: usize, obstacle: &Obstacle) {
        self.wake_when_over(obstacle);
        self.record_blocker(pool, obstacle.clone());
    }

    fn block(&mut self, pool: usize, why: Blocker) {
        self.record_blocker(pool, Obstacle { until: None, why });
    }

    /// Records what jobs of a pool wait for. A limit replaces progress; otherwise the first reason
    /// stays, which is that of the oldest job.
    fn record_blocker(&mut self, pool: usize, obstacle: Obstacle) {
        let there = &mut self.blockers[pool];
        if there.as_ref().is_none_or(|there| !there.why.is_limit() && obstacle.why.is_limit()) {
            *there = Some(obstacle);
        }
    }

    fn wake_when_over(&mut self, obstacle: &Obstacle) {
        if let Some(until) = obstacle.until {
            self.wake_at(until);
        }
    }

    fn wake_at(&mut self, moment: Millis) {
        let earlier = self.decision.wake.map_or(moment, |wake| wake.min(moment));
        self.decision.wake = Some(earlier);
    }
}

/// Returns the number of spare machines that a pool keeps.
fn spare_target(pool: &Pool) -> u32 {
    pool.min_idle.min(pool.max)
}

fn covers(room: Resources, needed: Resources) -> bool {
    room.processors >= needed.processors && room.memory >= needed.memory
}

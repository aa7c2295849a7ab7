//! The state of one decision: the counts, minus what is already assigned.

use super::counts::{Counts, PoolCounts};
use super::{
    Action, ActiveBlocker, Blocker, Decision, DecisionInput, MicrovmState, Millis, Pool,
    RegistrationPolicy, Resources, RetireReason, Stage, WaitingJobs, count_step,
};

/// How long a warm microVM stays with its own pool before a job of another pool may displace it.
/// Prevents endless reboots when the demand of two pools alternates.
pub(super) const SETTLED: std::time::Duration = std::time::Duration::from_secs(10);

pub(super) struct Round<'a> {
    input: &'a DecisionInput<'a>,
    pools: Vec<PoolCounts<'a>>,
    /// The free part of the budget.
    free: Resources,
    ending: Resources,
    /// Jobs without a microVM, not even a booting one.
    missing: Vec<MissingMicrovms>,
    /// Whether a waiting job needs more of the budget than is free. Later jobs may not take any of
    /// it.
    is_budget_reserved: bool,
    /// What the jobs of each pool of the input wait for.
    blockers: Vec<Option<ActiveBlocker>>,
    decision: Decision,
}

struct MissingMicrovms {
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

    /// Assigns warm and booting microVMs and idle runners to waiting jobs.
    pub(super) fn serve(&mut self) {
        for pool in 0..self.pools.len() {
            for waiting in std::mem::take(&mut self.pools[pool].waiting) {
                count_step();
                let missing = match waiting {
                    WaitingJobs::Local { job, .. } => match self.pools[pool].warm.pop_front() {
                        Some(MicrovmState { key, .. }) => {
                            self.decision.actions.push(Action::Assign { microvm: *key, job: *job });
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
                    self.missing.push(MissingMicrovms { since, pool, count });
                }
            }
        }
    }

    /// Serves jobs of the forge. Returns how many of them lack a microVM.
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
        if let Some(blocker) = self.current_blocker(input.pools[pool].forge_blocker.as_ref()) {
            self.block_until_over(pool, blocker);
            return 0;
        }
        while left > 0 && self.register_one(pool) {
            left -= 1;
        }
        left
    }

    fn register_one(&mut self, pool: usize) -> bool {
        count_step();
        let Some(MicrovmState { key, .. }) = self.pools[pool].warm.pop_front() else {
            return false;
        };
        self.decision.actions.push(Action::Register { microvm: *key });
        true
    }

    /// Boots the missing microVMs, for the oldest job first.
    pub(super) fn boot(&mut self) {
        let mut missing = std::mem::take(&mut self.missing);
        missing.sort_by_key(|missing| missing.since);
        for MissingMicrovms { pool, count, .. } in missing {
            count_step();
            self.boot_for(pool, count);
        }
    }

    fn boot_for(&mut self, index: usize, count: u32) {
        let input = self.input;
        let pool = &input.pools[index];
        if let Some(blocker) = self.current_blocker(pool.boot_blocker.as_ref()) {
            return self.block_until_over(index, blocker);
        }
        if input.budget.fits(pool.resources) == 0 {
            return self.block(index, Blocker::LargerThanHost);
        }
        let wanted = count.min(pool.max.saturating_sub(self.pools[index].microvms));
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

    /// Boots up to `wanted` microVMs if they fit. Returns how many.
    fn boot_up_to(&mut self, index: usize, wanted: u32) -> u32 {
        let Pool { id, resources, .. } = self.input.pools[index];
        let count = wanted.min(self.free.fits(resources));
        for _ in 0..count {
            count_step();
            self.decision.actions.push(Action::Boot { pool: id });
        }
        self.free = self.free.minus(resources.times(count));
        self.pools[index].microvms += count;
        count
    }

    /// Retires as many warm microVMs of other pools as microVMs of this one need.
    fn make_room(&mut self, index: usize, wanted: u32) {
        let (now, resources) = (self.input.now, self.input.pools[index].resources);
        let soon = self.free.plus(self.ending);
        let mut available = soon;
        for (other, pool_counts) in self.pools.iter().enumerate() {
            for microvm in pool_counts.warm.iter().filter(|_| other != index) {
                count_step();
                available = available.plus(microvm.resources);
            }
        }
        let needed = resources.times(wanted.min(available.fits(resources)));
        let mut room = soon;
        for other in (0..self.pools.len()).filter(|other| *other != index) {
            while !covers(room, needed) {
                count_step();
                let Some(microvm) = self.pools[other].warm.front().copied() else { break };
                if microvm.since + SETTLED > now {
                    self.wake_at(microvm.since + SETTLED);
                    break;
                }
                self.pools[other].warm.pop_front();
                self.retire_one(microvm, RetireReason::Displaced);
                room = room.plus(microvm.resources);
            }
        }
    }

    /// Boots or registers the missing warm microVMs of each pool.
    pub(super) fn keep_warm(&mut self) {
        let input = self.input;
        for (index, pool) in input.pools.iter().enumerate() {
            let mut lacking = warm_target(pool);
            if pool.registration == RegistrationPolicy::Always {
                lacking = lacking.saturating_sub(self.pools[index].runners);
                self.register_warm(index, lacking);
            }
            let pool_counts = &self.pools[index];
            let warm = u32::try_from(pool_counts.warm.len()).unwrap_or(u32::MAX);
            let registered_now = if pool.registration == RegistrationPolicy::Always {
                self.pools[index].runners.min(warm_target(pool))
            } else {
                0
            };
            let there = warm.saturating_add(pool_counts.booting).saturating_add(registered_now);
            let room = pool.max.saturating_sub(pool_counts.microvms);
            let wanted = warm_target(pool).saturating_sub(there).min(room);
            if wanted == 0 || self.is_budget_reserved {
                continue;
            }
            match self.current_blocker(pool.boot_blocker.as_ref()) {
                Some(blocker) => self.wake_when_over(blocker),
                None => _ = self.boot_up_to(index, wanted),
            }
        }
    }

    /// Registers up to `wanted` warm microVMs as runners.
    fn register_warm(&mut self, index: usize, wanted: u32) {
        let blocker = self.current_blocker(self.input.pools[index].forge_blocker.as_ref());
        if let Some(blocker) = blocker.filter(|_| wanted > 0) {
            return self.wake_when_over(blocker);
        }
        for _ in 0..wanted {
            if !self.register_one(index) {
                break;
            }
            self.pools[index].runners += 1;
        }
    }

    /// Retires warm microVMs that were idle for too long, and runners that got no job.
    pub(super) fn retire(&mut self) {
        let input = self.input;
        for (index, pool) in input.pools.iter().enumerate() {
            let pool_counts = &mut self.pools[index];
            let (warm, registered) = (
                std::mem::take(&mut pool_counts.warm),
                std::mem::take(&mut pool_counts.registered),
            );
            let mut keep = warm_target(pool) as usize;
            let mut runners = 0;
            if pool.registration == RegistrationPolicy::Always {
                runners = keep;
                keep = keep.saturating_sub(registered.len());
            }
            let idle = warm.iter().take(warm.len().saturating_sub(keep));
            self.retire_after(idle.copied(), pool.idle, RetireReason::Idle);
            let unclaimed = registered.iter().take(registered.len().saturating_sub(runners));
            self.retire_after(unclaimed.copied(), pool.claim, RetireReason::Unclaimed);
        }
    }

    /// Retires microVMs of at least that age. They come the oldest first.
    fn retire_after<'m>(
        &mut self,
        microvms: impl Iterator<Item = &'m MicrovmState>,
        age: std::time::Duration,
        why: RetireReason,
    ) {
        for microvm in microvms {
            count_step();
            let due = microvm.since + age;
            if due > self.input.now {
                return self.wake_at(due);
            }
            self.retire_one(microvm, why);
        }
    }

    /// Retires all microVMs without a job.
    pub(super) fn drain(&mut self) {
        self.decision.actions.clear();
        for microvm in self.input.microvms {
            count_step();
            if matches!(microvm.stage, Stage::Booting | Stage::Warm | Stage::Registered) {
                self.retire_one(microvm, RetireReason::Draining);
            }
        }
        for pool in 0..self.pools.len() {
            if self.pools[pool].waiting.iter().any(|waiting| waiting.count() > 0) {
                self.block(pool, Blocker::Draining);
            }
        }
    }

    fn retire_one(&mut self, microvm: &MicrovmState, why: RetireReason) {
        self.decision.actions.push(Action::Retire { microvm: microvm.key, reason: why });
    }

    /// Returns the blocker if it still applies.
    fn current_blocker(&self, blocker: Option<&'a ActiveBlocker>) -> Option<&'a ActiveBlocker> {
        blocker.filter(|blocker| blocker.until.is_none_or(|until| until > self.input.now))
    }

    /// Records that jobs of the pool wait for the end of a blocker.
    fn block_until_over(&mut self, pool: usize, blocker: &ActiveBlocker) {
        self.wake_when_over(blocker);
        self.record_blocker(pool, blocker.clone());
    }

    fn block(&mut self, pool: usize, reason: Blocker) {
        self.record_blocker(pool, ActiveBlocker { until: None, reason });
    }

    /// Records what jobs of a pool wait for. A limit replaces progress; otherwise the first reason
    /// stays, which is that of the oldest job.
    fn record_blocker(&mut self, pool: usize, blocker: ActiveBlocker) {
        let there = &mut self.blockers[pool];
        if there.as_ref().is_none_or(|there| !there.reason.is_limit() && blocker.reason.is_limit())
        {
            *there = Some(blocker);
        }
    }

    fn wake_when_over(&mut self, blocker: &ActiveBlocker) {
        if let Some(until) = blocker.until {
            self.wake_at(until);
        }
    }

    fn wake_at(&mut self, moment: Millis) {
        let earlier = self.decision.wake.map_or(moment, |wake| wake.min(moment));
        self.decision.wake = Some(earlier);
    }
}

/// Returns the number of warm microVMs that a pool keeps.
fn warm_target(pool: &Pool) -> u32 {
    pool.min_idle.min(pool.max)
}

fn covers(room: Resources, needed: Resources) -> bool {
    room.processors >= needed.processors && room.memory >= needed.memory
}

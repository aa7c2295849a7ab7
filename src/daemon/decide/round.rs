//! One decision in the making: what there is, less what was already given away.

use super::census::{Census, Survey};
use super::{
    Action, Blocker, Decision, Load, Machine, Millis, Obstacle, Pool, Registers, Retirement, Stage,
    View, Waiting, step,
};

/// How long a spare machine is left to its own pool before a job of another may have its room, so
/// that demand that comes and goes in two pools does not boot without end.
pub(super) const SETTLED: std::time::Duration = std::time::Duration::from_secs(10);

pub(super) struct Round<'a> {
    view: &'a View<'a>,
    pools: Vec<Census<'a>>,
    /// What of the budget is free.
    free: Load,
    ending: Load,
    /// Jobs for which there is no machine, not even a booting one.
    missing: Vec<Missing>,
    /// A waiting job needs more of the budget than is free: nothing behind it may take any.
    held: bool,
    /// For each pool of the view: what its jobs wait for.
    blockers: Vec<Option<Obstacle>>,
    decision: Decision,
}

struct Missing {
    since: Millis,
    pool: usize,
    count: u32,
}

impl<'a> Round<'a> {
    pub(super) fn begin(view: &'a View<'a>) -> Self {
        let survey = Survey::of(view);
        let blockers = vec![None; view.pools.len()];
        Self {
            view,
            pools: survey.pools,
            free: view.budget.minus(survey.used),
            ending: survey.ending,
            missing: Vec::new(),
            held: false,
            blockers,
            decision: Decision { actions: survey.orphans, ..Decision::default() },
        }
    }

    pub(super) fn end(self) -> Decision {
        let named = self.view.pools.iter().zip(self.blockers);
        let blockers = named.filter_map(|(pool, blocker)| Some((pool.id, blocker?))).collect();
        Decision { blockers, ..self.decision }
    }

    /// Gives warm and booting machines and idle runners to what waits.
    pub(super) fn serve(&mut self) {
        for pool in 0..self.pools.len() {
            for waiting in std::mem::take(&mut self.pools[pool].waiting) {
                step();
                let missing = match waiting {
                    Waiting::Local { job, .. } => match self.pools[pool].warm.pop_front() {
                        Some(Machine { key, .. }) => {
                            self.decision.actions.push(Action::Assign { machine: *key, job: *job });
                            0
                        }
                        None => 1,
                    },
                    Waiting::Runners { count, .. } => self.serve_runners(pool, *count),
                };
                let booting = missing.min(self.pools[pool].booting);
                self.pools[pool].booting -= booting;
                if booting > 0 {
                    self.block(pool, Blocker::Booting);
                }
                if missing > booting {
                    let (since, count) = (waiting.since(), missing - booting);
                    self.missing.push(Missing { since, pool, count });
                }
            }
        }
    }

    /// Serves jobs of the forge; how many of them lack a machine.
    fn serve_runners(&mut self, pool: usize, count: u32) -> u32 {
        let view = self.view;
        let listening = count.min(self.pools[pool].runners);
        self.pools[pool].runners -= listening;
        if listening > 0 {
            self.block(pool, Blocker::Listening);
        }
        let mut left = count - listening;
        if left == 0 {
            return 0;
        }
        if view.pools[pool].registers == Registers::Never {
            self.block(pool, Blocker::NeverRegisters);
            return 0;
        }
        if let Some(obstacle) = self.standing(view.pools[pool].forge_obstacle.as_ref()) {
            self.stop(pool, obstacle);
            return 0;
        }
        while left > 0 && self.register_one(pool) {
            left -= 1;
        }
        left
    }

    fn register_one(&mut self, pool: usize) -> bool {
        step();
        let Some(Machine { key, .. }) = self.pools[pool].warm.pop_front() else { return false };
        self.decision.actions.push(Action::Register { machine: *key });
        true
    }

    /// Boots what is missing, the oldest job first.
    pub(super) fn boot(&mut self) {
        let mut missing = std::mem::take(&mut self.missing);
        missing.sort_by_key(|missing| missing.since);
        for Missing { pool, count, .. } in missing {
            step();
            self.boot_for(pool, count);
        }
    }

    fn boot_for(&mut self, index: usize, count: u32) {
        let view = self.view;
        let pool = &view.pools[index];
        if let Some(obstacle) = self.standing(pool.boot_obstacle.as_ref()) {
            return self.stop(index, obstacle);
        }
        if view.budget.fits(pool.load) == 0 {
            return self.block(index, Blocker::LargerThanHost);
        }
        let wanted = count.min(pool.max.saturating_sub(self.pools[index].machines));
        if wanted < count {
            self.block(index, Blocker::PoolAtMax(pool.max));
        }
        let booted = if self.held { 0 } else { self.boot_up_to(index, wanted) };
        if booted > 0 {
            self.block(index, Blocker::Booting);
        }
        if booted < wanted {
            self.block(index, Blocker::HostBudget);
            if !self.held {
                self.held = true;
                self.make_room(index, wanted - booted);
            }
        }
    }

    /// Boots as many as are wanted and fit; how many.
    fn boot_up_to(&mut self, index: usize, wanted: u32) -> u32 {
        let Pool { id, load, .. } = self.view.pools[index];
        let count = wanted.min(self.free.fits(load));
        for _ in 0..count {
            step();
            self.decision.actions.push(Action::Boot { pool: id });
        }
        self.free = self.free.minus(load.times(count));
        self.pools[index].machines += count;
        count
    }

    /// Ends spare machines of other pools, as many as it takes for machines of this one.
    fn make_room(&mut self, index: usize, wanted: u32) {
        let (now, load) = (self.view.now, self.view.pools[index].load);
        let soon = self.free.plus(self.ending);
        let mut spares = soon;
        for (other, census) in self.pools.iter().enumerate() {
            for machine in census.warm.iter().filter(|_| other != index) {
                step();
                spares = spares.plus(machine.load);
            }
        }
        let needed = load.times(wanted.min(spares.fits(load)));
        let mut room = soon;
        for other in (0..self.pools.len()).filter(|other| *other != index) {
            while !covers(room, needed) {
                step();
                let Some(machine) = self.pools[other].warm.front().copied() else { break };
                if machine.since + SETTLED > now {
                    self.wake_at(machine.since + SETTLED);
                    break;
                }
                self.pools[other].warm.pop_front();
                self.retire_one(machine, Retirement::Displaced);
                room = room.plus(machine.load);
            }
        }
    }

    /// Keeps the spare machines of each pool.
    pub(super) fn keep_spares(&mut self) {
        let view = self.view;
        for (index, pool) in view.pools.iter().enumerate() {
            let mut lacking = kept(pool);
            if pool.registers == Registers::Always {
                lacking = lacking.saturating_sub(self.pools[index].runners);
                self.register_spares(index, lacking);
            }
            let census = &self.pools[index];
            let warm = u32::try_from(census.warm.len()).unwrap_or(u32::MAX);
            let registered_now = if pool.registers == Registers::Always {
                self.pools[index].runners.min(kept(pool))
            } else {
                0
            };
            let there = warm.saturating_add(census.booting).saturating_add(registered_now);
            let room = pool.max.saturating_sub(census.machines);
            let wanted = kept(pool).saturating_sub(there).min(room);
            if wanted == 0 || self.held {
                continue;
            }
            match self.standing(pool.boot_obstacle.as_ref()) {
                Some(obstacle) => self.wake_when_over(obstacle),
                None => _ = self.boot_up_to(index, wanted),
            }
        }
    }

    /// Makes up to so many spare machines runners.
    fn register_spares(&mut self, index: usize, wanted: u32) {
        let obstacle = self.standing(self.view.pools[index].forge_obstacle.as_ref());
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

    /// Ends spares that idled for long, and runners that no job came to.
    pub(super) fn retire(&mut self) {
        let view = self.view;
        for (index, pool) in view.pools.iter().enumerate() {
            let census = &mut self.pools[index];
            let (warm, registered) =
                (std::mem::take(&mut census.warm), std::mem::take(&mut census.registered));
            let mut spare = kept(pool) as usize;
            let mut runners = 0;
            if pool.registers == Registers::Always {
                runners = spare;
                spare = spare.saturating_sub(registered.len());
            }
            let idle = warm.iter().take(warm.len().saturating_sub(spare));
            self.retire_after(idle.copied(), pool.idle, Retirement::Idle);
            let unclaimed = registered.iter().take(registered.len().saturating_sub(runners));
            self.retire_after(unclaimed.copied(), pool.claim, Retirement::Unclaimed);
        }
    }

    /// Ends machines that are as old; they come the oldest first.
    fn retire_after<'m>(
        &mut self,
        machines: impl Iterator<Item = &'m Machine>,
        age: std::time::Duration,
        why: Retirement,
    ) {
        for machine in machines {
            step();
            let due = machine.since + age;
            if due > self.view.now {
                return self.wake_at(due);
            }
            self.retire_one(machine, why);
        }
    }

    /// Ends everything that has no job.
    pub(super) fn drain(&mut self) {
        self.decision.actions.clear();
        for machine in self.view.machines {
            step();
            if matches!(machine.stage, Stage::Booting | Stage::Warm | Stage::Registered) {
                self.retire_one(machine, Retirement::Draining);
            }
        }
        for pool in 0..self.pools.len() {
            if self.pools[pool].waiting.iter().any(|waiting| waiting.count() > 0) {
                self.block(pool, Blocker::Draining);
            }
        }
    }

    fn retire_one(&mut self, machine: &Machine, why: Retirement) {
        self.decision.actions.push(Action::Retire { machine: machine.key, why });
    }

    /// An obstacle that still stands.
    fn standing(&self, obstacle: Option<&'a Obstacle>) -> Option<&'a Obstacle> {
        obstacle.filter(|obstacle| obstacle.until.is_none_or(|until| until > self.view.now))
    }

    /// Jobs of the pool wait for the end of an obstacle.
    fn stop(&mut self, pool: usize, obstacle: &Obstacle) {
        self.wake_when_over(obstacle);
        self.name(pool, obstacle.clone());
    }

    fn block(&mut self, pool: usize, why: Blocker) {
        self.name(pool, Obstacle { until: None, why });
    }

    /// Names what jobs of a pool wait for: what stands in the way before what is under way, and of
    /// the same kind what the oldest job waits for.
    fn name(&mut self, pool: usize, obstacle: Obstacle) {
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

/// The spare machines that a pool keeps.
fn kept(pool: &Pool) -> u32 {
    pool.min_idle.min(pool.max)
}

fn covers(room: Load, needed: Load) -> bool {
    room.processors >= needed.processors && room.memory >= needed.memory
}

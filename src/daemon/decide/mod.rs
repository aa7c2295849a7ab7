//! What to do next: from pools, microVMs and waiting jobs to actions.
//!
//! [`decide`] is a pure function of a [`View`]: no clock, no input or output, no chance, and no
//! memory of its own. The driver carries out the actions of a [`Decision`], changes the stages of
//! its machines *at once* (a machine that is to boot is there as [`Stage::Booting`] in the next
//! view), and asks again when something happened or the time to wake has come.
//!
//! ```text
//!          Boot                 Assign
//!   (none) ───▶ Booting ──▶ Warm ───▶ Assigned ──────▶ Busy ──▶ Ending ──▶ (gone)
//!                            │ Register                 ▲          ▲
//!                            └─────▶ Registering ─▶ Registered ────┘ Retire
//! ```
//!
//! The rules, in their order:
//!
//! 1. Waiting jobs take warm machines, the oldest first; jobs of the forge count the runners that are
//!    registered and have no job yet as theirs.
//! 2. What is missing beyond warm and booting machines is booted, the oldest waiting job first
//!    between pools. Where the host's budget ends, those behind wait too: a large microVM is not
//!    starved by small ones. Spare machines of other pools make room.
//! 3. `min_idle` spare machines are kept per pool, while no job waits for the budget.
//! 4. Spares beyond that are retired after `idle`, runners without a job after `claim`. A machine
//!    that has a job is never touched.
//!
//! Work is linear in machines and waiting jobs where they are given oldest first (they are sorted
//! by age by an adaptive sort).

mod backoff;
mod census;
mod round;

#[cfg(test)]
mod fleet;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod rules;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

pub use backoff::Backoff;

use super::millis::Millis;
use round::Round;

/// Everything that a decision rests on.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The time.
    pub now: Millis,
    /// The pools.
    pub pools: &'a [Pool],
    /// Every machine that is not gone.
    pub machines: &'a [Machine],
    /// The jobs that wait.
    pub demand: &'a [Waiting],
    /// What all machines together may use of the host.
    pub budget: Load,
    /// No new work; what has none is to go.
    pub draining: bool,
}

/// What a machine takes of the host, or a host offers to machines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Load {
    /// Virtual processors.
    pub processors: u32,
    /// Memory, in bytes.
    pub memory: u64,
}

impl Load {
    /// This and the other.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            processors: self.processors.saturating_add(other.processors),
            memory: self.memory.saturating_add(other.memory),
        }
    }

    /// This without the other, at least nothing.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            processors: self.processors.saturating_sub(other.processors),
            memory: self.memory.saturating_sub(other.memory),
        }
    }

    /// This, so many times.
    #[must_use]
    pub fn times(self, count: u32) -> Self {
        Self {
            processors: self.processors.saturating_mul(count),
            memory: self.memory.saturating_mul(u64::from(count)),
        }
    }

    /// How many of the other fit into this.
    pub fn fits(self, other: Self) -> u32 {
        let processors = self.processors.checked_div(other.processors).unwrap_or(u32::MAX);
        let memory = self.memory.checked_div(other.memory).unwrap_or(u64::MAX);
        processors.min(u32::try_from(memory).unwrap_or(u32::MAX))
    }
}

/// The driver's name for a pool. It names the same pool for as long as the driver lives, whatever
/// other pools come and go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct PoolId(pub u32);

/// A pool: machines that are all alike.
#[derive(Debug, Clone)]
pub struct Pool {
    /// Its name.
    pub id: PoolId,
    /// What one of its machines takes.
    pub load: Load,
    /// Spare machines to keep.
    pub min_idle: u32,
    /// Machines it may have, in whatever stage.
    pub max: u32,
    /// When its machines become runners.
    pub registers: Registers,
    /// How long a machine beyond `min_idle` stays warm.
    pub idle: Duration,
    /// How long a runner waits for a job.
    pub claim: Duration,
    /// Why nothing can be booted.
    pub boot_obstacle: Option<Obstacle>,
    /// Why nothing can be registered.
    pub forge_obstacle: Option<Obstacle>,
}

/// When machines become runners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registers {
    /// When a job waits.
    Late,
    /// As soon as they are warm: the spare machines of the pool are runners.
    Always,
    /// Never: the pool serves local jobs only.
    Never,
}

/// Something in the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Obstacle {
    /// When it is over by itself; `None` where the driver will know. It counts only before.
    pub until: Option<Millis>,
    /// What.
    pub why: Blocker,
}

/// Why jobs wait, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "blocker", content = "detail", rename_all = "snake_case")]
pub enum Blocker {
    /// A runner is registered, or being registered; the forge has not given it the job yet.
    Listening,
    /// A machine boots for it.
    Booting,
    /// The daemon takes no new work.
    Draining,
    /// The pool has all the machines it may have: so many.
    PoolAtMax(u32),
    /// The host's processors or memory are in use, or an older job waits for them.
    HostBudget,
    /// One machine of the pool takes more than the host's whole budget.
    LargerThanHost,
    /// The pool registers no runners, so it can't serve jobs of the forge.
    NeverRegisters,
    /// The image can't be used: why.
    Image(String),
    /// Boots failed, the last one for this cause.
    BootsFail(String),
    /// The forge limits the rate of calls.
    RateLimited,
    /// The forge can't be reached: why.
    Unreachable(String),
    /// The forge refuses: what it said.
    Refused(String),
    /// Runners end before they have a job, the last one for this cause.
    RunnersFail(String),
}

impl Blocker {
    /// Whether it is something that stands in the way rather than progress on the way.
    fn is_limit(&self) -> bool {
        !matches!(self, Self::Listening | Self::Booting)
    }
}

impl std::fmt::Display for Blocker {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Listening => formatter.write_str("a runner is registered for it"),
            Self::Booting => formatter.write_str("a microVM boots for it"),
            Self::Draining => formatter.write_str("the daemon drains: it takes no new work"),
            Self::PoolAtMax(max) => write!(formatter, "the pool is at its maximum of {max}"),
            Self::HostBudget => formatter.write_str("the host's budget is in use"),
            Self::LargerThanHost => {
                formatter.write_str("one microVM of the pool is larger than the host's budget")
            }
            Self::NeverRegisters => formatter.write_str("the pool registers no runners"),
            Self::Image(why) => write!(formatter, "the image can't be used: {why}"),
            Self::BootsFail(why) => write!(formatter, "microVMs fail to boot: {why}"),
            Self::RateLimited => formatter.write_str("GitHub limits the rate of calls"),
            Self::Unreachable(why) => write!(formatter, "GitHub can't be reached: {why}"),
            Self::Refused(why) => write!(formatter, "GitHub refuses: {why}"),
            Self::RunnersFail(why) => {
                write!(formatter, "runners end before they have a job: {why}")
            }
        }
    }
}

/// The driver's name for a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MachineKey(pub u64);

/// The driver's name for a local job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobKey(pub u64);

/// A machine that is not gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// Its name.
    pub key: MachineKey,
    /// Its pool, which may no longer be among those of the view.
    pub pool: PoolId,
    /// What it takes: its pool may have changed since it was booted.
    pub load: Load,
    /// Where it is in its life.
    pub stage: Stage,
    /// Since when.
    pub since: Millis,
}

/// Where a machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// From the decision to boot until the guest is ready.
    Booting,
    /// Ready, without work.
    Warm,
    /// A local job was handed over and has not begun.
    Assigned,
    /// A JIT config is being minted for it, or was handed over; the runner does not listen yet.
    Registering,
    /// Its runner listens and has no job.
    Registered,
    /// It runs a job.
    Busy,
    /// It is about to be gone.
    Ending,
}

/// Work that waits. What a machine was given (Assigned, Busy) no longer waits; runners that are
/// registered are not subtracted here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// One job of the daemon's own queue.
    Local {
        /// Its name.
        job: JobKey,
        /// Its pool.
        pool: PoolId,
        /// Since when it waits.
        since: Millis,
    },
    /// Jobs of the forge that want runners of a pool.
    Runners {
        /// The pool.
        pool: PoolId,
        /// How many.
        count: u32,
        /// Since when the oldest of them waits.
        since: Millis,
    },
}

/// One thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Boot a machine.
    Boot {
        /// For this pool.
        pool: PoolId,
    },
    /// Hand a local job to a warm machine.
    Assign {
        /// The machine.
        machine: MachineKey,
        /// The job.
        job: JobKey,
    },
    /// Make a warm machine a runner.
    Register {
        /// The machine.
        machine: MachineKey,
    },
    /// End a machine that has no job. A registered one is deleted at the forge first, and stays where
    /// The forge says that it is busy.
    Retire {
        /// The machine.
        machine: MachineKey,
        /// Why.
        why: Retirement,
    },
}

/// Why a machine is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Retirement {
    /// Warm for long, and not needed.
    Idle,
    /// Its runner got no job in time.
    Unclaimed,
    /// A waiting job of another pool needs the room.
    Displaced,
    /// Its pool is no longer configured.
    Orphaned,
    /// The daemon drains.
    Draining,
}

impl std::fmt::Display for Retirement {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Idle => "it was idle for long",
            Self::Unclaimed => "its runner got no job in time",
            Self::Displaced => "a job of another pool needed its room",
            Self::Orphaned => "its pool is no longer configured",
            Self::Draining => "the daemon drains",
        })
    }
}

/// What is to be done, and why not more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// To be carried out in this order.
    pub actions: Vec<Action>,
    /// For each pool with jobs that still wait: what they wait for.
    pub blockers: BTreeMap<PoolId, Obstacle>,
    /// When to decide again, even if nothing happens.
    pub wake: Option<Millis>,
}

/// Decides.
pub fn decide(view: &View<'_>) -> Decision {
    let mut round = Round::begin(view);
    if view.draining {
        round.drain();
    } else {
        round.serve();
        round.boot();
        round.keep_spares();
        round.retire();
    }
    round.end()
}

#[cfg(test)]
thread_local! {
    /// Machines, jobs and pools that decisions of this thread looked at.
    pub(crate) static STEPS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Counts one machine or job that is looked at, so that tests see how work grows.
#[inline]
fn step() {
    #[cfg(test)]
    STEPS.set(STEPS.get() + 1);
}

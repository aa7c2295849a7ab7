//! Scheduling decisions: from pools, microVMs and waiting jobs to actions.
//!
//! [`decide`] is a pure function of a [`DecisionInput`]: no clock, no input or output, no
//! randomness, no state. The driver carries out the actions of a [`Decision`], changes the stages
//! of its microVMs *at once* (a microVM to boot is [`Stage::Booting`] in the next input), and
//! decides again after an event or at the time to wake.
//!
//! ```text
//!          Boot                 Assign
//!   (none) ───▶ Booting ──▶ Warm ───▶ Assigned ──────▶ Busy ──▶ Ending ──▶ (gone)
//!                            │ Register                 ▲          ▲
//!                            └─────▶ Registering ─▶ Registered ────┘ Retire
//! ```
//!
//! The rules, in order:
//!
//! 1. Waiting jobs take warm microVMs, the oldest first. For jobs of the forge, registered runners
//!    without a job count too.
//! 2. Missing microVMs, beyond warm and booting ones, are booted, for the oldest waiting job of all
//!    pools first. When the host's budget is used up, later jobs wait too, so that small
//!    microVMs don't starve a large one. Warm microVMs of other pools make room.
//! 3. Each pool keeps `min_idle` warm microVMs while no job waits for the budget.
//! 4. Other warm microVMs are retired after `idle`, runners without a job after `claim`. A microVM
//!    with a job is never touched.
//!
//! The running time is linear in microVMs and waiting jobs if they are given oldest first (an
//! adaptive sort orders them by age).

mod backoff;
mod counts;
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

use super::time::Millis;
use round::Round;

/// The input of a decision.
#[derive(Debug, Clone, Copy)]
pub struct DecisionInput<'a> {
    /// The time.
    pub now: Millis,
    /// The pools.
    pub pools: &'a [Pool],
    /// All microVMs that exist.
    pub microvms: &'a [MicrovmState],
    /// The waiting jobs.
    pub demand: &'a [WaitingJobs],
    /// The resources that all microVMs together may use.
    pub budget: Resources,
    /// Whether the daemon drains: no new work, and microVMs without work are retired.
    pub draining: bool,
}

/// The resources of the host that a microVM takes, or that a host offers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Resources {
    /// Virtual processors.
    pub processors: u32,
    /// Memory, in bytes.
    pub memory: u64,
}

impl Resources {
    /// Returns the sum.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            processors: self.processors.saturating_add(other.processors),
            memory: self.memory.saturating_add(other.memory),
        }
    }

    /// Returns the difference, or zero.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            processors: self.processors.saturating_sub(other.processors),
            memory: self.memory.saturating_sub(other.memory),
        }
    }

    /// Returns the resources multiplied by `count`.
    #[must_use]
    pub fn times(self, count: u32) -> Self {
        Self {
            processors: self.processors.saturating_mul(count),
            memory: self.memory.saturating_mul(u64::from(count)),
        }
    }

    /// Returns how many times `other` fits.
    pub fn fits(self, other: Self) -> u32 {
        let processors = self.processors.checked_div(other.processors).unwrap_or(u32::MAX);
        let memory = self.memory.checked_div(other.memory).unwrap_or(u64::MAX);
        processors.min(u32::try_from(memory).unwrap_or(u32::MAX))
    }
}

/// The driver's id of a pool. It names the same pool for the driver's life, even if pools come and
/// go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct PoolId(pub u32);

/// A pool of identical microVMs.
#[derive(Debug, Clone)]
pub struct Pool {
    /// Its id.
    pub id: PoolId,
    /// The resources of one of its microVMs.
    pub resources: Resources,
    /// The number of warm microVMs to keep.
    pub min_idle: u32,
    /// The maximum number of microVMs, in any stage.
    pub max: u32,
    /// When its microVMs become runners.
    pub registration: RegistrationPolicy,
    /// How long a microVM beyond `min_idle` stays warm.
    pub idle: Duration,
    /// How long a runner waits for a job.
    pub claim: Duration,
    /// Why no microVM can boot, if so.
    pub boot_blocker: Option<ActiveBlocker>,
    /// Why no runner can be registered, if so.
    pub forge_blocker: Option<ActiveBlocker>,
}

/// When microVMs become runners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegistrationPolicy {
    /// When a job waits.
    OnDemand,
    /// As soon as they are warm: the warm microVMs of the pool become runners.
    Always,
    /// Never: the pool serves local jobs only.
    Never,
}

/// A blocker that is in effect, and when it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActiveBlocker {
    /// When it ends by itself. `None` if the driver will know. After this time the blocker does
    /// not count.
    pub until: Option<Millis>,
    /// The reason.
    pub reason: Blocker,
}

/// The reason why jobs wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "blocker", content = "detail", rename_all = "snake_case")]
pub enum Blocker {
    /// A runner is registered, or being registered, but the forge has not assigned the job yet.
    Listening,
    /// A microVM is booting for it.
    Booting,
    /// The daemon takes no new jobs.
    Draining,
    /// The pool has its maximum number of microVMs.
    PoolAtMax(u32),
    /// The host's processors or memory are in use, or an older job waits for them.
    HostBudget,
    /// One microVM of the pool takes more than the host's whole budget.
    LargerThanHost,
    /// The pool registers no runners, so it can't serve jobs of the forge.
    NeverRegisters,
    /// The image can't be used.
    Image(String),
    /// Boots failed, the last one for this reason.
    BootsFail(String),
    /// The forge limits the rate of calls.
    RateLimited,
    /// The forge can't be reached.
    Unreachable(String),
    /// The forge refused a call with this message.
    Refused(String),
    /// Runners end before they have a job, the last one for this reason.
    RunnersFail(String),
}

impl Blocker {
    /// Returns whether it is a limit rather than progress.
    fn is_limit(&self) -> bool {
        !matches!(self, Self::Listening | Self::Booting)
    }
}

impl std::fmt::Display for Blocker {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Listening => formatter.write_str("a runner is registered for it"),
            Self::Booting => formatter.write_str("a microVM is booting for it"),
            Self::Draining => formatter.write_str("the daemon is draining and takes no new jobs"),
            Self::PoolAtMax(max) => write!(formatter, "the pool is at its maximum of {max}"),
            Self::HostBudget => formatter.write_str("the host's budget is used up"),
            Self::LargerThanHost => {
                formatter.write_str("one microVM of the pool is larger than the host's budget")
            }
            Self::NeverRegisters => formatter.write_str("the pool registers no runners"),
            Self::Image(why) => write!(formatter, "the image can't be used: {why}"),
            Self::BootsFail(why) => write!(formatter, "microVMs fail to boot: {why}"),
            Self::RateLimited => formatter.write_str("GitHub's rate limit is reached"),
            Self::Unreachable(why) => write!(formatter, "GitHub can't be reached: {why}"),
            Self::Refused(why) => write!(formatter, "GitHub refused: {why}"),
            Self::RunnersFail(why) => {
                write!(formatter, "runners end before they have a job: {why}")
            }
        }
    }
}

/// The driver's id of a microVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MicrovmKey(pub u64);

/// The driver's id of a local job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobKey(pub u64);

/// A microVM that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MicrovmState {
    /// Its id.
    pub key: MicrovmKey,
    /// Its pool, which may no longer be configured.
    pub pool: PoolId,
    /// Its resources. Its pool may have changed since it booted.
    pub resources: Resources,
    /// Where it is in its life.
    pub stage: Stage,
    /// Since when.
    pub since: Millis,
}

/// Where a microVM is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// From the decision to boot until the guest is ready.
    Booting,
    /// Ready, without work.
    Warm,
    /// A local job was sent to it and has not started.
    Assigned,
    /// A JIT configuration is being issued for it or was sent to it. Its runner does not listen
    /// yet.
    Registering,
    /// Its runner listens and has no job.
    Registered,
    /// It runs a job.
    Busy,
    /// It is ending.
    Ending,
}

/// Waiting work. Work that a microVM was assigned no longer waits. Registered runners are not
/// subtracted here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitingJobs {
    /// One job of the daemon's own queue.
    Local {
        /// Its id.
        job: JobKey,
        /// Its pool.
        pool: PoolId,
        /// Since when it waits.
        since: Millis,
    },
    /// Jobs of the forge that wait for runners of a pool.
    Runners {
        /// The pool.
        pool: PoolId,
        /// How many.
        count: u32,
        /// Since when the oldest of them waits.
        since: Millis,
    },
}

/// An action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Boot a microVM.
    Boot {
        /// For this pool.
        pool: PoolId,
    },
    /// Assign a local job to a warm microVM.
    Assign {
        /// The microVM.
        microvm: MicrovmKey,
        /// The job.
        job: JobKey,
    },
    /// Make a warm microVM a runner.
    Register {
        /// The microVM.
        microvm: MicrovmKey,
    },
    /// End a microVM without a job. The runner of a registered one is deleted at the forge first.
    /// If the forge reports it as busy, the microVM stays.
    Retire {
        /// The microVM.
        microvm: MicrovmKey,
        /// Why.
        reason: RetireReason,
    },
}

/// The reason why a microVM is retired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RetireReason {
    /// It was warm for too long.
    Idle,
    /// Its runner got no job in time.
    Unclaimed,
    /// A waiting job of another pool needs its resources.
    Displaced,
    /// Its pool is no longer configured.
    Orphaned,
    /// The daemon drains.
    Draining,
}

impl std::fmt::Display for RetireReason {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Idle => "it was idle for too long",
            Self::Unclaimed => "its runner got no job in time",
            Self::Displaced => "a job of another pool needed its resources",
            Self::Orphaned => "its pool is no longer configured",
            Self::Draining => "the daemon is draining",
        })
    }
}

/// The result of a decision: actions, and why jobs still wait.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// The actions, in this order.
    pub actions: Vec<Action>,
    /// What the jobs wait for, for each pool with jobs that still wait.
    pub blockers: BTreeMap<PoolId, ActiveBlocker>,
    /// When to decide again, even if nothing happens.
    pub wake: Option<Millis>,
}

/// Returns the next actions for the given state.
pub fn decide(input: &DecisionInput<'_>) -> Decision {
    let mut round = Round::begin(input);
    if input.draining {
        round.drain();
    } else {
        round.serve();
        round.boot();
        round.keep_warm();
        round.retire();
    }
    round.end()
}

#[cfg(test)]
thread_local! {
    /// The number of microVMs, jobs and pools that decisions of this thread read.
    pub(crate) static STEPS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Counts one read of a microVM or job, so that tests can measure the running time.
#[inline]
fn count_step() {
    #[cfg(test)]
    STEPS.set(STEPS.get() + 1);
}

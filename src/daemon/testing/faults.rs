//! Faults at the calls of both seams: which, at which call, how often.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

/// A call that can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::daemon) enum Call {
    Plan,
    Start,
    Attach,
    Event,
    Order,
    Kill,
    List,
    KeepOutput,
    PutAway,
    Register,
    Deregister,
    Runners,
    Said,
}

impl Call {
    /// Those of the seam to shepherds.
    pub(in crate::daemon) const SHEPHERDS: [Self; 9] = [
        Self::Plan,
        Self::Start,
        Self::Attach,
        Self::Event,
        Self::Order,
        Self::Kill,
        Self::List,
        Self::KeepOutput,
        Self::PutAway,
    ];
    /// Those of the seam to the forge.
    pub(in crate::daemon) const FORGE: [Self; 4] =
        [Self::Register, Self::Deregister, Self::Runners, Self::Said];
}

/// How a call goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::daemon) enum Fault {
    /// It fails, without effect.
    Error,
    /// It has its effect, and never answers.
    Never,
    /// It takes so long.
    Late(Duration),
    /// It is done twice.
    Twice,
    /// The daemon is killed before it has its effect.
    KilledBefore,
    /// The daemon is killed once it had its effect.
    KilledAfter,
}

impl Fault {
    pub(in crate::daemon) const ALL: [Self; 6] = [
        Self::Error,
        Self::Never,
        Self::Late(Duration::from_secs(90)),
        Self::Twice,
        Self::KilledBefore,
        Self::KilledAfter,
    ];

    /// Whether what was asked for is done.
    pub(in crate::daemon) fn has_effect(self) -> bool {
        !matches!(self, Self::Error | Self::KilledBefore)
    }
}

/// The script: what goes wrong when.
#[derive(Debug, Default)]
pub(in crate::daemon) struct Faults {
    plan: Mutex<Plan>,
    kills: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Plan {
    calls: BTreeMap<Call, u64>,
    // Of a call: from which one on, how many, and how they fail.
    faults: Vec<(Call, u64, u64, Fault)>,
    injected: u64,
}

impl Faults {
    /// From the `first` call on (the next one is 1), so many fail in this way.
    pub(in crate::daemon) fn add(&self, call: Call, first: u64, count: u64, fault: Fault) {
        let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        let so_far = plan.calls.get(&call).copied().unwrap_or_default();
        plan.faults.push((call, so_far + first, count, fault));
    }

    /// How many calls went wrong.
    pub(in crate::daemon) fn injected(&self) -> u64 {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner).injected
    }

    /// A call is made: what goes wrong with it.
    pub(in crate::daemon) fn at(&self, call: Call) -> Option<Fault> {
        let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        let number = plan.calls.entry(call).or_default();
        *number += 1;
        let number = *number;
        let hit = plan.faults.iter().find(|(its, first, count, _)| {
            *its == call && (*first..first + count).contains(&number)
        });
        let fault = hit.map(|(.., fault)| *fault)?;
        plan.injected += 1;
        Some(fault)
    }

    /// The daemon is to be killed.
    pub(in crate::daemon) fn kill(&self) {
        self.kills.send_modify(|count| *count += 1);
    }

    /// Told when the daemon is to be killed.
    pub(in crate::daemon) fn kills(&self) -> watch::Receiver<u64> {
        self.kills.subscribe()
    }

    /// Makes a call that a script may let go wrong: `effect` is what it does, `error` what it is
    /// where it fails.
    pub(in crate::daemon) async fn call<T>(
        &self,
        call: Call,
        mut effect: impl FnMut() -> T,
        error: impl FnOnce() -> T,
    ) -> T {
        let Some(fault) = self.at(call) else { return effect() };
        match fault {
            Fault::Error => error(),
            Fault::Late(time) => {
                tokio::time::sleep(time).await;
                effect()
            }
            Fault::Twice => {
                // What it comes to is what the first told; the second may be refused.
                let first = effect();
                effect();
                first
            }
            Fault::Never | Fault::KilledBefore | Fault::KilledAfter => {
                if fault.has_effect() {
                    effect();
                }
                if fault != Fault::Never {
                    self.kill();
                }
                std::future::pending().await
            }
        }
    }
}

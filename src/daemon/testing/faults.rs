//! Fault injection for the calls of both drivers: which fault, at which call, how often.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

/// A driver call that can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum DriverCall {
    Plan,
    Start,
    Attach,
    Event,
    SendCommand,
    Kill,
    List,
    SaveOutput,
    Dispose,
    Register,
    Deregister,
    Runners,
    ForgeEvent,
}

impl DriverCall {
    /// The calls of `Shepherds` and `Shepherd`.
    pub(crate) const SHEPHERDS: [Self; 9] = [
        Self::Plan,
        Self::Start,
        Self::Attach,
        Self::Event,
        Self::SendCommand,
        Self::Kill,
        Self::List,
        Self::SaveOutput,
        Self::Dispose,
    ];
    /// The calls of `Forge`.
    pub(crate) const FORGE: [Self; 4] =
        [Self::Register, Self::Deregister, Self::Runners, Self::ForgeEvent];
}

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The call fails without effect.
    Error,
    /// The call has its effect and never returns.
    Never,
    /// The call takes this long.
    Late(Duration),
    /// The effect happens twice.
    Twice,
    /// The daemon is killed before the effect.
    KilledBefore,
    /// The daemon is killed after the effect.
    KilledAfter,
}

impl Fault {
    pub(crate) const ALL: [Self; 6] = [
        Self::Error,
        Self::Never,
        Self::Late(Duration::from_secs(90)),
        Self::Twice,
        Self::KilledBefore,
        Self::KilledAfter,
    ];

    /// Returns whether the call has its effect.
    pub(crate) fn has_effect(self) -> bool {
        !matches!(self, Self::Error | Self::KilledBefore)
    }
}

/// The planned faults.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    plan: Mutex<FaultPlan>,
    kills: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct FaultPlan {
    calls: BTreeMap<DriverCall, u64>,
    // The call, the number of the first faulty one, how many, and the fault.
    faults: Vec<(DriverCall, u64, u64, Fault)>,
    injected: u64,
}

impl Faults {
    /// Makes `count` calls fail, starting with the `first` from now (the next one is 1).
    pub(crate) fn add(&self, call: DriverCall, first: u64, count: u64, fault: Fault) {
        let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        let so_far = plan.calls.get(&call).copied().unwrap_or_default();
        plan.faults.push((call, so_far + first, count, fault));
    }

    /// Returns how many faults were injected.
    pub(crate) fn injected(&self) -> u64 {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner).injected
    }

    /// Counts a call. Returns its fault, if any.
    pub(crate) fn at(&self, call: DriverCall) -> Option<Fault> {
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

    /// Requests that the daemon is killed.
    pub(crate) fn kill(&self) {
        self.kills.send_modify(|count| *count += 1);
    }

    /// Returns a receiver of kill requests.
    pub(crate) fn kills(&self) -> watch::Receiver<u64> {
        self.kills.subscribe()
    }

    /// Makes a call that may get a fault. `effect` performs it, `error` returns its error.
    pub(crate) async fn call<T>(
        &self,
        call: DriverCall,
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
                // The first result counts. The second may be an error.
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

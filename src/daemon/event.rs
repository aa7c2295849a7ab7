//! The events that the daemon's tasks send to its loop. Events of the forge have a channel of their
//! own.

use super::decide::MicrovmKey;
use super::fleet::PlanFailure;
use super::retention::PruneResult;
use super::time::Millis;
use mayfly_forge::{ForgeError, NewRunner, RemoteRunner, RemovalOutcome};
use mayfly_shepherd::event::Event;
use mayfly_shepherd::plan::MicrovmPlan;

/// An event of one of the daemon's tasks.
#[derive(Debug)]
pub(super) enum DaemonEvent {
    /// The planning of a microVM ended.
    Planned(MicrovmKey, Result<Box<MicrovmPlan>, PlanFailure>),
    /// A shepherd could not be started, with the reason.
    StartFailed(MicrovmKey, String),
    /// A shepherd reported its n-th event, counted from 1. `usize::MAX` stands for the end that it
    /// could not report itself.
    ShepherdEvent(MicrovmKey, usize, Box<Event>),
    /// The output of an ended microVM's job was saved, with its size in bytes.
    OutputSaved(MicrovmKey, u64),
    /// A registration call ended. The second field is the runner's name.
    Registered(MicrovmKey, String, Result<NewRunner, ForgeError>),
    /// A deletion call ended. The first field is the runner's name.
    Deregistered(String, Result<RemovalOutcome, ForgeError>),
    /// The forge listed its runners. The first field is when the list was requested.
    RunnersListed(Millis, Result<Vec<RemoteRunner>, ForgeError>),
    /// The forge listed the domains that its runners contact; `None` if it has no such list.
    RunnerDomainsListed(Result<Option<Vec<String>>, ForgeError>),
    /// Old files were removed, and old ledger rows were found.
    Pruned(Box<PruneResult>),
}

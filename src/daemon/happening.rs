//! Everything that reaches the daemon's loop from its tasks.

use tokio::sync::oneshot;

use super::decide::MachineKey;
use super::millis::Millis;
use super::registrar::Registrar;
use crate::api::webhook;
use crate::config::PoolName;
use crate::github::{self, CallError, Minted, Removal, Runner};
use crate::shepherd::event::Event;
use crate::shepherd::plan::Plan;

/// What happened.
pub(super) enum Happening {
    /// A microVM was planned, or can't be.
    Planned(MachineKey, Result<Box<Plan>, NotPlanned>),
    /// A shepherd could not be started: why.
    NotBooted(MachineKey, String),
    /// A shepherd told its n-th event, counted from 1; `usize::MAX` is the end that it could not
    /// tell itself.
    Event(MachineKey, usize, Box<Event>),
    /// A call for a JIT configuration came back. The runner's name is beside it.
    Minted(MachineKey, String, Result<Minted, CallError>),
    /// A runner was to be deleted at GitHub.
    Removed(String, Result<Removal, CallError>),
    /// The runners of the scope were listed.
    Listed(Millis, Result<Vec<Runner>, CallError>),
    /// A source of jobs said something of GitHub's jobs.
    Hint(Hint),
    /// A source of jobs can't be reached: the pool, if it is one's own, and why; none when it can
    /// be again.
    Source(Option<PoolName>, Option<CallError>),
    /// A pool's scale set is there: whom its runners register with.
    ScaleSet(PoolName, Registrar),
}

/// What is said of GitHub's jobs.
#[derive(Debug)]
pub(super) enum Hint {
    /// A delivery of a webhook.
    Delivery(Box<Delivery>),
    /// What a poll listed of one repository, and when it was begun.
    Snapshot {
        /// The repository, as `owner/name`.
        repository: String,
        /// When the poll was begun.
        begun: Millis,
        /// Jobs that wait.
        queued: Vec<github::Job>,
        /// Jobs that a runner has.
        running: Vec<github::Job>,
    },
    /// What a scale set counts.
    Statistics(PoolName, u32),
    /// A job of a scale set.
    Item(PoolName, Box<github::scale_set::Item>),
}

/// A delivery of a webhook, not acknowledged to GitHub yet.
#[derive(Debug)]
pub(super) struct Delivery {
    /// Its GUID.
    pub(super) guid: String,
    /// What it says.
    pub(super) change: github::webhook::WorkflowJob,
    /// Told once its effect is recorded.
    pub(super) recorded: oneshot::Sender<webhook::Answer>,
}

/// Why a microVM can't be planned.
#[derive(Debug)]
pub(super) struct NotPlanned {
    /// Whether it is for the image.
    pub(super) image: bool,
    /// Why, in words.
    pub(super) why: String,
}

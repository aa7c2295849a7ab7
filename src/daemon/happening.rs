//! Everything that reaches the daemon's loop from its tasks, but for what the forge says.

use super::decide::MachineKey;
use super::fleet::NotPlanned;
use super::keeping::Swept;
use super::millis::Millis;
use crate::forge::{ForgeError, Registered, Removal, Runner};
use crate::shepherd::event::Event;
use crate::shepherd::plan::Plan;

/// What happened.
#[derive(Debug)]
pub(super) enum Happening {
    /// A microVM was planned, or can't be.
    Planned(MachineKey, Result<Box<Plan>, NotPlanned>),
    /// A shepherd could not be started: why.
    NotBooted(MachineKey, String),
    /// A shepherd told its n-th event, counted from 1; `usize::MAX` is the end that it could not
    /// tell itself.
    Event(MachineKey, usize, Box<Event>),
    /// What the job of a microVM that is gone wrote is kept, in so many bytes.
    Kept(MachineKey, u64),
    /// A call for a runner came back. The runner's name is beside it.
    Registered(MachineKey, String, Result<Registered, ForgeError>),
    /// A runner was to be deleted at the forge.
    Deregistered(String, Result<Removal, ForgeError>),
    /// The forge's runners were listed; when that was asked for is before it.
    Listed(Millis, Result<Vec<Runner>, ForgeError>),
    /// The forge listed the names that its runners contact, or has no such list.
    Named(Result<Option<Vec<String>>, ForgeError>),
    /// What is old was looked for, and old files were removed.
    Swept(Box<Swept>),
}

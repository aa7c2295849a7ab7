//! The ledger: what became of every job and every microVM, in one `SQLite` file.
//!
//! ```text
//! jobs             what was queued, where it ran, how it ended
//! microvms         what was booted, and how it ended
//! transitions      the phases of each microVM
//! egress           what each microVM reached and was refused, in sums
//! registrations    runners at GitHub; a name is here *before* GitHub is asked for it
//! deliveries       webhooks whose effect is recorded
//! audit            every change of the above, each entry carrying the hash of the one before; older
//!                  entries are in files beside the ledger
//! ```
//!
//! Each method is one transaction, and its audit entry is in the same one: after a SIGKILL at any
//! moment a change is there with its entry, or neither is. One daemon has the ledger open
//! ([`Ledger`]); anyone who may read the file may look at the same time ([`Reader`]).
//!
//! Owns the file and its schema. Knows nothing of pools, GitHub or shepherds beyond their names,
//! and holds no secret: the environment of a command, which may hold some, goes when the job ends.

pub mod audit;
pub mod closing;
mod command;
mod deliveries;
mod egress;
mod error;
mod instance;
mod jobs;
mod meta;
mod microvms;
mod names;
mod open;
mod places;
mod prune;
mod read;
mod registrations;
mod schema;
pub mod segments;
mod types;

#[cfg(test)]
mod tests;

pub use command::{Bytes, Command};
pub use egress::{Destination, Egress, Verdicts};
pub use error::LedgerError;
pub use jobs::cut;
pub use open::{Ledger, Reader};
pub use places::Places;
pub use prune::{Old, Pruned, Retention};
pub use types::{
    Delivered, Filter, ForgeNote, ForgeState, Job, JobId, JobResult, JobState, Microvm, Noted,
    Phase, Registration, RegistrationState, RunnerKnown, Source, Time,
};

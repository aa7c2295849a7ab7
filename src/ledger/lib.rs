//! The ledger: the history of every job and microVM, in one `SQLite` file.
//!
//! ```text
//! jobs             what was queued, where it ran, how it ended
//! microvms         what was booted, and how it ended
//! transitions      the phases of each microVM
//! egress           what each microVM reached and was refused, as totals
//! registrations    runners at GitHub; a name is here *before* the call to GitHub
//! deliveries       webhooks whose effect is recorded
//! audit            every change of the above, each entry with the hash of the one before; older
//!                  entries are in files beside the ledger
//! ```
//!
//! Each method is one transaction that includes its audit entry: after a SIGKILL at any moment,
//! either both the change and its entry exist, or neither. One daemon has the ledger open
//! ([`Ledger`]); anyone with read access to the file may read it at the same time
//! ([`LedgerReader`]).
//!
//! Owns the file and its schema. Knows nothing about pools, GitHub or shepherds beyond their names.
//! Holds no secrets after a job's end: the environment of a command, which may contain some, is
//! wiped then.

pub mod audit;
mod command;
mod deliveries;
mod egress;
mod error;
mod github_names;
mod instance;
mod jobs;
mod meta;
mod microvms;
mod open;
mod pool_locations;
mod read;
mod registrations;
mod row_pruning;
mod schema;
pub mod segment_lifecycle;
pub mod segments;
mod types;

#[cfg(test)]
mod tests;

pub use command::{CommandBytes, JobCommand};
pub use egress::{DestinationRecord, EgressSummary, VerdictTotals};
pub use error::LedgerError;
pub use jobs::truncate;
pub use open::{Ledger, LedgerReader};
pub use pool_locations::PoolLocations;
pub use row_pruning::{OldRows, PruneCounts, RowRetention};
pub use types::{
    DeliveryEffect, ForgeJobUpdate, ForgeState, JobId, JobQuery, JobRecord, JobResult, JobSource,
    JobState, MicrovmRecord, PhaseRecord, RecordedJob, RegistrationRecord, RegistrationState,
    RunnerMatch, Time,
};

//! Shepherds: one process that takes one microVM through one job.
//!
//! A front end starts a shepherd ([`process`]) through a [`ShepherdHandle`], in an [`enclosure`] of
//! namespaces, and controls it with [`plan::ShepherdCommand`]s. The shepherd takes the microVM
//! through its [`phases`], records each of them as an [`event`], and keeps the evidence
//! ([`record`]) after a failure.
//!
//! ```text
//! Planned ─▶ Prepared ─▶ Booting ─▶ Ready ─▶ Claimed ─▶ Running ─▶ Finished ─▶ Destroyed
//!    └──────────┴───────────┴─────────┴─────────┴──────────┴─▶ Failed ────────────▲
//! ```
//!
//! Each phase is a type with its own deadline; the transition to the next phase consumes it. Most
//! of the cleanup is the kernel's: it ends everything a shepherd holds when the shepherd exits.
//!
//! Owns the microVM's directory and its child processes. Does not depend on GitHub, pools or the
//! command line.

mod attach;
pub mod cause;
mod context;
mod detached;
mod egress;
pub mod enclosure;
pub mod event;
mod front_end;
mod handle;
mod handshake;
mod identity;
pub mod output;
mod phases;
pub mod plan;
pub mod planner;
mod privileges;
pub mod process;
mod program_log;
pub mod record;
#[cfg(test)]
mod reference;
pub mod runner;
mod streams;
mod timeouts;
mod wire;

pub use attach::AttachError;
pub use detached::DetachedLimits;
pub use handle::{HandleError, JobDescriptors, ShepherdHandle, ShepherdUpdate, check_job};

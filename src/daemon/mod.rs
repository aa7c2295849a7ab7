//! The daemon: pools of microVMs, and the jobs that wait for them.
//!
//! What is decided is apart from what is done: [`demand`] folds what is heard of waiting jobs into
//! counts, [`decide`] turns pools, microVMs and waiting jobs into actions. Both are pure: no clock,
//! no input or output, no chance; so is the time that they are told ([`millis`]).
//!
//! One loop owns everything else ([`serving`](serve)): it hears what its tasks report, asks what
//! follows, carries it out, and writes to the ledger before it does what can't be taken back. A
//! ledger that can't be written ends the daemon, not the jobs: shepherds outlive it, and the next
//! daemon adopts them.
//!
//! Owns the pools and the policy. Knows nothing of people, of QEMU, or of a guest's bytes.

mod acting;
mod adoption;
mod answering;
mod clock;
pub mod decide;
pub mod demand;
mod ending;
mod error;
mod explaining;
mod following;
mod happening;
mod hearing;
mod hints;
mod keeping;
mod manager;
mod microvm;
#[cfg(test)]
mod microvm_tests;
pub mod millis;
mod observing;
mod overdue;
mod overview;
mod pools;
#[cfg(test)]
mod pools_tests;
mod readiness;
mod registrar;
mod registrations;
mod reloading;
mod scale_sets;
mod serving;
mod spans;
mod triggers;
mod world;

pub use error::DaemonError;
pub use registrar::{GitHubError, github_client};
pub use serving::{Reread, serve};

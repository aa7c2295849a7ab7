//! The daemon: pools of microVMs, and the jobs that wait for them.
//!
//! What is decided is apart from what is done: [`demand`] folds what is heard of waiting jobs into
//! counts, [`decide`] turns pools, microVMs and waiting jobs into actions. Both are pure: no clock,
//! no input or output, no chance; so is the time that they are told ([`millis`]).
//!
//! The rest is a few parts with one job each, whose fields are their own: the [`fleet`] (microVMs and
//! their shepherds), the [`backlog`] (what waits, and what became of jobs), the [`registry`] (runners
//! at the forge), [`keeping`] (what is kept, and for how long) and the [`views`] (what others read).
//! One loop composes them ([`running`]): it hears what its tasks report, asks what follows, carries
//! it out, and writes to the ledger before it does what can't be taken back. A ledger that can't be
//! written ends the daemon, not the jobs: shepherds outlive it, and the next daemon adopts them.
//!
//! Two seams lead out of here, each a trait with a real driver and a scripted one for tests:
//! [`crate::forge::Forge`], and `Shepherds` in [`fleet`].
//!
//! Owns the pools and the policy. Knows nothing of people, of QEMU, or of a guest's bytes.

mod acting;
mod adoption;
mod answering;
mod backlog;
mod clock;
mod concluding;
pub mod decide;
pub mod demand;
mod ending;
mod error;
mod fleet;
mod happening;
mod hearing;
mod keeping;
mod manager;
pub mod millis;
mod names;
mod pools;
mod registry;
mod reloading;
mod running;
mod serving;
mod stopping;
mod tasks;
#[cfg(test)]
mod testing;
mod views;

pub use crate::github::forge::{GitHubError, github_client};
pub use error::DaemonError;
pub use serving::{Reread, serve};

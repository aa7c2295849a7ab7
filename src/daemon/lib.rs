//! The daemon: pools of microVMs, and the jobs that wait for them.
//!
//! Decisions are separate from actions: [`demand`] folds events about waiting jobs into counts,
//! [`decide`] turns pools, microVMs and waiting jobs into actions. Both are pure: no clock, no
//! input or output, no randomness. Their time type is pure too ([`time`]).
//!
//! The rest has a few parts, each with one job and private fields: the [`fleet`] (microVMs and
//! their shepherds), the [`backlog`] (waiting jobs, and the results of jobs), the [`registry`]
//! (runners at the forge), [`retention`] (what is retained, and for how long) and the [`views`]
//! (what the API and the metrics read). One loop composes them ([`event_loop`]): it receives the
//! events of its tasks, decides, acts, and writes to the ledger before any action that it can't
//! take back. If the ledger can't be written, the daemon ends, but the jobs do not: shepherds
//! outlive it, and the next daemon adopts them.
//!
//! Two driver traits lead out of here, each with a real implementation and a fake one for tests:
//! [`mayfly_forge::Forge`], and `Shepherds` in [`fleet`].
//!
//! Owns the pools and the policy. Knows nothing of people, of QEMU, or of a guest's bytes.

// benches/decide.rs uses decide and time. No other crate does.
mod actions;
mod adoption;
mod backlog;
mod cancellation;
mod clock;
pub mod decide;
mod demand;
mod dispatch;
mod error;
mod event;
mod event_loop;
mod fleet;
mod microvm_end;
mod pools;
mod registry;
mod reload;
mod requests;
mod retention;
mod runner_domains;
mod runner_end;
mod service;
mod service_manager;
mod tasks;
#[cfg(test)]
mod testing;
pub mod time;
mod views;

pub use error::DaemonError;
pub use service::{ReloadSettings, serve};

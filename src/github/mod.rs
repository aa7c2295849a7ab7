//! GitHub: who waits for a runner, and the registration of one.
//!
//! This folder owns the credentials for GitHub and every call to it: tokens and their renewal, JIT
//! configurations, the runners of a scope, the queued jobs of repositories, webhooks and the
//! message sessions of runner scale sets. It must not know of microVMs, pools, the ledger or the
//! loop that calls it: it answers what GitHub says, and what can be known when GitHub does not
//! answer ([`CallError`]). Only [`forge`] knows the settings, and whom it speaks to: it is the seam
//! through which the daemon sees all of this ([`crate::forge`]).
//!
//! ```text
//! forge ─▶ everything below
//! runners, groups, poll, deliveries, downloads ─▶ client ─▶ auth ─▶ wire ─▶ transport ─▶ GitHub
//! scale_set ──────────────────────────┘              └▶ budget, classify  (pure)
//! webhook, job, labels                                                   (pure)
//! ```
//!
//! Nothing is sent a second time on its own, but for a call that GitHub refused with 401: that one
//! had no effect.

mod auth;
pub mod budget;
pub mod classify;
mod client;
mod deliveries;
mod downloads;
mod error;
pub mod forge;
mod groups;
pub mod job;
mod jwt;
pub mod labels;
mod measure;
mod names;
mod poll;
mod runners;
pub mod scale_set;
mod settings;
mod target;
mod transport;
pub mod webhook;
mod wire;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use budget::Rate;
pub use client::{Checked, Client};
pub use deliveries::Delivery;
pub use downloads::RunnerDownload;
pub use error::{CallError, Cause, SetupError};
pub use job::{Job, Status};
pub use poll::Snapshot;
pub use runners::{Minted, Removal, Runner};
pub use settings::{Credentials, Hook, Settings};
pub use target::{ApiBase, Repository, Target, TargetError};

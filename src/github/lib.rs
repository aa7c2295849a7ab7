//! GitHub: the jobs that wait for a runner, and the registration of runners.
//!
//! This crate owns the credentials for GitHub and every call to it: tokens and their renewal, JIT
//! configurations, the runners of a scope, the queued jobs of repositories, webhooks and the
//! message sessions of runner scale sets. It must not know microVMs, pools, the ledger or its
//! caller: it returns what GitHub responds or, without a response, whether the call may have taken
//! effect ([`CallError`]). A scope is a type of the settings ([`mayfly_config::github`]); of the rest
//! of them only [`forge`] knows. The daemon uses this crate through [`mayfly_forge`].
//!
//! ```text
//! forge ─▶ everything below
//! runners, groups, domains, poll,  ─▶ client ─▶ auth ─▶ wire ─▶ transport ─▶ GitHub
//! deliveries, downloads, scale_set               │       └▶ budget, classify (pure), metrics
//!                                                └▶ jwt (pure)
//! webhook, job, labels                                                   (pure)
//! ```
//!
//! No call is resent automatically, except one that GitHub refused with 401: it had no effect.

mod auth;
mod budget;
mod classify;
mod client;
mod deliveries;
mod domains;
mod downloads;
mod error;
pub mod forge;
mod groups;
mod job;
mod jwt;
mod labels;
mod metrics;
mod poll;
mod runners;
mod scale_set;
mod settings;
mod transport;
mod webhook;
mod wire;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use budget::RateLimit;
pub use client::{CredentialCheck, GitHubClient};
pub use deliveries::DeliveryAttempt;
pub use downloads::RunnerDownload;
pub use error::{BoxError, CallError, SetupError};
pub use job::{WorkflowJob, WorkflowJobStatus};
pub use poll::JobSnapshot;
pub use runners::{DeletionOutcome, GitHubRunner, JitRunner};
pub use settings::{Credentials, GitHubSettings, Hook};

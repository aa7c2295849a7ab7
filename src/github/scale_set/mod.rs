//! Runner scale sets: one long-polled session per set reports how many runners it should have.
//!
//! The service is not part of GitHub's REST API and is in public preview; this code follows its
//! published Go client (actions/scaleset). Owns the bootstrap (registration token, tenant URL,
//! admin token), the set, the session and its messages; decides nothing about microVMs.
//!
//! ```text
//! session ─▶ service ─▶ bootstrap ─▶ super::wire        types, recovery (pure)
//! ```

mod bootstrap;
pub(super) mod recovery;
mod service;
mod session;
#[cfg(test)]
mod tests;
mod types;

pub(super) use recovery::is_session_conflict;
pub(super) use service::ScaleSetClient;
pub(super) use session::{MessageSession, PollResult};
pub(super) use types::{JobMessage, JobMessageKind, ScaleSetStatistics, SessionMessage};

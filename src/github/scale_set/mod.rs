//! Runner scale sets: one long-polled session per set tells how many runners it should have.
//!
//! The service is not part of GitHub's REST API and in public preview; what is here follows its
//! published Go client (actions/scaleset). Owns the bootstrap (registration token, tenant address,
//! admin token), the set, the session and its messages; decides nothing about microVMs.
//!
//! ```text
//! session ─▶ service ─▶ bootstrap ─▶ super::wire        types, recover (pure)
//! ```

mod bootstrap;
pub mod recover;
mod service;
mod session;
#[cfg(test)]
mod tests;
mod types;

pub use recover::is_session_conflict;
pub use service::Client;
pub use session::{Polled, Session};
pub use types::{Agent, Item, ItemKind, Message, ScaleSet, Statistics};

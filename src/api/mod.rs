//! The local API of the daemon: HTTP and JSON over a unix socket.
//!
//! The server turns each request into a [`Call`] on a channel to the daemon's loop and sends back
//! what the loop answers; it keeps no state and decides nothing. The client is what the command
//! line uses. Here are also the listener for GitHub's webhooks and the
//! status page, HTTP servers like the other.
//! Owns the shapes of requests and answers ([`types`]); knows nothing of how the daemon works, of
//! the ledger or of GitHub.

#[cfg(test)]
mod abuse_tests;
mod admission;
pub mod call;
pub mod client;
mod guarded;
mod log;
mod path;
mod patience;
mod serve;
pub mod server;
pub mod status;
mod token;
pub mod types;
pub mod webhook;

pub use call::{Answer, Call, Log};

#[cfg(test)]
mod tests;

//! The daemon's local API: HTTP and JSON over a Unix socket.
//!
//! The server turns each request into a [`Call`] on a channel to the daemon's event loop and sends
//! back the loop's response. It keeps no state and makes no decisions. The client is the command
//! line's. This crate also has the listener for GitHub's webhooks and the status page, which share
//! the HTTP server.
//!
//! Owns the shapes of requests and responses ([`types`]) and how they read for a person
//! ([`present`]). Knows nothing about the daemon's internals, the ledger or GitHub.

#[cfg(test)]
mod abuse_tests;
mod admission;
pub mod call;
mod checked_listener;
pub mod client;
mod client_stream;
mod log;
pub mod present;
mod serve;
pub mod server;
mod socket_path;
pub mod status;
mod token;
pub mod types;
pub mod webhook;

pub use call::{Call, JobLog, Responder};

#[cfg(test)]
mod tests;

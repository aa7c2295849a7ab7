//! Mayfly: a fresh microVM for every CI job, destroyed afterwards.
//!
//! A folder has one job, and imports run downwards:
//!
//! ```text
//! cli ─▶ shepherd ─▶ { machine, channel, network, egress } ─▶ mayfly-protocol
//!   └──▶ image, host                                   (know nothing of those above)
//! ```

pub mod channel;
pub mod cli;
pub mod egress;
pub mod failure;
pub mod host;
pub mod image;
pub mod machine;
pub mod network;
pub mod shepherd;

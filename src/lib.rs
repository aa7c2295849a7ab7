//! Mayfly: a fresh microVM for every CI job, destroyed afterwards.
//!
//! Each folder has one task. Imports go from left to right only:
//!
//! ```text
//! cli ─▶ { daemon, trial } ─▶ shepherd ─▶ { machine, channel, network, egress } ─▶ mayfly-protocol
//!           └──▶ api, common, config, forge, github, image, ledger, host, isolation, telemetry
//!                                                              (independent of the folders above)
//! ```

pub mod api;
pub mod channel;
pub mod cli;
pub mod common;
pub mod config;
pub mod daemon;
pub mod egress;
pub mod failure;
pub mod forge;
pub mod github;
pub mod host;
pub mod image;
mod isolation;
pub mod ledger;
pub mod machine;
pub mod network;
#[cfg(test)]
mod reference;
pub mod shepherd;
pub mod telemetry;
pub mod trial;

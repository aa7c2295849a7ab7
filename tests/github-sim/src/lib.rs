//! A simulator of GitHub Actions for Mayfly's tests and its demo.
//!
//! It serves both sides of a job. To the supervisor it is GitHub's REST API, its webhooks and its
//! scale set service; to the stand-in runner in the guest (`runner/`) it is the service that
//! assigns jobs. It is never part of the product.
//!
//! [`state::State`] makes every decision that GitHub would make. It has no clock, socket or thread:
//! it takes a request and the time, and returns a reply. [`http`] handles requests on top of it,
//! and [`server`] is the thin layer that owns sockets and waits. So each behavior can be tested
//! without a network, and a run with faults is reproducible with its seed.
//!
//! | module | contents |
//! |---|---|
//! | [`state`] | jobs, runners, tokens, scale sets, webhooks to send |
//! | [`http`] | handlers of GitHub's calls |
//! | [`faults`] | fault injection |
//! | [`server`] | sockets, long polls, sending of webhooks |
//! | [`record`] | a record of every exchange, for the contract test |
//! | [`contract`] | validation of exchanges against GitHub's `OpenAPI` description |
//! | [`demo`] | the demo's jobs |
//! | [`app_key`] | the RSA key of the GitHub App |

pub mod app_key;
pub mod contract;
pub mod demo;
pub mod faults;
pub mod http;
pub mod record;
pub mod server;
pub mod state;
pub mod time;

pub use faults::{Class, Fault, Rule};
pub use server::Simulator;
pub use state::jobs::{Conclusion, Job, NewJob, Status};
pub use state::settings::{App, Hook, RunnerArchive, RunnerKind, Settings};

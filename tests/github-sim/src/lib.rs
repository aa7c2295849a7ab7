//! A stand-in for GitHub Actions: what Mayfly's tests and its demo talk to.
//!
//! It plays both sides of a job. To the supervisor it is GitHub's REST API, its webhooks and its
//! scale-set service; to the stand-in runner in the guest (`runner/`) it is the service that hands
//! out jobs. It never comes into the product.
//!
//! Everything that GitHub would decide is decided by [`state::State`], which knows no clock, no
//! socket and no thread: a request and the time go in, an answer comes out. [`http`] turns requests
//! into answers on top of it, [`server`] is the thin part that owns sockets and waits. So each
//! behaviour can be tested without a network, and a run with faults repeats with its seed.
//!
//! | module | what it is |
//! |---|---|
//! | [`state`] | jobs, runners, tokens, scale sets, webhooks to send |
//! | [`http`] | GitHub's calls, answered from the state |
//! | [`faults`] | what goes wrong on request |
//! | [`server`] | sockets, long polls, sending of webhooks |
//! | [`record`] | every exchange, for the contract test |
//! | [`contract`] | checks exchanges against GitHub's `OpenAPI` description |
//! | [`demo`] | a few jobs to look at |
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

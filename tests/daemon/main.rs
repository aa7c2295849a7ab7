//! `mayfly serve` end to end: a simulated GitHub, the daemon as a process, jobs in real microVMs.
//!
//! Needs what tests/microvm needs, the image `runner-sim` (tests/github-sim/image) in
//! `MAYFLY_TEST_IMAGES`, and Chromium for the status page. With `MAYFLY_GITHUB_CONTRACT`, every
//! exchange is checked against GitHub's API description.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that can't go on fails"
)]

mod blockers;
mod browser;
mod daemon;
mod descriptor_limit;
mod drain;
mod interruption;
mod joblog;
mod jobs;
mod killed;
mod local;
mod managed;
mod page;
mod secrets;
mod service;
mod several_daemons;
mod storm;
#[allow(dead_code, reason = "tests/microvm uses the rest of it")]
#[path = "../microvm/support/mod.rs"]
mod support;
mod telemetry;
mod triggers;

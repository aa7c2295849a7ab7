//! `mayfly serve` end to end: a simulated GitHub, the daemon as a process, jobs in real microVMs.
//!
//! Needs what tests/microvm needs, and the image `runner-sim` (tests/github-sim/image) in
//! `MAYFLY_TEST_IMAGES`; the status page is looked at with Chromium. With `MAYFLY_GITHUB_CONTRACT` every exchange is checked against GitHub's
//! own description of its calls.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that can't go on fails"
)]

mod alone;
mod browser;
mod crowd;
mod daemon;
mod drained;
mod explained;
mod joblog;
mod jobs;
mod killed;
mod local;
mod managed;
mod page;
mod secrets;
mod service;
mod storm;
#[allow(dead_code, reason = "tests/microvm uses the rest of it")]
#[path = "../microvm/support/mod.rs"]
mod support;
mod telemetry;
mod told;
mod triggers;

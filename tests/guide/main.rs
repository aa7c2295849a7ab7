//! Runs every command of README.md and `docs/guide/`, and loads every settings file and recipe. The
//! comment before a block names its environment: see [`blocks::Environment`].
//!
//! Needs the requirements of tests/microvm and tests/install, the image `runner`, jq, and minisign.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that can't go on fails"
)]

mod blocks;
mod crates;
mod files;
#[allow(dead_code, reason = "tests/install uses the rest of it")]
#[path = "../install/machine.rs"]
mod machine;
mod page_host;
mod references;
mod run;
#[allow(dead_code, reason = "tests/microvm uses the rest of it")]
#[path = "../microvm/support/mod.rs"]
mod support;
mod systemd;

//! Every command of README.md and `docs/guide/`, run as it stands, and every settings file and recipe
//! loaded. Each block says by a comment before it where it is run: see [`blocks::Setting`].
//!
//! Needs what tests/microvm and tests/install need, the image `runner`, and jq and minisign.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that can't go on fails"
)]

mod blocks;
mod files;
#[allow(dead_code, reason = "tests/install uses the rest of it")]
#[path = "../install/machine.rs"]
mod machine;
mod place;
mod run;
#[allow(dead_code, reason = "tests/microvm uses the rest of it")]
#[path = "../microvm/support/mod.rs"]
mod support;
mod systemd;
mod words;

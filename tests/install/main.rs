//! Tests `scripts/install` and `scripts/uninstall`: the installed files, the service under a
//! separate systemd, completions, and man pages.
//!
//! Needs the requirements of tests/microvm, and systemd, groff, zsh, and fish.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that can't go on fails"
)]

mod machine;
mod service;
mod shells;
#[allow(dead_code, reason = "tests/microvm uses the rest of it")]
#[path = "../microvm/support/mod.rs"]
mod support;
mod tree;

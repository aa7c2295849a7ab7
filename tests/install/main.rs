//! `scripts/install` and `scripts/uninstall`: what they put where, and that it works there: under a
//! systemd of its own, in shells, as man pages.
//!
//! Needs what tests/microvm needs, and systemd, groff, zsh and fish.

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

//! Mayfly end to end, on real microVMs.
//!
//! Nothing here looks inside: a test runs the `mayfly` executable as a person would, and judges by
//! what comes out of it and by what the kernel says of its processes. `scripts/test` sets these
//! variables:
//!
//! ```text
//! MAYFLY_TEST_IMAGES   an image store that has `base`; only read
//! MAYFLY_TEST_BIN_DIR  where vhost-device-vsock is, if it is not in $PATH
//! MAYFLY_TEST_LONG     any value: the tests that take minutes do all that they can
//! ```
//!
//! Each test has a state directory of its own, so that they do not see each other. Most make
//! namespaces or become another user, and so need root; one that lacks something fails.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that can't go on fails"
)]

mod clock;
mod copies;
mod detached;
mod docker;
mod egress;
mod escaped;
mod failures;
mod found;
mod gone;
mod hardened;
mod hostile;
mod images;
mod isolation;
mod lacking;
mod odd_hosts;
mod once;
mod programs;
mod rootless;
mod run;
mod streams;
#[allow(dead_code, reason = "benches/boot.rs uses the rest of it")]
mod support;
mod trial;

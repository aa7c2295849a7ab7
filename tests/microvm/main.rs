//! End-to-end tests on real microVMs.
//!
//! The tests run the `mayfly` executable as a user would, and check its output and the kernel's
//! view of its processes. `scripts/test` sets these variables:
//!
//! ```text
//! MAYFLY_TEST_IMAGES   an image store with `base`; never written to
//! MAYFLY_TEST_BIN_DIR  the directory of vhost-device-vsock, if it is not in $PATH
//! MAYFLY_TEST_LONG     any value: tests that take minutes run in full
//! ```
//!
//! Each test has its own state directory. Most tests create namespaces or change their user, and so
//! need root. A test with a missing requirement fails.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that can't go on fails"
)]

mod clock;
mod compromised_processes;
mod copies;
mod detached;
mod docker;
mod egress;
mod failures;
mod hardened;
mod hostile;
mod images;
mod isolation;
mod job_environment;
mod kernel_cleanup;
mod missing_requirements;
mod odd_hosts;
mod once;
mod programs;
mod rootless;
mod run;
mod streams;
#[allow(dead_code, reason = "benches/boot.rs uses the rest of it")]
mod support;
mod trial;

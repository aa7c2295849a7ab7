//! All hardening controls, by topic.

mod accounts;
mod files;
mod job;
mod kernel;
mod mounts;
mod network;
mod system;

use super::Control;

/// All controls, in the order of reports.
pub const CONTROLS: &[&[Control]] = &[
    accounts::CONTROLS,
    files::CONTROLS,
    system::CONTROLS,
    job::CONTROLS,
    mounts::CONTROLS,
    kernel::CONTROLS,
    network::CONTROLS,
];

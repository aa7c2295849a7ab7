//! Hardening: the restrictions of an image, control by control.
//!
//! A [`Control`] has a purpose, its measures, and a probe that checks from inside a booted guest
//! that they are in effect. [`CONTROLS`] lists all of them; a recipe disables one by name.
//!
//! ```text
//! controls   the table
//! plan       recipe → settings for the builder, the agent and the kernel
//! operation  changes of the new system, as a script that runs in it
//! audit      manifest → one script of all probes; its output → a report
//! page       generates docs/reference/hardening.md
//! ```
//!
//! Everything here is pure: the builder runs the script of a [`plan`], the caller of an [`audit`]
//! runs its script. This module must not know how an image is built or how a microVM is run.

pub mod audit;
mod controls;
mod expect;
mod operation;
#[cfg(test)]
mod page;
mod plan;

use mayfly_protocol::settings::GuestSettings;

pub use controls::CONTROLS;
pub use expect::Expectation;
pub use operation::Operation;
pub use plan::{HardeningPlan, plan};

/// A hardening control.
#[derive(Debug)]
pub struct Control {
    /// Its name in recipes and reports, e.g. `accounts.root-locked`.
    pub name: &'static str,
    /// Its effect, in one sentence.
    pub title: &'static str,
    /// Its purpose, and its cost for a job.
    pub why: &'static str,
    /// External references, e.g. a CIS item; may be empty.
    pub reference: &'static str,
    /// The feature that it conflicts with.
    pub conflict: Conflict,
    /// Its measures.
    pub measures: &'static [Measure],
    /// Its probe, in addition to the checks of the measures.
    pub probe: Option<Probe>,
}

/// A feature that a control conflicts with. With the feature, the control is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    /// No conflict.
    None,
    /// Users who may become root with sudo.
    Sudo,
}

/// A measure of a control. Parameters, arguments and files are checked without a probe.
#[derive(Debug)]
pub enum Measure {
    /// The agent sets a kernel parameter (its path below `/proc/sys`) before a job starts.
    Parameter(&'static str, &'static str),
    /// The kernel is booted with an argument.
    Argument(&'static str),
    /// A setting of the agent.
    Setting(fn(&mut GuestSettings)),
    /// A file with this content, owned by root and readable by all, unless the recipe has the same
    /// file.
    File(&'static str, &'static str),
    /// A change of the new system.
    Operation(Operation),
}

/// A check in a booted guest.
#[derive(Debug)]
pub struct Probe {
    /// The user who runs the probe.
    pub user: ProbeUser,
    /// A shell script. Its output, including errors, is evaluated.
    pub script: &'static str,
    /// The expected output.
    pub expect: Expectation,
}

/// The user who runs the probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeUser {
    /// Root.
    Root,
    /// The user `runner`, the agent's default user for jobs.
    Job,
}

/// Finds a control by name.
pub fn find(name: &str) -> Option<&'static Control> {
    CONTROLS.iter().copied().flatten().find(|control| control.name == name)
}

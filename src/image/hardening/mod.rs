//! Hardening: what an image keeps from a job, control by control.
//!
//! A [`Control`] says what it is for, what is done for it and how one sees from inside a booted
//! guest that it was done. [`CONTROLS`] is all of them; a recipe switches one off by its name.
//!
//! ```text
//! controls   the table
//! plan       recipe → what the builder, the agent and the kernel are told
//! operation  what is done to the new system, as a script that runs in it
//! audit      manifest → one script of all probes; its output → a report
//! page       the table as docs/reference/hardening.md
//! ```
//!
//! Everything here is a function of its arguments: the builder runs the script of a [`plan`],
//! whoever audits runs that of an [`audit`]. This folder must not know how an image is built or
//! how a microVM is run.

pub mod audit;
mod controls;
mod expect;
mod operation;
#[cfg(test)]
mod page;
mod plan;

use mayfly_protocol::settings::Settings;

pub use controls::CONTROLS;
pub use expect::Expect;
pub use operation::Operation;
pub use plan::{Plan, plan};

/// Something that is kept from a job.
#[derive(Debug)]
pub struct Control {
    /// What recipes and reports call it, e.g. `accounts.root-locked`.
    pub name: &'static str,
    /// What it does, in one sentence.
    pub title: &'static str,
    /// What it is good for, and what it costs a job.
    pub why: &'static str,
    /// Where others ask for the same, e.g. a CIS item; empty where nobody does.
    pub reference: &'static str,
    /// What it can't stand beside.
    pub unless: Unless,
    /// What is done for it.
    pub measures: &'static [Measure],
    /// How one sees it from inside, beside what follows from the measures.
    pub probe: Option<Probe>,
}

/// What a control can't stand beside. It is off then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unless {
    /// It goes with everything.
    Never,
    /// Users who may become root.
    Sudo,
}

/// One thing that is done for a control. Whether parameters, arguments and files are as they
/// should be is seen without a probe of its own.
#[derive(Debug)]
pub enum Measure {
    /// The agent sets a kernel parameter (its path below `/proc/sys`) before a job starts.
    Parameter(&'static str, &'static str),
    /// The kernel is booted with an argument.
    Argument(&'static str),
    /// The agent is told more.
    Setting(fn(&mut Settings)),
    /// A file of root's with this content, readable by all, unless the recipe has one there.
    File(&'static str, &'static str),
    /// The new system is changed.
    Operation(Operation),
}

/// A look at a booted guest.
#[derive(Debug)]
pub struct Probe {
    /// Who looks.
    pub by: By,
    /// A shell script. What it prints, errors too, is what is judged.
    pub script: &'static str,
    /// What it should print.
    pub expect: Expect,
}

/// Who looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// Root.
    Root,
    /// The user `runner`, whose jobs are meant: the agent takes it where nobody else is named.
    Job,
}

/// The control of a name.
pub fn find(name: &str) -> Option<&'static Control> {
    CONTROLS.iter().copied().flatten().find(|control| control.name == name)
}

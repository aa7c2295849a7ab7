//! One microVM through one job.
//!
//! A shepherd is a process of its own ([`process`]), started by a front end through a [`Handle`]
//! in an [`enclosure`] of namespaces, and told by [`plan::Order`]s what to do. It takes the
//! microVM through the phases of its [`life`], records each as an [`event`], and keeps the
//! evidence ([`record`]) where the end was abnormal.
//!
//! ```text
//! Planned ─▶ Prepared ─▶ Booting ─▶ Ready ─▶ Claimed ─▶ Running ─▶ Finished ─▶ Destroyed
//!    └──────────┴───────────┴─────────┴─────────┴──────────┴─▶ Failed ────────────▲
//! ```
//!
//! Each phase is a type that the step to the next consumes, with a deadline of its own. Clean-up
//! is mostly not here: the kernel ends what a shepherd held when the shepherd ends.
//!
//! Owns the microVM's directory and its children. Knows nothing of GitHub, of pools, or of people.

mod attach;
pub mod cause;
mod context;
mod detached;
mod egress;
pub mod enclosure;
pub mod event;
mod front;
mod greeting;
mod handle;
pub mod identity;
mod job;
mod late;
mod life;
pub mod output;
pub mod plan;
pub mod planner;
pub mod process;
pub mod programs;
pub mod record;
#[cfg(test)]
mod reference;
mod renounce;
pub mod runner;
pub mod wire;

pub use attach::AttachError;
pub use detached::Detached;
pub use handle::{Descriptors, Handle, HandleError, News, check_job};

//! What Mayfly tells about itself: metrics, traces and the log.
//!
//! ```text
//! metrics     the table of all metrics: names, labels, what they mean; counted by these alone
//! registry    where they are counted, and how Prometheus reads them
//! trace       a trace: spans with times that are long past when it is made
//! otlp        the way of traces to a collector
//! log         lines for a person, JSON, the journal; what a line is about is in its fields
//! ```
//!
//! Nothing here waits for anybody: a metric is a few atomic operations, a trace goes into a queue
//! with an end, and a collector that can't be reached costs no job. Labels have few values: never
//! the name of a job, a host or a repository. Those are in traces and in the log.
//!
//! Owns the names of all that. Knows nothing of the daemon, its API or GitHub.

pub mod log;
pub mod metrics;
pub mod otlp;
#[cfg(test)]
mod reference;
mod registry;
pub mod trace;

pub use registry::{Handle, install};

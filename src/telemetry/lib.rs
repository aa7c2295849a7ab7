//! Metrics, traces and the log.
//!
//! ```text
//! metrics     the table of all metrics: names, labels, help texts; the only way to record them
//! registry    the recorder of the metrics, and its rendering for Prometheus
//! trace       a trace: spans that are added after the fact
//! otlp        the exporter of traces to a collector
//! log         lines for a person, JSON, the journal; context is in fields
//! panics      logs and counts a panic of a task
//! ```
//!
//! Nothing here blocks the caller: recording a metric takes a few atomic operations, a trace goes
//! into a bounded queue, and an unreachable collector delays no job. Labels have few values: never
//! the name of a job, a host or a repository. Those belong in traces and the log.
//!
//! Owns the names of all these. Knows nothing about the daemon, its API or GitHub.

pub mod log;
pub mod metrics;
pub mod otlp;
mod panics;
#[cfg(test)]
mod reference;
mod registry;
pub mod trace;

pub use panics::report_panic;
pub use registry::{MetricsHandle, install};

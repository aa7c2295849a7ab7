//! Egress: the only way out of a microVM. Access is decided by name.
//!
//! Every TCP connection that a guest makes, to any address, ends at a listener in the microVM's
//! network namespace. This crate owns those listeners, the policy they enforce, the DNS stub that
//! maps allowed names to synthetic addresses, the forward proxy, the outbound connections and the
//! record of every verdict. It does not depend on QEMU, on how the namespace is created, or on what
//! the guest runs.
//!
//! ```text
//! pending ─▶ dial       holds a SYN until its destination has answered, then replays it
//!    │
//!    ▼
//! listeners ─▶ gate ─┬▶ dns ─▶ names
//!                    ├▶ transparent ─┬▶ connection ─▶ tunnel
//!                    └▶ http ─▶ dial ┘
//! packets               records the packets that no listener accepts
//!
//! policy: what is allowed    opening: parses a client's first bytes    record: a line per verdict
//! ```

// Fuzz targets and tests/egress/corpus.rs use dns, http, names, opening, pending, and verdict. No
// other crate does.
pub mod address;
mod buffers;
mod connection;
pub mod dial;
pub mod dns;
mod gate;
pub mod host;
pub mod http;
mod idle;
mod listeners;
pub mod names;
pub mod opening;
mod opening_filter;
mod packets;
pub mod pending;
pub mod policy;
mod rate_limiter;
pub mod record;
mod state;
mod transparent;
mod tunnel;
pub mod verdict;

pub use gate::{Gate, GateSettings};
pub use listeners::{DNS_PORT, ListenError, Listeners, PROXY_PORT, listen};
pub use packets::describe_packet;
pub use state::GateLimits;

//! Egress: the only way out of a microVM, decided by name.
//!
//! Every TCP connection that a guest makes, to any address, ends at a listener in the microVM's
//! network namespace. This folder owns those listeners, the policy they decide by, the DNS stub
//! that turns allowed names into synthetic addresses, the forward proxy, the connections to the
//! outside and the record of every verdict. It must not know of QEMU, of how the namespace came to
//! be, or of what the guest runs.
//!
//! ```text
//! listen ─▶ gate ─┬▶ dns ─────────▶ names         policy: what may pass
//!            ▲    ├▶ transparent ─┐               opening: what first bytes say
//!            │    └▶ http ────────┴▶ carry ─┬▶ dial ─▶ the outside
//! hold ──────┘                              └▶ tunnel, record
//! packets ─▶ record                             (what no listener is there for)
//! ```

pub mod address;
mod buffers;
mod carry;
pub mod dial;
pub mod dns;
mod gate;
pub mod hold;
pub mod host;
pub mod http;
mod idle;
mod listen;
pub mod names;
pub mod opening;
mod pace;
mod packets;
pub mod policy;
pub mod record;
mod shared;
mod transparent;
pub mod tunnel;
pub mod verdict;

pub use gate::{Gate, Settings};
pub use listen::{DNS_PORT, ListenError, Listeners, PROXY_PORT, listen};
pub use packets::attempt;
pub use shared::Limits;

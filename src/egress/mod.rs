//! Egress: the only way out of a microVM, decided by name.
//!
//! Every TCP connection that a guest makes, to any address, ends at a listener in the microVM's
//! network namespace. This folder owns those listeners, the policy they decide by, the DNS stub
//! that turns allowed names into synthetic addresses, the forward proxy, the connections to the
//! outside and the record of every verdict. It must not know of QEMU, of how the namespace came to
//! be, or of what the guest runs.

pub mod address;
pub mod dial;
pub mod dns;
pub mod host;
pub mod http;
pub mod names;
pub mod opening;
pub mod policy;
pub mod record;
pub mod tunnel;
pub mod verdict;

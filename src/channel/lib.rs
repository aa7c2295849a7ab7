//! The host's end of the channel to the guest.
//!
//! [`conversation`] is the pure part: which messages may arrive when, and how many bytes. [`Link`]
//! drives it over a byte stream. [`pump`] moves the job's streams between the channel and
//! descriptors of the host.
//!
//! All bytes from the guest are hostile. A frame that is too long, malformed or out of order is a
//! [`Violation`], after which nothing more is read from the guest. Owns no processes or files. Does
//! not depend on QEMU: the transport is any byte stream (currently virtio-vsock through a unix
//! socket).

pub mod conversation;
mod frames;
mod link;
pub mod pump;

pub use conversation::{Received, Violation};
pub use link::{ChannelError, Link};

//! The host's end of the channel to the guest.
//!
//! [`conversation`] is the pure part: which message may come when, and how much of it. [`Link`]
//! drives it over a byte stream. [`pump`] moves the job's streams between the channel and
//! descriptors of the host.
//!
//! Every byte from the guest is hostile. A frame that is too long, malformed or out of order is a
//! [`Violation`], after which the guest is not listened to again. Owns no process and no file;
//! knows nothing of QEMU: the transport is whatever byte stream it is given (virtio-vsock by way
//! of a unix socket today).

pub mod conversation;
pub mod frames;
mod link;
pub mod pump;

pub use conversation::{Heard, Violation};
pub use link::{ChannelError, Link};

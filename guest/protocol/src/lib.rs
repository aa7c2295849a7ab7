//! The protocol between the shepherd (on the host) and the agent (PID 1 in the guest).
//!
//! One connection carries everything: the guest connects to [`HOST_CID`], [`CONTROL_PORT`], and
//! both sides exchange [frames](frame): a length, then one message of [`message`]. The job's
//! standard streams and copied files are multiplexed over it, each under its own [window](flow), so
//! that a slow reader of one stream delays neither the others nor the heartbeat.
//!
//! The messages, in order:
//!
//! ```text
//! guest                                   host
//!   Hello               ───────────────▶
//!                       ◀───────────────  Prepare        entropy, clock, host name, network
//!   Prepared            ───────────────▶
//!                       ◀───────────────  SetClock, Start(job)
//!                       ◀───────────────  Input, InputEnd of each copied-in tree
//!   Started             ───────────────▶
//!   Output, Credit …    ◀──────────────▶  Input, Credit, Signal, Resize …
//!   OutputEnd of each   ───────────────▶
//!   Exited              ───────────────▶                 last message of the job
//!                       ◀───────────────  Shutdown
//! ```
//!
//! `Heartbeat` may come at any time after `Prepared`, and `Failed` in place of any response. The
//! host treats every byte from the guest as hostile: a message that violates the protocol ends the
//! microVM.
//!
//! This crate does no I/O except through the [`std::io::Read`] and [`std::io::Write`] that it is
//! given, and depends on neither QEMU nor Linux.

#![forbid(unsafe_code)]

pub mod flow;
pub mod frame;
pub mod message;
pub mod settings;

/// The protocol version. Both sides must have the same; an image records its agent's, so that a
/// mismatch is found before the image boots.
pub const VERSION: u16 = 4;

/// The context ID of the host, as seen by a guest (`VMADDR_CID_HOST` of `vsock(7)`).
pub const HOST_CID: u32 = 2;

/// The vsock port on which the shepherd listens for its guest.
pub const CONTROL_PORT: u32 = 1024;

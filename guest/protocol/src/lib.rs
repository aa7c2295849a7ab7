//! What the shepherd (on the host) and the agent (PID 1 in the guest) say to each other.
//!
//! One connection carries everything: the guest connects to [`HOST_CID`], [`CONTROL_PORT`], and
//! both sides exchange [frames](frame): a length, then one message of [`message`]. The job's
//! standard streams and copied files are multiplexed over it, each under a [window](flow) of its
//! own, so that a slow reader of one stream holds up neither the others nor the heartbeat.
//!
//! The conversation, in order:
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
//!   Exited              ───────────────▶                 nothing of the job follows
//!                       ◀───────────────  Shutdown
//! ```
//!
//! `Heartbeat` may come at any time after `Prepared`; `Failed` instead of any answer. The host
//! treats every byte from the guest as hostile: what does not fit ends the microVM.
//!
//! This crate does no I/O except through the [`std::io::Read`] and [`std::io::Write`] it is given,
//! and knows neither QEMU nor Linux.

#![forbid(unsafe_code)]

pub mod flow;
pub mod frame;
pub mod message;
pub mod settings;

/// Version of the messages. Both sides must have the same; an image records the one that its
/// agent speaks, so that a mismatch is found before anything is booted.
pub const VERSION: u16 = 4;

/// The context id by which a guest reaches its host (`VMADDR_CID_HOST` of `vsock(7)`).
pub const HOST_CID: u32 = 2;

/// The vsock port on which the shepherd waits for its guest.
pub const CONTROL_PORT: u32 = 1024;

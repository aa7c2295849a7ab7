//! Isolation of processes that may be compromised: what they can see and request of the kernel.
//!
//! A [`root`] is a file system with only the files that a process needs: no path leads to the
//! host's files or sockets, and there is no `/proc`. A [`filter`] restricts a process to a list of
//! system calls ([`syscalls`]). A child under [`confinement`] starts with both; a shepherd enters
//! both itself. [`landlock`] restricts such a child once more, and a thread that unpacks untrusted
//! data. A [`peer`] is a process that connects to a socket; only peers in the listener's namespaces
//! are served.
//!
//! Does not depend on QEMU, microVMs or the sockets' protocols.

pub mod confinement;
pub mod filter;
pub mod landlock;
pub mod libraries;
pub mod peer;
pub mod root;
pub mod syscalls;

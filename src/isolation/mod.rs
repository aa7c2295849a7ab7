//! What a process that may be taken over can still see and ask of the kernel.
//!
//! A [`root`] is a file system with the few files that a process needs and nothing else: no path
//! leads to the host's files or sockets, and there is no `/proc`. A [`filter`] is the list of the
//! system calls that it may make ([`calls`]). A [`confined`] child starts with both; a shepherd
//! enters both itself. A [`peer`] is whoever connects to a socket: only processes of the
//! namespaces that the listener is in are served.
//!
//! Knows nothing of QEMU, of microVMs, or of what is said on the sockets.

pub(crate) mod calls;
pub(crate) mod confined;
pub(crate) mod filter;
pub(crate) mod libraries;
pub(crate) mod peer;
pub(crate) mod root;

//! The settings of the guest agent: the file `/settings` of the initramfs, one
//! [frame](crate::frame).
//!
//! The file is part of the image, so the image's digest covers it. It disappears with the initramfs
//! once the job's file system is the root: no job can change or read it.

use serde::{Deserialize, Serialize};

/// The settings of a guest, applied before its job starts. By default, nothing is restricted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "each is an independent switch")]
pub struct GuestSettings {
    /// Kernel parameters by their path below `/proc/sys`, e.g. `kernel/kptr_restrict`, in the
    /// order in which they are set.
    pub parameters: Vec<(String, String)>,
    /// Modules of the root file system that are loaded before the job, in load order: absolute
    /// paths of uncompressed files.
    pub modules: Vec<String>,
    /// Whether further module loading is disabled after that.
    pub lock_modules: bool,
    /// Whether the root file system is mounted with `nodev`.
    pub root_nodev: bool,
    /// Whether the root file system is mounted with `nosuid`.
    pub root_nosuid: bool,
    /// Whether `/home` and `/var` are mounted with `nodev` and `nosuid`, and `/var/log` also with
    /// `noexec`. Images built before this field existed do not have it.
    #[serde(default)]
    pub restrict_data: bool,
    /// Whether a process sees only processes of its own user in `/proc`.
    pub hide_processes: bool,
    /// Whether no program can give a job more privileges than it started with.
    pub no_new_privileges: bool,
    /// The job's file mode creation mask; the agent's default if none.
    pub umask: Option<u32>,
    /// Whether core dumps of the job's processes are disabled.
    pub no_core_dumps: bool,
    /// Whether the agent reports each executed program to the host.
    pub log_programs: bool,
    /// Programs that are started by the first connection to their socket.
    pub services: Vec<Service>,
}

/// A program that is started by the first connection to its socket, which it inherits as
/// descriptor 3 with `LISTEN_FDS=1` and `LISTEN_PID` (`sd_listen_fds(3)`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// The name of the service, e.g. `docker`.
    pub name: String,
    /// The path of its stream socket. Its directory is created if missing.
    pub socket: String,
    /// The name of the group that may connect; root always may.
    pub group: String,
    /// The program and its arguments. `{mtu}` in an argument stands for the MTU of the guest's
    /// network, in bytes.
    pub command: Vec<String>,
}

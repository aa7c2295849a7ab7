//! What an image tells the agent in it: the file `/settings` of the initramfs, one [frame](crate::frame).
//!
//! It is part of the image, so it is measured with it, and it is gone with the initramfs when the
//! job's file system is the root: no job can change it or read it.

use serde::{Deserialize, Serialize};

/// How the guest is set up before there is a job. The default is a guest with nothing special.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct Settings {
    /// Kernel parameters by their path below `/proc/sys`, e.g. `kernel/kptr_restrict`, in the
    /// order in which they are set.
    pub parameters: Vec<(String, String)>,
    /// Modules of the root file system to be loaded before the job, in load order: absolute paths
    /// of uncompressed files.
    pub modules: Vec<String>,
    /// No module can be loaded from then on.
    pub lock_modules: bool,
    /// Device nodes and set-user-id bits don't count in the root file system.
    pub root_nodev: bool,
    /// See [`Settings::root_nodev`].
    pub root_nosuid: bool,
    /// Neither count in `/home` and `/var`, whatever holds for the rest of it, and nothing in
    /// `/var/log` is executed. Images from before this was said do without.
    #[serde(default)]
    pub restrict_data: bool,
    /// A process sees only those of its own user in `/proc`.
    pub hide_processes: bool,
    /// No program can give a job more rights than it was started with.
    pub no_new_privileges: bool,
    /// The job's file mode creation mask.
    pub umask: Option<u32>,
    /// Whether the job's processes can dump core.
    pub no_core_dumps: bool,
    /// The host is told of each program that is executed.
    pub log_programs: bool,
    /// Programs that are started when somebody connects to their socket.
    pub services: Vec<Service>,
}

/// A program that is started by the first connection to its socket, which it inherits as
/// descriptor 3 with `LISTEN_FDS=1` and `LISTEN_PID` (`sd_listen_fds(3)`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// What it is called, e.g. `docker`.
    pub name: String,
    /// The path of its stream socket, in a directory that is there or is made.
    pub socket: String,
    /// The group that may connect, by name; root always may.
    pub group: String,
    /// The program and its arguments. `{mtu}` in an argument stands for the MTU of the guest's
    /// network, in bytes.
    pub command: Vec<String>,
}

//! The agent inside a microVM: `/init` of the initramfs, and PID 1 until the machine ends.
//!
//! ```text
//! boot     initramfs → drivers → root file system           stage one
//! mounts   the other file systems                           stage two
//! harden   kernel parameters and modules, in the background
//! channel  vsock connection to the shepherd
//! session  the messages: Prepare, Start …
//!   prepare  randomness, clock, host name, network
//!   services programs started by their first connection
//!   job      the one job
//!   programs the log of executed programs
//! power    power-off and reset
//! ```
//!
//! The agent uses threads and blocking I/O only: a blocked thread gives back-pressure for free, and
//! a small binary boots faster. The library lets tests build guests that share only the boot code.
//! The job and the session work over any stream and as any user, so most tests need no machine.

pub mod boot;
pub mod channel;
pub mod error;
mod grow;
pub mod harden;
pub mod job;
mod modules;
pub mod mounts;
mod network;
pub mod power;
pub mod prepare;
mod programs;
pub mod services;
pub mod session;
mod settings;
mod statistics;

use std::fs::{self, File};

use channel::Sender;
use error::{Context, StepError};
use harden::Hardening;
use job::{JobContext, ProcessRules};
use mayfly_protocol::settings::GuestSettings;
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use power::EndMode;
use services::Services;
use session::{MachineOperations, Session, SessionEnd};

/// Runs the agent. Must be called as PID 1, before any other thread starts.
pub fn run() -> Result<EndMode, StepError> {
    let Guest { connection, settings } = start()?;
    let hardening = Hardening::start(&settings)?;
    let writer = connection.try_clone().context(|| "duplicate the connection")?;
    let context = JobContext {
        passwd: "/etc/passwd".into(),
        groups: "/etc/group".into(),
        control_group: Some(mounts::JOB_GROUP.into()),
        is_init: true,
        rules: ProcessRules::new(&settings),
        services: Services::new(settings.services),
    };
    let operations =
        MachineOperations { prepare: prepare::prepare_machine, set_clock: prepare::set_clock };
    let session = Session::new(Sender::new(writer), context, operations);
    match session.after_hardening(hardening).serve(&connection) {
        SessionEnd::Shutdown | SessionEnd::HostDisconnected => Ok(EndMode::PowerOff),
        SessionEnd::Failed(error) => {
            channel::linger(&connection);
            Err(error)
        }
    }
}

/// A booted guest that is connected to its host.
pub struct Guest {
    /// The connection to the host.
    pub connection: File,
    /// The settings of the image.
    pub settings: GuestSettings,
}

/// Boots the guest and connects to the host.
pub fn start() -> Result<Guest, StepError> {
    power::handle_shutdown_signals()?;
    let settings = boot::enter_root()?;
    mounts::mount_all(&settings)?;
    fs::write("/proc/self/oom_score_adj", "-1000")
        .context(|| "disable the OOM killer for the agent")?;
    // The kernel's global limit on threads, derived from the memory size, remains. The default per
    // user is half of it, which is too low for some servers.
    setrlimit(Resource::RLIMIT_NPROC, RLIM_INFINITY, RLIM_INFINITY)
        .context(|| "remove the limit on a user's processes")?;
    network::bring_loopback_up()?;
    Ok(Guest { connection: channel::connect_to_host()?, settings })
}

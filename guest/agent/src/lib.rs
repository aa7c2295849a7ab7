//! The agent inside a microVM: the initramfs's `/init`, and PID 1 until the machine ends.
//!
//! ```text
//! boot     initramfs → drivers → root file system           stage one
//! mounts   the file systems around it                       stage two
//! harden   the kernel's parameters and modules, in the background
//! channel  vsock to the shepherd
//! session  the conversation: Prepare, Start …
//!   prepare  randomness, clock, name, network
//!   services programs that wait for their first connection
//!   job      the one job
//!   programs what it executes, for the host
//! power    the end of the machine
//! ```
//!
//! Threads and blocking I/O only: a thread that waits is back-pressure for free, and the binary
//! stays small, which boots faster. The library is there so that tests can make guests that share
//! the boot and nothing else. The job and the session work over any stream and as any user, so
//! that most tests need no machine.

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
use error::{During, StepError};
use harden::Hardening;
use job::{Place, Rules};
use mayfly_protocol::settings::Settings;
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use power::Ending;
use services::Services;
use session::{Outcome, Session, Setup};

/// The agent's whole life. To be called as PID 1, before there is any other thread.
pub fn run() -> Result<Ending, StepError> {
    let Guest { connection, settings } = start()?;
    let hardening = Hardening::begin(&settings)?;
    let writer = connection.try_clone().during(|| "duplicate the connection")?;
    let place = Place {
        passwd: "/etc/passwd".into(),
        groups: "/etc/group".into(),
        control_group: Some(mounts::JOB_GROUP.into()),
        is_init: true,
        rules: Rules::of(&settings),
        services: Services::new(settings.services),
    };
    let setup = Setup { prepare: prepare::carry_out, set_clock: prepare::set_clock };
    let session = Session::new(Sender::new(writer), place, setup);
    match session.waiting_for(hardening).serve(&connection) {
        Outcome::Shutdown | Outcome::HostGone => Ok(Ending::PowerOff),
        Outcome::Failed(error) => {
            channel::linger(&connection);
            Err(error)
        }
    }
}

/// A guest that has found its host.
pub struct Guest {
    /// The connection to it.
    pub connection: File,
    /// What the image says of the rest.
    pub settings: Settings,
}

/// From the kernel's first call to a connection with the host.
pub fn start() -> Result<Guest, StepError> {
    power::obey_requests()?;
    let settings = boot::enter_root()?;
    mounts::mount_all(&settings)?;
    fs::write("/proc/self/oom_score_adj", "-1000").during(|| "ask never to be killed")?;
    // The kernel's own bound on threads, which follows from the machine's memory, stays; the one for
    // a user is half of it, and less than some servers ask for.
    setrlimit(Resource::RLIMIT_NPROC, RLIM_INFINITY, RLIM_INFINITY)
        .during(|| "lift the bound on a user's processes")?;
    network::bring_loopback_up()?;
    Ok(Guest { connection: channel::connect_to_host()?, settings })
}

//! The agent inside a microVM: the initramfs's `/init`, and PID 1 until the machine ends.
//!
//! ```text
//! boot     initramfs → drivers → root file system           stage one
//! mounts   the file systems around it                       stage two
//! channel  vsock to the shepherd
//! session  the conversation: Prepare, Start …
//!   prepare  randomness, clock, name, network
//!   job      the one job
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
pub mod job;
mod modules;
pub mod mounts;
mod network;
pub mod power;
pub mod prepare;
pub mod session;
mod statistics;

use std::fs::{self, File};

use channel::Sender;
use error::{During, StepError};
use job::Place;
use power::Ending;
use session::{Outcome, Session};

/// The agent's whole life. To be called as PID 1, before there is any other thread.
pub fn run() -> Result<Ending, StepError> {
    let connection = start()?;
    let writer = connection.try_clone().during(|| "duplicate the connection")?;
    let place = Place {
        passwd: "/etc/passwd".into(),
        groups: "/etc/group".into(),
        control_group: Some(mounts::JOB_GROUP.into()),
        is_init: true,
    };
    match Session::new(Sender::new(writer), place, prepare::carry_out).serve(&connection) {
        Outcome::Shutdown | Outcome::HostGone => Ok(Ending::PowerOff),
        Outcome::Failed(error) => {
            channel::linger(&connection);
            Err(error)
        }
    }
}

/// From the kernel's first call to a connection with the host.
pub fn start() -> Result<File, StepError> {
    power::obey_requests()?;
    boot::enter_root()?;
    mounts::mount_all()?;
    fs::write("/proc/self/oom_score_adj", "-1000").during(|| "ask never to be killed")?;
    network::bring_loopback_up()?;
    channel::connect_to_host()
}

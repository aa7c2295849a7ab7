//! Why a microVM failed: every way has a name, an exit code and, where one can do something, a
//! hint.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::egress::EgressError;
use super::enclosure::EnclosureError;
use super::event::Phase;
use crate::channel::{ChannelError, Violation};
use crate::failure::{Code, Failure};
use crate::machine::{Death, MachineError};
use crate::network::NetworkError;

/// Why a microVM failed.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The enclosure could not be furnished.
    #[error(transparent)]
    Enclosure(#[from] EnclosureError),
    /// The network could not be made.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Egress could not be made, or its sockets failed.
    #[error(transparent)]
    Egress(#[from] EgressError),
    /// The machine could not be made.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A file or thread of the shepherd's own was refused.
    #[error("can't {0}")]
    Shepherd(&'static str, #[source] io::Error),
    /// The record can't be written.
    #[error("can't write the record {0}")]
    Record(PathBuf, #[source] io::Error),
    /// A phase took too long.
    #[error("{}", late(*.0, *.1))]
    Deadline(Phase, Duration),
    /// The machine ended before the job did.
    #[error("{0}")]
    Died(Death),
    /// The channel ended or was abused.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The agent gave up.
    #[error("the guest's agent could not {step}: {error}")]
    Agent {
        /// What it was doing.
        step: String,
        /// Why it failed.
        error: String,
    },
    /// No heartbeat came.
    #[error("the guest has not been heard of for {}", humantime::format_duration(*.0))]
    Silent(Duration),
    /// The front end went away without a word.
    #[error("the process that asked for the microVM is gone")]
    Abandoned,
    /// The front end wants it to end.
    #[error("the microVM was ended on request")]
    Ended,
}

fn late(phase: Phase, limit: Duration) -> String {
    let what = match phase {
        Phase::Planned => "the microVM was not prepared",
        Phase::Prepared | Phase::Booting => "the guest did not say hello",
        Phase::Ready => "no job came",
        Phase::Claimed => "the job did not start",
        _ => "the job did not end",
    };
    format!("{what} within {}", humantime::format_duration(limit))
}

impl Cause {
    /// Its short name, a contract with programs (`docs/reference/events.md`).
    pub fn name(&self) -> &'static str {
        match self {
            Self::Enclosure(_) => "enclosure",
            Self::Network(_) => "network",
            Self::Egress(_) => "egress",
            Self::Machine(_) => "machine",
            Self::Shepherd(..) => "shepherd",
            Self::Record(..) => "record",
            Self::Deadline(phase, _) => match phase {
                Phase::Planned => "prepare_deadline",
                Phase::Prepared | Phase::Booting => "boot_deadline",
                Phase::Ready => "idle_deadline",
                Phase::Claimed => "claim_deadline",
                _ => "job_deadline",
            },
            Self::Died(death) => match death {
                Death::PoweredOff => "powered_off",
                Death::Rebooted => "rebooted",
                Death::KernelPanic(_) => "kernel_panic",
                Death::HostDiskFull => "host_disk_full",
                Death::DiskError(_) => "disk_error",
                Death::Disturbed => "disturbed",
                Death::QemuEnded(_) => "qemu_ended",
                Death::VsockEnded(_) => "vsock_ended",
            },
            Self::Channel(ChannelError::Closed) => "channel_closed",
            Self::Channel(ChannelError::TooLong(_)) => "job_too_long",
            Self::Channel(ChannelError::Violation(Violation::Version { .. })) => "agent_version",
            Self::Channel(ChannelError::Violation(_)) => "hostile_guest",
            Self::Agent { .. } => "agent",
            Self::Silent(_) => "silent",
            Self::Abandoned => "abandoned",
            Self::Ended => "ended",
        }
    }
}

impl Failure for Cause {
    fn code(&self) -> Code {
        match self {
            Self::Enclosure(error) => error.code(),
            Self::Network(error) => error.code(),
            Self::Egress(error) => error.code(),
            Self::Machine(error) => error.code(),
            Self::Shepherd(..) => Code::Internal,
            Self::Record(..) | Self::Died(Death::HostDiskFull) => Code::CannotWrite,
            Self::Deadline(Phase::Running, _) => Code::TimedOut,
            Self::Channel(ChannelError::TooLong(_)) => Code::Usage,
            Self::Abandoned | Self::Ended => Code::Interrupted,
            _ => Code::MachineFailed,
        }
    }

    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Enclosure(error) => return error.hint(),
            Self::Network(error) => return error.hint(),
            Self::Egress(error) => return error.hint(),
            Self::Machine(error) => return error.hint(),
            Self::Deadline(Phase::Running, _) => "give it a longer deadline",
            Self::Deadline(Phase::Prepared | Phase::Booting, _) => {
                "the console's last lines are in the black box"
            }
            Self::Died(Death::HostDiskFull) => {
                "make room on the file system of the state directory, or use a smaller disk"
            }
            Self::Channel(ChannelError::Violation(Violation::Version { .. })) => {
                "build the image again with this version: mayfly image build"
            }
            Self::Channel(ChannelError::TooLong(_)) => "pass large data in a file",
            _ => return None,
        };
        Some(text.to_owned())
    }
}

//! Causes of failure of a microVM, each with a name, an exit code and, where something can be done,
//! a hint.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::egress::EgressError;
use super::enclosure::EnclosureError;
use super::event::Phase;
use mayfly_channel::{ChannelError, Violation};
use mayfly_failure::{Code, Failure};
use mayfly_machine::{MachineError, StopReason};
use mayfly_network::NetworkError;

/// The cause of a microVM's failure.
#[derive(Debug, thiserror::Error)]
pub enum FailureCause {
    /// The enclosure could not be set up.
    #[error(transparent)]
    Enclosure(#[from] EnclosureError),
    /// The network could not be created.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Egress could not be set up, or one of its sockets failed.
    #[error(transparent)]
    Egress(#[from] EgressError),
    /// The machine could not be created or started.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A system call for the shepherd itself failed.
    #[error("can't {0}")]
    Shepherd(&'static str, #[source] io::Error),
    /// The record can't be written.
    #[error("can't write the record {0}")]
    Record(PathBuf, #[source] io::Error),
    /// A phase exceeded its deadline.
    #[error("{}", deadline_message(*.0, *.1))]
    Deadline(Phase, Duration),
    /// The machine stopped before the job ended.
    #[error("{0}")]
    MachineStopped(StopReason),
    /// The channel closed, or the guest violated its protocol.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The agent reported a failure.
    #[error("the guest's agent could not {step}: {error}")]
    Agent {
        /// What the agent was doing.
        step: String,
        /// Why it failed.
        error: String,
    },
    /// No heartbeat arrived in time.
    #[error("no heartbeat from the guest for {}", humantime::format_duration(*.0))]
    Silent(Duration),
    /// The front end disconnected without ending the microVM.
    #[error("the process that started the microVM has exited")]
    Abandoned,
    /// The front end requested the end.
    #[error("the microVM was ended on request")]
    Ended,
}

fn deadline_message(phase: Phase, limit: Duration) -> String {
    let what = match phase {
        Phase::Planned => "the microVM was not prepared",
        Phase::Prepared | Phase::Booting => "the guest did not become ready",
        Phase::Ready => "no job arrived",
        Phase::Claimed => "the job did not start",
        _ => "the job did not end",
    };
    format!("{what} within {}", humantime::format_duration(limit))
}

impl FailureCause {
    /// Returns the short name, which programs may rely on (`docs/reference/events.md`).
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
            Self::MachineStopped(reason) => match reason {
                StopReason::PoweredOff => "powered_off",
                StopReason::Rebooted => "rebooted",
                StopReason::KernelPanic(_) => "kernel_panic",
                StopReason::HostDiskFull => "host_disk_full",
                StopReason::DiskError(_) => "disk_error",
                StopReason::Disturbed => "disturbed",
                StopReason::QemuExited(_) => "qemu_ended",
                StopReason::VsockExited(_) => "vsock_ended",
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

impl Failure for FailureCause {
    fn code(&self) -> Code {
        match self {
            Self::Enclosure(error) => error.code(),
            Self::Network(error) => error.code(),
            Self::Egress(error) => error.code(),
            Self::Machine(error) => error.code(),
            Self::Shepherd(..) => Code::Internal,
            Self::Record(..) | Self::MachineStopped(StopReason::HostDiskFull) => Code::CannotWrite,
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
            Self::Deadline(Phase::Running, _) => "set a longer deadline for the job",
            Self::Deadline(Phase::Prepared | Phase::Booting, _) => {
                "see the last lines of the console in the black box"
            }
            Self::MachineStopped(StopReason::HostDiskFull) => {
                "free space on the file system of the state directory, or use a smaller disk"
            }
            Self::Channel(ChannelError::Violation(Violation::Version { .. })) => {
                "rebuild the image with this version: mayfly image build"
            }
            Self::Channel(ChannelError::TooLong(_)) => "pass large data in a file",
            _ => return None,
        };
        Some(text.to_owned())
    }
}

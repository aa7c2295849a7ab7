//! The plan of a microVM: everything that is decided before anything is created.

use std::path::PathBuf;
use std::time::Duration;

use mayfly_protocol::message::{Job, TerminalSize};
use serde::{Deserialize, Serialize};

use super::detached::DetachedLimits;
use mayfly_egress::policy::Policy;
use mayfly_host::size::Size;
use mayfly_machine::MachinePrograms;
use mayfly_machine::accelerator::Accelerator;

/// The complete plan of one microVM.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MicrovmPlan {
    /// The microVM's name.
    pub id: MicrovmId,
    /// When it was requested: nanoseconds of `CLOCK_MONOTONIC`, which all processes share.
    #[serde(rename = "asked")]
    pub requested_at: u64,
    /// Name of the image, for people.
    pub image: String,
    /// The image's files.
    pub boot: BootFiles,
    /// What executes the guest's instructions.
    pub accelerator: Accelerator,
    /// Virtual processors.
    pub processors: u32,
    /// Memory of the guest.
    pub memory: Size,
    /// Size of the root disk.
    pub disk: Size,
    /// The destinations that the guest may reach.
    pub egress: Policy,
    /// The directory of the egress record.
    pub egress_record: PathBuf,
    /// Time limit of each phase.
    pub deadlines: Deadlines,
    /// The programs that run the microVM.
    pub programs: MachinePrograms,
    /// The microVM's own directory: its record and, after a failure, its black box.
    pub directory: PathBuf,
    /// The mount point of the private tmpfs.
    pub private: PathBuf,
    /// Output limits of a detached microVM, which outlives its front end. `None` if attached.
    pub detached: Option<DetachedLimits>,
}

/// The files that a microVM boots from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BootFiles {
    /// The image's directory, held while the microVM exists.
    pub directory: PathBuf,
    /// The uncompressed kernel.
    pub kernel: PathBuf,
    /// The initial file system.
    pub initramfs: PathBuf,
    /// The root file system, read-only.
    pub rootfs: PathBuf,
    /// Kernel arguments that the image requires.
    pub arguments: String,
}

/// Time limit of each phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Deadlines {
    /// From the plan to a machine that is ready to boot.
    pub prepare: Duration,
    /// From QEMU's start to a ready guest. The default is for KVM; emulation multiplies it by the
    /// factor of its profile.
    pub boot: Duration,
    /// Ready without a job.
    pub idle: Duration,
    /// From the `Start` message to the job's start, including what is copied in.
    pub claim: Duration,
    /// The job, until its last output is read. Copying out then gets another two minutes.
    pub job: Duration,
    /// Maximum time without a heartbeat.
    pub silence: Duration,
    /// From the interrupt of a runner to the end of its microVM.
    pub farewell: Duration,
    /// From the job's end until all processes have ended.
    pub destroy: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            prepare: Duration::from_secs(20),
            boot: Duration::from_secs(20),
            idle: Duration::from_secs(24 * 3600),
            claim: Duration::from_secs(10 * 60),
            job: Duration::from_secs(6 * 3600),
            silence: Duration::from_secs(60),
            farewell: Duration::from_secs(60),
            destroy: Duration::from_secs(10),
        }
    }
}

/// The name of a microVM: `m-` and ten random characters. Also the guest's host name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MicrovmId(String);

impl MicrovmId {
    /// Generates a new name from 50 random bits. Among a million microVMs the probability of a
    /// collision is 1 in 2,000; the second microVM is then refused because its directory exists.
    pub fn new() -> std::io::Result<Self> {
        const LETTERS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
        let random = mayfly_host::random::<10>()?;
        let letters = random.iter().map(|byte| char::from(LETTERS[usize::from(byte % 32)]));
        Ok(Self(format!("m-{}", letters.collect::<String>())))
    }

    /// Parses a name.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("m-")?;
        let good = rest.len() == 10 && rest.bytes().all(|byte| byte.is_ascii_alphanumeric());
        good.then(|| Self(text.to_owned()))
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for MicrovmId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A command from a front end to its shepherd. The two may have different versions: a shepherd
/// acknowledges an unknown command as refused.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShepherdCommand {
    /// Create this microVM and boot it. The first command; sent once.
    Prepare(Box<MicrovmPlan>),
    /// Run this job. Sent once.
    Start(Box<Job>),
    /// Send the signal with this number to the job.
    Signal(i32),
    /// Change the size of the job's terminal.
    Resize(TerminalSize),
    /// End the microVM now. A runner is interrupted first and gets the plan's grace period
    /// (`deadlines.farewell`); a second `End` ends it at once.
    End,
    /// Interrupt the job (SIGINT to its process group) and end the microVM after the grace period.
    /// If the job does not run yet, the microVM ends at once.
    #[serde(rename = "farewell")]
    Interrupt(InterruptRequest),
}

/// An interrupt of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterruptRequest {
    /// How long the job may take to end by itself.
    #[serde(rename = "within")]
    pub grace: Duration,
    /// Who ends the job and why; for people.
    #[serde(rename = "why")]
    pub reason: String,
}

/// Returns `CLOCK_MONOTONIC` in nanoseconds.
pub fn monotonic() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| Duration::from(now).as_nanos().try_into().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_valid_host_names_and_differ() {
        let (one, other) = (MicrovmId::new().unwrap(), MicrovmId::new().unwrap());
        assert_ne!(one, other);
        assert!(one.as_str().bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'));
        assert_eq!(one.as_str().len(), 12);
        assert_eq!(MicrovmId::parse(one.as_str()), Some(one));
        assert!(
            ["", "m-", "m-012345678", "m-012345678/", "x-0123456789"].map(MicrovmId::parse)
                == [const { None }; 5]
        );
    }
}

//! What a microVM is to be: everything that is decided before anything is made.

use std::path::PathBuf;
use std::time::Duration;

use mayfly_protocol::message::{Job, TerminalSize};
use serde::{Deserialize, Serialize};

use super::detached::Detached;
use crate::egress::policy::Policy;
use crate::host::size::Size;
use crate::machine::Programs;
use crate::machine::accelerator::Accelerator;

/// A microVM, planned.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// Its name, everywhere.
    pub id: Id,
    /// When it was asked for: nanoseconds of `CLOCK_MONOTONIC`, which all processes share.
    pub asked: u64,
    /// Name of the image, for people.
    pub image: String,
    /// The image's files.
    pub boot: Boot,
    /// What executes the guest's instructions.
    pub accelerator: Accelerator,
    /// Virtual processors.
    pub processors: u32,
    /// Memory of the guest.
    pub memory: Size,
    /// Size of the root disk.
    pub disk: Size,
    /// What the guest may reach.
    pub egress: Policy,
    /// Where the record of what it reached is kept.
    pub egress_record: PathBuf,
    /// How long each phase may take.
    pub deadlines: Deadlines,
    /// The programs it runs on.
    pub programs: Programs,
    /// The microVM's own directory: its record and, if it ends abnormally, its black box.
    pub directory: PathBuf,
    /// The mount point of the private tmpfs.
    pub private: PathBuf,
    /// Bounds of one that outlives its front end; none of one that ends with it.
    pub detached: Option<Detached>,
}

/// What is booted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Boot {
    /// The image's directory, which is held for as long as the microVM lives.
    pub directory: PathBuf,
    /// The uncompressed kernel.
    pub kernel: PathBuf,
    /// The initial file system.
    pub initramfs: PathBuf,
    /// The root file system, which is only read.
    pub rootfs: PathBuf,
    /// Kernel arguments of the image.
    pub arguments: String,
}

/// How long each phase may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Deadlines {
    /// From nothing to a machine that could boot.
    pub prepare: Duration,
    /// From QEMU's start to a guest that is ready. The default is for KVM; emulation needs longer
    /// by the factor of its profile.
    pub boot: Duration,
    /// Ready without a job.
    pub idle: Duration,
    /// From the job's message to the job's start, copies included.
    pub claim: Duration,
    /// The job, until its last output was taken. What is copied out gets another two minutes then.
    pub job: Duration,
    /// Without a heartbeat.
    pub silence: Duration,
    /// From the interrupt of a runner that has to go until its microVM ends.
    pub farewell: Duration,
    /// From the job's end until nothing runs any more.
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

/// The name of a microVM: `m-` and ten random characters; also its guest's host name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Id(String);

impl Id {
    /// A new one. 50 random bits: among a million microVMs two are the same once in 2,000 tries,
    /// and then the second finds the first's directory and is refused.
    pub fn new() -> std::io::Result<Self> {
        const LETTERS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
        let random = crate::host::random::<10>()?;
        let letters = random.iter().map(|byte| char::from(LETTERS[usize::from(byte % 32)]));
        Ok(Self(format!("m-{}", letters.collect::<String>())))
    }

    /// The name that a text is, if it is one.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("m-")?;
        let good = rest.len() == 10 && rest.bytes().all(|byte| byte.is_ascii_alphanumeric());
        good.then(|| Self(text.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// What a front end tells its shepherd, which may be of another version: an order that it does not
/// know is acknowledged as refused.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Make this microVM and have it ready. The first order, and given once.
    Prepare(Box<Plan>),
    /// Run this job. Given once.
    Start(Box<Job>),
    /// Send a signal, by its number, to the job.
    Signal(i32),
    /// The job's terminal has another size.
    Resize(TerminalSize),
    /// End the microVM now; one that has a runner after a farewell of the plan's length. The second
    /// ends it in any case.
    End,
    /// Interrupt the job (SIGINT to its process group), and end the microVM after a while. A job
    /// that does not run yet ends at once.
    Farewell(Farewell),
}

/// How a job is told to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Farewell {
    /// How long it may take to end by itself.
    pub within: Duration,
    /// Who ends it, and why; for people.
    pub why: String,
}

/// `CLOCK_MONOTONIC` now, in nanoseconds.
pub fn monotonic() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| Duration::from(now).as_nanos().try_into().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_host_names_and_differ() {
        let (one, other) = (Id::new().unwrap(), Id::new().unwrap());
        assert_ne!(one, other);
        assert!(one.as_str().bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'));
        assert_eq!(one.as_str().len(), 12);
        assert_eq!(Id::parse(one.as_str()), Some(one));
        assert!(
            ["", "m-", "m-012345678", "m-012345678/", "x-0123456789"].map(Id::parse)
                == [const { None }; 5]
        );
    }
}

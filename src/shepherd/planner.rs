//! From what is wanted to a plan: everything is looked up and checked before anything is started.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::detached::Detached;
use super::plan::{Boot, Deadlines, Id, Plan};
use crate::egress::policy::Policy;
use crate::failure::{Code, Failure};
use crate::host::capacity::{Capacity, Exceeded};
use crate::host::programs::{ProgramError, QEMU, QEMU_IMG, VHOST_DEVICE_VSOCK};
use crate::host::size::Size;
use crate::host::state::StateDirectory;
use crate::image::{Image, ImageError, Reference, Store, Trust};
use crate::machine::Programs;
use crate::machine::accelerator::{self, Facts, Unusable, Wish};
use crate::network::NetworkError;

/// A microVM as somebody wants it.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// When it was asked for ([`super::plan::monotonic`]).
    pub asked: u64,
    /// The image, by name and perhaps digest.
    pub image: Reference,
    /// Whose signature the image needs.
    pub trust: Trust,
    /// What is to execute the guest's instructions.
    pub accelerator: Wish,
    /// Virtual processors.
    pub processors: u32,
    /// Memory of the guest.
    pub memory: Size,
    /// Size of the root disk; a roomy one if none is given.
    pub disk: Option<Size>,
    /// What the guest may reach.
    pub egress: Policy,
    /// Where the record of what it reached is kept; in its own directory if none is given.
    pub egress_record: Option<PathBuf>,
    /// The deadlines, but for that of the boot.
    pub deadlines: Deadlines,
    /// The deadline of the boot; the usual one of the accelerator if none is given.
    pub boot: Option<Duration>,
    /// Bounds of one that outlives its front end; none of one that ends with it.
    pub detached: Option<Detached>,
}

/// What is wanted can't be had here.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The image is not there, or not what it was.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The disk is too small for the image.
    #[error("a disk of {asked} is less than the {least} of the image {image}")]
    Disk {
        /// The size that was asked for.
        asked: Size,
        /// The least that the image needs.
        least: Size,
        /// The image's name.
        image: String,
    },
    /// The accelerator can't be used.
    #[error(transparent)]
    Accelerator(#[from] Unusable),
    /// A program is missing.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The tap device can't be used.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The host has less.
    #[error(transparent)]
    Capacity(#[from] Exceeded),
    /// The host does not say what it has.
    #[error("can't read /proc/meminfo")]
    Unknown(#[source] io::Error),
    /// No name could be drawn.
    #[error("no random bytes")]
    Random(#[source] io::Error),
}

impl Failure for PlanError {
    fn code(&self) -> Code {
        match self {
            Self::Image(error) => error.code(),
            Self::Disk { .. } => Code::Usage,
            Self::Accelerator(error) => error.code(),
            Self::Program(error) => error.code(),
            Self::Network(error) => error.code(),
            Self::Capacity(error) => error.code(),
            Self::Unknown(_) | Self::Random(_) => Code::Unavailable,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Image(error) => error.hint(),
            Self::Accelerator(error) => error.hint(),
            Self::Program(error) => error.hint(),
            Self::Network(error) => error.hint(),
            Self::Capacity(error) => error.hint(),
            Self::Disk { .. } | Self::Unknown(_) | Self::Random(_) => None,
        }
    }
}

/// The plan, with a new name, and a warning where something else than the best was chosen.
///
/// Reads files, and hashes those of an image that was not verified yet: not for the thread of an
/// event loop.
pub fn plan(wanted: Wanted, state: &StateDirectory) -> Result<(Plan, Option<String>), PlanError> {
    plan_from(wanted, &Store::open(state.images()), state)
}

/// The same, with an image of another store than that of the state directory.
pub fn plan_from(
    wanted: Wanted,
    store: &Store,
    state: &StateDirectory,
) -> Result<(Plan, Option<String>), PlanError> {
    let image = store.find(&wanted.image)?;
    let disk = disk(wanted.disk, &image)?;
    let (accelerator, why) = accelerator::choose(wanted.accelerator, &Facts::gather())?;
    let warning = why.map(|why| format!("{why}; using {accelerator}"));
    let programs = Programs {
        qemu: QEMU.find()?,
        qemu_img: QEMU_IMG.find()?,
        vsock: VHOST_DEVICE_VSOCK.find()?,
    };
    crate::network::require_tun()?;
    let capacity = Capacity::read().map_err(PlanError::Unknown)?;
    capacity.admit(wanted.processors, wanted.memory)?;
    // Last: of an image that was not verified yet, all of it is read.
    store.ensure_verified(&image, &state.verified(), &wanted.trust)?;
    let id = Id::new().map_err(PlanError::Random)?;
    let directory = state.microvms().join(id.as_str());
    let usual = wanted.deadlines.boot * accelerator.profile().patience;
    let plan = Plan {
        id,
        asked: wanted.asked,
        image: format!("{}@{}", image.name, image.digest.short()),
        boot: Boot {
            directory: image.directory.clone(),
            kernel: image.kernel(),
            initramfs: image.initramfs(),
            rootfs: image.rootfs(),
            arguments: image.manifest.kernel.command_line.clone(),
        },
        accelerator,
        processors: wanted.processors,
        memory: wanted.memory,
        disk,
        egress: wanted.egress,
        egress_record: wanted.egress_record.unwrap_or_else(|| directory.clone()),
        deadlines: Deadlines { boot: wanted.boot.unwrap_or(usual), ..wanted.deadlines },
        programs,
        directory,
        private: state.private(),
        detached: wanted.detached,
    };
    Ok((plan, warning))
}

/// Only what is written takes room on the host, so the usual disk is a roomy one.
const USUAL_DISK: Size = Size::gibibytes(16);

fn disk(asked: Option<Size>, image: &Image) -> Result<Size, PlanError> {
    let least = Size(image.manifest.parts.rootfs.bytes);
    match asked {
        Some(asked) if asked < least => {
            Err(PlanError::Disk { asked, least, image: image.name.to_string() })
        }
        Some(asked) => Ok(asked),
        None => Ok(USUAL_DISK.max(least)),
    }
}

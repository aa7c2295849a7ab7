//! The planner: turns a request into a plan. Looks up and checks everything before any start.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::detached::DetachedLimits;
use super::plan::{BootFiles, Deadlines, MicrovmId, MicrovmPlan};
use mayfly_egress::policy::Policy;
use mayfly_failure::{Code, Failure};
use mayfly_host::capacity::{Capacity, CapacityError};
use mayfly_host::programs::{ProgramError, QEMU, QEMU_IMG, VHOST_DEVICE_VSOCK};
use mayfly_host::size::Size;
use mayfly_host::state::StateDirectory;
use mayfly_image::{Image, ImageError, Reference, Store, Trust};
use mayfly_machine::MachinePrograms;
use mayfly_machine::accelerator::{self, AcceleratorPreference, KvmStatus, KvmUnavailable};
use mayfly_network::NetworkError;

/// A request for a microVM.
#[derive(Debug, Clone)]
pub struct MicrovmRequest {
    /// When it was requested ([`super::plan::monotonic`]).
    pub requested_at: u64,
    /// The image, by name and optional digest.
    pub image: Reference,
    /// Which signatures of the image are trusted.
    pub trust: Trust,
    /// The preferred accelerator.
    pub accelerator: AcceleratorPreference,
    /// Virtual processors.
    pub processors: u32,
    /// Memory of the guest.
    pub memory: Size,
    /// Size of the root disk; [`DEFAULT_DISK`] if `None`.
    pub disk: Option<Size>,
    /// The destinations that the guest may reach.
    pub egress: Policy,
    /// The directory of the egress record; the microVM's own if `None`.
    pub egress_record: Option<PathBuf>,
    /// The deadlines. `boot` is multiplied by the accelerator's factor.
    pub deadlines: Deadlines,
    /// The exact boot deadline, if set.
    pub boot: Option<Duration>,
    /// Output limits of a detached microVM. `None` if attached.
    pub detached: Option<DetachedLimits>,
}

/// An error of planning a microVM.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The image is missing or was changed.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The disk is too small for the image.
    #[error("a disk of {requested} is smaller than the {least} that image {image} needs")]
    Disk {
        /// The requested size.
        requested: Size,
        /// The minimum size for the image.
        least: Size,
        /// The image's name.
        image: String,
    },
    /// The accelerator can't be used.
    #[error(transparent)]
    Accelerator(#[from] KvmUnavailable),
    /// A program is missing.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The tap device can't be used.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The request exceeds the host's capacity.
    #[error(transparent)]
    Capacity(#[from] CapacityError),
    /// The host's memory can't be read.
    #[error("can't read /proc/meminfo")]
    Memory(#[source] io::Error),
    /// No random bytes for the name.
    #[error("can't read random bytes from the kernel")]
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
            Self::Memory(_) | Self::Random(_) => Code::Unavailable,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Image(error) => error.hint(),
            Self::Accelerator(error) => error.hint(),
            Self::Program(error) => error.hint(),
            Self::Network(error) => error.hint(),
            Self::Capacity(error) => error.hint(),
            Self::Disk { .. } | Self::Memory(_) | Self::Random(_) => None,
        }
    }
}

/// Plans a microVM under a new name. Also returns a warning if a worse accelerator was chosen.
///
/// Reads files and hashes those of an image that is not verified yet, so it must not run on the
/// thread of an event loop.
pub fn plan(
    request: MicrovmRequest,
    state: &StateDirectory,
) -> Result<(MicrovmPlan, Option<String>), PlanError> {
    plan_from(request, &Store::open(state.images()), state)
}

/// Plans a microVM with an image from the given store.
pub fn plan_from(
    request: MicrovmRequest,
    store: &Store,
    state: &StateDirectory,
) -> Result<(MicrovmPlan, Option<String>), PlanError> {
    let image = store.find(&request.image)?;
    let disk = disk(request.disk, &image)?;
    let (accelerator, why) = accelerator::choose(request.accelerator, &KvmStatus::read())?;
    let warning = why.map(|why| format!("{why}; using {accelerator}"));
    let programs = MachinePrograms {
        qemu: QEMU.find()?,
        qemu_img: QEMU_IMG.find()?,
        vsock: VHOST_DEVICE_VSOCK.find()?,
    };
    mayfly_network::require_tun()?;
    let capacity = Capacity::read().map_err(PlanError::Memory)?;
    capacity.admit(request.processors, request.memory)?;
    // Last, because it reads all of an image that is not verified yet.
    store.ensure_verified(&image, &state.verified(), &request.trust)?;
    let id = MicrovmId::new().map_err(PlanError::Random)?;
    let directory = state.microvms().join(id.as_str());
    let default_boot = request.deadlines.boot * accelerator.profile().boot_time_factor;
    let plan = MicrovmPlan {
        id,
        requested_at: request.requested_at,
        image: format!("{}@{}", image.name, image.digest.short()),
        boot: BootFiles {
            directory: image.directory.clone(),
            kernel: image.kernel(),
            initramfs: image.initramfs(),
            rootfs: image.rootfs(),
            arguments: image.manifest.kernel.command_line.clone(),
        },
        accelerator,
        processors: request.processors,
        memory: request.memory,
        disk,
        egress: request.egress,
        egress_record: request.egress_record.unwrap_or_else(|| directory.clone()),
        deadlines: Deadlines { boot: request.boot.unwrap_or(default_boot), ..request.deadlines },
        programs,
        directory,
        private: state.private(),
        detached: request.detached,
    };
    Ok((plan, warning))
}

/// Generous, because only what the guest writes takes space on the host.
const DEFAULT_DISK: Size = Size::gibibytes(16);

fn disk(requested: Option<Size>, image: &Image) -> Result<Size, PlanError> {
    let least = Size(image.manifest.parts.rootfs.bytes);
    match requested {
        Some(requested) if requested < least => {
            Err(PlanError::Disk { requested, least, image: image.name.to_string() })
        }
        Some(requested) => Ok(requested),
        None => Ok(DEFAULT_DISK.max(least)),
    }
}

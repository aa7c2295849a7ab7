//! From arguments to a plan: everything is looked up and checked before anything is started.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use mayfly_protocol::frame;
use mayfly_protocol::message::{Bytes, Job};

use super::arguments::RunArguments;
use super::terminal;
use crate::cli::report::{self, Problem};
use crate::egress::policy::Policies;
use crate::failure::Code;
use crate::host::capacity::Capacity;
use crate::host::programs::{QEMU, QEMU_IMG, VHOST_DEVICE_VSOCK};
use crate::host::size::Size;
use crate::host::state::StateDirectory;
use crate::image::{Image, Reference, Store};
use crate::machine::Programs;
use crate::machine::accelerator::{self, Accelerator, Facts};
use crate::shepherd::HandleError;
use crate::shepherd::plan::{Boot, Deadlines, Id, Order, Plan};

/// The microVM that the arguments ask for.
pub(super) fn plan(
    arguments: &RunArguments,
    state: &StateDirectory,
    asked: u64,
) -> Result<Plan, Problem> {
    let image = find_image(arguments, state)?;
    let disk = disk(arguments, &image)?;
    let (accelerator, why) = accelerator::choose(arguments.accel, &Facts::gather())?;
    if let Some(why) = why {
        warn(&format!("{why}; using {accelerator}"));
    }
    let programs = Programs {
        qemu: QEMU.find()?,
        qemu_img: QEMU_IMG.find()?,
        vsock: VHOST_DEVICE_VSOCK.find()?,
    };
    crate::network::require_tun()?;
    let capacity = Capacity::read().map_err(|error| {
        Problem::file(format!("can't read /proc/meminfo: {error}"), Code::Unavailable)
    })?;
    capacity.admit(arguments.cpus, arguments.memory)?;
    let egress = Policies::read(arguments.config.as_deref())?.get(&arguments.egress)?.clone();
    let id = Id::new()
        .map_err(|error| Problem::file(format!("no random bytes: {error}"), Code::Unavailable))?;
    let directory = state.microvms().join(id.as_str());
    let egress_record = match &arguments.egress_record {
        Some(chosen) => record_directory(chosen)?,
        None => directory.clone(),
    };
    Ok(Plan {
        directory,
        egress,
        egress_record,
        private: state.private(),
        id,
        asked,
        image: format!("{}@{}", image.name, image.digest.short()),
        boot: Boot {
            kernel: image.kernel(),
            initramfs: image.initramfs(),
            rootfs: image.rootfs(),
            arguments: image.manifest.kernel.command_line.clone(),
        },
        accelerator,
        processors: arguments.cpus,
        memory: arguments.memory,
        disk,
        deadlines: deadlines(arguments, accelerator),
        programs,
    })
}

/// The command that the arguments ask for.
pub(super) fn job(arguments: &RunArguments) -> Result<Job, Problem> {
    let bytes = |text: &std::ffi::OsStr| Bytes::from(text.as_bytes().to_vec());
    let environment = arguments.env.iter().map(|(name, value)| (bytes(name), bytes(value)));
    // A command with a terminal wants to know which.
    let term = arguments.tty.then(|| std::env::var_os("TERM")).flatten();
    let term = term.map(|term| (bytes("TERM".as_ref()), bytes(&term)));
    let job = Job {
        arguments: arguments.command.iter().map(|text| bytes(text)).collect(),
        environment: term.into_iter().chain(environment).collect(),
        directory: arguments.workdir.as_deref().map(bytes),
        user: arguments.user.clone(),
        terminal: arguments.tty.then(terminal::size),
        stdin: arguments.interactive,
        copy_in: arguments.copy_in.iter().map(|copy| copy.guest.clone().into()).collect(),
        copy_out: arguments.copy_out.iter().map(|copy| copy.guest.clone().into()).collect(),
    };
    // What does not fit is found out before anything is started.
    frame::encode(&Order::Start(Box::new(job.clone()))).map_err(HandleError::TooLong)?;
    Ok(job)
}

fn find_image(arguments: &RunArguments, state: &StateDirectory) -> Result<Image, Problem> {
    let reference: Reference = arguments
        .image
        .parse()
        .map_err(|error| Problem::usage(format!("--image {}: {error}", arguments.image)))?;
    let store = Store::open(state.images());
    let image = store.find(&reference)?;
    store.ensure_verified(&image, &state.verified())?;
    Ok(image)
}

/// The shepherd works elsewhere, so the path must not depend on where it is.
fn record_directory(chosen: &Path) -> Result<PathBuf, Problem> {
    let made = std::fs::create_dir_all(chosen).and_then(|()| std::fs::canonicalize(chosen));
    made.map_err(|error| {
        Problem::file(format!("--egress-record {}: {error}", chosen.display()), Code::CannotWrite)
    })
}

/// Only what is written takes room on the host, so the usual disk is a roomy one.
const USUAL_DISK: Size = Size::gibibytes(16);

fn disk(arguments: &RunArguments, image: &Image) -> Result<Size, Problem> {
    let least = Size(image.manifest.parts.rootfs.bytes);
    match arguments.disk {
        Some(size) if size < least => Err(Problem::usage(format!(
            "--disk {size} is less than the {least} of the image {}",
            image.name
        ))),
        Some(size) => Ok(size),
        None => Ok(USUAL_DISK.max(least)),
    }
}

/// The usual deadlines, but for those that were asked for.
fn deadlines(arguments: &RunArguments, accelerator: Accelerator) -> Deadlines {
    let usual = Deadlines::default();
    let boot = arguments.boot_timeout.unwrap_or(usual.boot * accelerator.profile().patience);
    Deadlines { job: arguments.timeout, boot, ..usual }
}

/// A warning is for a person; a program reads the events.
fn warn(message: &str) {
    if std::io::IsTerminal::is_terminal(&std::io::stderr()) {
        report::warning(message);
    }
}

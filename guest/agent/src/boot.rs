//! Stage one: from the initramfs to the root file system.
//!
//! The switch moves mounts within this process, without `exec`, so no file system that the job sees
//! contains the agent's binary.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use mayfly_protocol::settings::GuestSettings;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

use crate::error::{Context, StepError};
use crate::{grow, modules, settings};

/// The device of the root file system: the machine's first virtio disk.
const ROOT_DEVICE: &str = "/dev/vda";

/// Where the root file system is mounted before it becomes the root.
const NEW_ROOT: &str = "/root";

/// The time limit for the root device to appear. Its driver probes it before the agent checks, so
/// it appears at once unless the host attached no disk.
const DEVICE_DEADLINE: Duration = Duration::from_secs(5);

/// A disk that is discarded with the machine needs no write barriers.
const ROOT_OPTIONS: &str = "nobarrier";

/// Loads the drivers and makes `/dev/vda` the root of this process, with `/dev` in it. Returns the
/// settings of the image.
pub fn enter_root() -> Result<GuestSettings, StepError> {
    load_drivers()?;
    let settings = settings::load(Path::new("/settings"))?;
    create_directory(NEW_ROOT)?;
    let flags = root_flags(&settings);
    mount(Some(ROOT_DEVICE), NEW_ROOT, Some("ext4"), flags, Some(ROOT_OPTIONS))
        .context(|| format!("mount the root file system {ROOT_DEVICE}"))?;
    grow::to_device(Path::new(ROOT_DEVICE), Path::new(NEW_ROOT))?;
    fs::remove_file("/init").context(|| "remove /init")?;
    switch()?;
    Ok(settings)
}

fn root_flags(settings: &GuestSettings) -> MsFlags {
    let mut flags = MsFlags::MS_NOATIME;
    flags.set(MsFlags::MS_NODEV, settings.root_nodev);
    flags.set(MsFlags::MS_NOSUID, settings.root_nosuid);
    flags
}

/// Loads the modules of the initramfs and waits for the root device.
pub fn load_drivers() -> Result<(), StepError> {
    mount_devices()?;
    modules::load_listed(Path::new("/modules"))?;
    wait_for(Path::new(ROOT_DEVICE))
}

/// Mounts the kernel's device nodes.
fn mount_devices() -> Result<(), StepError> {
    create_directory("/dev")?;
    mount(Some("devtmpfs"), "/dev", Some("devtmpfs"), MsFlags::MS_NOSUID, Some("mode=755"))
        .context(|| "mount the device nodes on /dev")
}

/// Makes the mounted root file system the root.
fn switch() -> Result<(), StepError> {
    const NONE: Option<&str> = None;
    let devices = format!("{NEW_ROOT}/dev");
    create_directory(&devices)?;
    mount(Some("/dev"), devices.as_str(), NONE, MsFlags::MS_MOVE, NONE)
        .context(|| "move /dev to the root file system")?;
    chdir(NEW_ROOT).context(|| "enter the root file system")?;
    mount(Some("."), "/", NONE, MsFlags::MS_MOVE, NONE)
        .context(|| "move the root file system to /")?;
    chroot(".").context(|| "make the root file system the root")?;
    chdir("/").context(|| "enter the new root")
}

/// Waits until the kernel has created a device node.
fn wait_for(node: &Path) -> Result<(), StepError> {
    let start = Instant::now();
    while !node.exists() {
        if start.elapsed() > DEVICE_DEADLINE {
            return Err(Errno::ENODEV).context(|| format!("wait for {}", node.display()));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Creates a directory, unless it exists.
pub(crate) fn create_directory(path: &str) -> Result<(), StepError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(error).context(|| format!("create the directory {path}"))
        }
        _ => Ok(()),
    }
}

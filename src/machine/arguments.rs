//! QEMU's command line, as a pure function of the machine's specification.
//!
//! Nothing depends on defaults that a distribution or a configuration file could change: there are
//! no default devices, no configuration files, and no monitor besides the control socket. QEMU
//! inherits descriptors wherever it accepts them. Kernel and initramfs it only accepts as paths;
//! these are in its own root.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

use super::accelerator::{Accelerator, AcceleratorProfile};
use super::overlay;
use mayfly_host::size::Size;
use mayfly_network::GUEST_MAC;

/// The specification of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineSpec {
    /// Name of the process, as `ps` shows it.
    pub name: String,
    /// What executes the guest's instructions.
    pub accelerator: Accelerator,
    /// Virtual processors.
    pub processors: u32,
    /// Memory of the guest.
    pub memory: Size,
    /// Size of the root disk.
    pub disk: Size,
    /// The uncompressed kernel.
    pub kernel: PathBuf,
    /// The initial file system.
    pub initramfs: PathBuf,
    /// Kernel arguments that the image requires.
    pub kernel_arguments: String,
}

/// The descriptors that QEMU inherits, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QemuDescriptors {
    /// The control socket (QMP).
    pub control: RawFd,
    /// The serial console's socket.
    pub console: RawFd,
    /// The connection to the vsock backend (vhost-user).
    pub vsock: RawFd,
    /// The tap device.
    pub tap: RawFd,
    /// The image's root file system, open for reading.
    pub base: RawFd,
    /// The overlay.
    pub overlay: RawFd,
}

/// Path of the kernel in QEMU's root.
pub(super) const KERNEL_FILE: &str = "/kernel";
/// Path of the initial file system in QEMU's root.
pub(super) const INITRAMFS: &str = "/initramfs";

/// Kernel arguments of every machine. With `-no-reboot`, `reboot=t` makes QEMU exit at once on a
/// reboot and, with `panic=-1`, on a panic. Arguments for a faster boot are up to the image.
const KERNEL: &str = "console=ttyS0 quiet reboot=t panic=-1";

/// The sandbox: system calls that QEMU gives up before the guest's first instruction.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// Returns QEMU's command line for a machine, without the program's name.
///
/// `frequency` is that of the time stamp counter, in kHz, if the kernel needs it.
pub fn arguments(
    machine: &MachineSpec,
    frequency: Option<u64>,
    descriptors: QemuDescriptors,
) -> Vec<OsString> {
    let profile = machine.accelerator.profile();
    let mut line = CommandLine::default();
    line.option("-name", format!("{},process={}", machine.name, machine.name));
    line.platform(profile);
    line.option("-smp", machine.processors.to_string());
    line.option("-m", format!("size={}b", machine.memory.0));
    // Shared, because the vsock backend reads the device's queues there.
    line.option(
        "-object",
        format!("memory-backend-memfd,id=memory,size={},share=on", machine.memory.0),
    );
    line.flags(&["-nodefaults", "-no-user-config", "-no-reboot", "-S"]);
    line.option("-display", "none");
    line.option("-sandbox", SANDBOX);
    line.control(descriptors);
    line.kernel(machine, profile, frequency);
    line.disk(machine, descriptors);
    line.network(descriptors);
    line.0
}

#[derive(Default)]
struct CommandLine(Vec<OsString>);

impl CommandLine {
    fn option(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.extend([name.into(), value.into()]);
    }

    fn flags(&mut self, names: &[&str]) {
        self.0.extend(names.iter().map(OsString::from));
    }

    /// Adds everything that is specific to x86-64. Another architecture needs another machine type
    /// (`virt` on aarch64), firmware, console device, and accelerator profiles.
    fn platform(&mut self, profile: &AcceleratorProfile) {
        self.option(
            "-machine",
            format!("microvm,{},acpi=on,ioapic2=off,memory-backend=memory", profile.machine),
        );
        // The fastest firmware for an uncompressed kernel; under emulation, the only reliable one.
        self.option("-bios", "qboot.rom");
        self.option("-cpu", profile.processor);
    }

    fn control(&mut self, descriptors: QemuDescriptors) {
        let QemuDescriptors { control, console, vsock, .. } = descriptors;
        self.option("-chardev", format!("socket,id=control,fd={control}"));
        self.option("-mon", "chardev=control,mode=control");
        self.option("-chardev", format!("socket,id=console,fd={console}"));
        self.option("-serial", "chardev:console");
        self.option("-chardev", format!("socket,id=vsock,fd={vsock}"));
        self.option("-device", "vhost-user-vsock-device,chardev=vsock");
    }

    fn kernel(
        &mut self,
        machine: &MachineSpec,
        profile: &AcceleratorProfile,
        frequency: Option<u64>,
    ) {
        self.option("-kernel", KERNEL_FILE);
        self.option("-initrd", INITRAMFS);
        let frequency = frequency.map(|khz| format!("tsc_early_khz={khz}")).unwrap_or_default();
        let arguments = [KERNEL, profile.kernel, &frequency, &machine.kernel_arguments];
        let arguments: Vec<&str> = arguments.into_iter().filter(|part| !part.is_empty()).collect();
        self.option("-append", arguments.join(" "));
    }

    /// Adds the overlay on top of the image. Flushes are dropped, because the disk does not outlive
    /// its process. Discarded and zeroed blocks are returned to the host.
    fn disk(&mut self, machine: &MachineSpec, descriptors: QemuDescriptors) {
        let QemuDescriptors { base, overlay, .. } = descriptors;
        self.option("-add-fd", format!("fd={base},set=1"));
        self.option("-add-fd", format!("fd={overlay},set=2"));
        self.option(
            "-blockdev",
            "driver=file,node-name=base-file,filename=/dev/fdset/1,read-only=on,locking=off",
        );
        self.option("-blockdev", "driver=raw,node-name=base,file=base-file,read-only=on");
        self.option(
            "-blockdev",
            "driver=file,node-name=overlay-file,filename=/dev/fdset/2,locking=off,\
             discard=unmap,cache.no-flush=on",
        );
        self.option(
            "-blockdev",
            format!(
                "driver=qcow2,node-name=root,file=overlay-file,backing=base,discard=unmap,\
                 detect-zeroes=unmap,cache.no-flush=on,l2-cache-size={}",
                overlay::table_cache(machine.disk)
            ),
        );
        self.option("-device", "virtio-blk-device,drive=root,serial=root");
    }

    fn network(&mut self, descriptors: QemuDescriptors) {
        self.option("-netdev", format!("tap,id=network,fd={}", descriptors.tap));
        self.option("-device", format!("virtio-net-device,netdev=network,mac={GUEST_MAC}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(accelerator: Accelerator) -> String {
        let machine = MachineSpec {
            name: "m-0123456789".to_owned(),
            accelerator,
            processors: 2,
            memory: Size::gibibytes(1),
            disk: Size::gibibytes(16),
            kernel: "/images/base/kernel".into(),
            initramfs: "/images/base/initramfs".into(),
            kernel_arguments: "audit=0".to_owned(),
        };
        let descriptors =
            QemuDescriptors { control: 10, console: 11, vsock: 12, tap: 13, base: 14, overlay: 15 };
        let frequency = accelerator.profile().needs_tsc_frequency.then_some(2_000_000);
        let line = arguments(&machine, frequency, descriptors);
        let words: Vec<_> = line.iter().map(|word| word.to_string_lossy()).collect();
        words.join("\n").replace("\n-", "\n\n-")
    }

    #[test]
    fn a_machine_on_kvm() {
        insta::assert_snapshot!(shown(Accelerator::Kvm));
    }

    #[test]
    fn a_machine_in_emulation() {
        insta::assert_snapshot!(shown(Accelerator::Tcg));
    }
}

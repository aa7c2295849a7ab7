//! QEMU's command line: one pure function from what a machine is to how QEMU is told.
//!
//! Nothing is left to a default that a distribution or a configuration file could change: no
//! default devices, no configuration files, no monitor beside the control socket. Whatever QEMU
//! takes as a descriptor, it gets as one; kernel and initramfs it takes by path only, and has both in
//! its own root.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

use super::accelerator::{Accelerator, Profile};
use super::overlay;
use crate::host::size::Size;
use crate::network::GUEST_MAC;

/// A machine, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Specification {
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
    /// Kernel arguments that the image wants.
    pub kernel_arguments: String,
}

/// The descriptors that QEMU inherits, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptors {
    /// The control socket (QMP).
    pub control: RawFd,
    /// The serial console's socket.
    pub console: RawFd,
    /// The connection to the vsock device's other end (vhost-user).
    pub vsock: RawFd,
    /// The tap device.
    pub tap: RawFd,
    /// The image's root file system, open for reading.
    pub base: RawFd,
    /// The overlay.
    pub overlay: RawFd,
}

/// The kernel, as QEMU sees it.
pub(super) const KERNEL_FILE: &str = "/kernel";
/// The initial file system, as QEMU sees it.
pub(super) const INITRAMFS: &str = "/initramfs";

/// Kernel arguments of every machine. `reboot=t` with `-no-reboot` makes both a reboot and, with
/// `panic=-1`, a panic end QEMU at once. What makes a kernel start faster is the image's to say.
const KERNEL: &str = "console=ttyS0 quiet reboot=t panic=-1";

/// System calls that QEMU gives up before the guest's first instruction.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// The command line that makes QEMU this machine, without the program's own name.
///
/// `frequency` is that of the time stamp counter, in kHz, where the kernel must be told.
pub fn arguments(
    machine: &Specification,
    frequency: Option<u64>,
    descriptors: Descriptors,
) -> Vec<OsString> {
    let profile = machine.accelerator.profile();
    let mut line = Line::default();
    line.option("-name", format!("{},process={}", machine.name, machine.name));
    line.platform(profile);
    line.option("-smp", machine.processors.to_string());
    line.option("-m", format!("size={}b", machine.memory.0));
    // Shared, because the vsock device's other end reads its queues there.
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
struct Line(Vec<OsString>);

impl Line {
    fn option(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.extend([name.into(), value.into()]);
    }

    fn flags(&mut self, names: &[&str]) {
        self.0.extend(names.iter().map(OsString::from));
    }

    /// All that is x86-64: another architecture has another machine type (`virt` on aarch64),
    /// firmware and console device, and its own column in the accelerators' table.
    fn platform(&mut self, profile: &Profile) {
        self.option(
            "-machine",
            format!("microvm,{},acpi=on,ioapic2=off,memory-backend=memory", profile.machine),
        );
        // With the uncompressed kernel the fastest, and under emulation the only reliable, pair.
        self.option("-bios", "qboot.rom");
        self.option("-cpu", profile.processor);
    }

    fn control(&mut self, descriptors: Descriptors) {
        let Descriptors { control, console, vsock, .. } = descriptors;
        self.option("-chardev", format!("socket,id=control,fd={control}"));
        self.option("-mon", "chardev=control,mode=control");
        self.option("-chardev", format!("socket,id=console,fd={console}"));
        self.option("-serial", "chardev:console");
        self.option("-chardev", format!("socket,id=vsock,fd={vsock}"));
        self.option("-device", "vhost-user-vsock-device,chardev=vsock");
    }

    fn kernel(&mut self, machine: &Specification, profile: &Profile, frequency: Option<u64>) {
        self.option("-kernel", KERNEL_FILE);
        self.option("-initrd", INITRAMFS);
        let frequency = frequency.map(|khz| format!("tsc_early_khz={khz}")).unwrap_or_default();
        let arguments = [KERNEL, profile.kernel, &frequency, &machine.kernel_arguments];
        let arguments: Vec<&str> = arguments.into_iter().filter(|part| !part.is_empty()).collect();
        self.option("-append", arguments.join(" "));
    }

    /// The overlay over the image. Flushes are dropped (the disk lives no longer than its
    /// process), discarded and zeroed blocks are given back to the host.
    fn disk(&mut self, machine: &Specification, descriptors: Descriptors) {
        let Descriptors { base, overlay, .. } = descriptors;
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

    fn network(&mut self, descriptors: Descriptors) {
        self.option("-netdev", format!("tap,id=network,fd={}", descriptors.tap));
        self.option("-device", format!("virtio-net-device,netdev=network,mac={GUEST_MAC}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(accelerator: Accelerator) -> String {
        let machine = Specification {
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
            Descriptors { control: 10, console: 11, vsock: 12, tap: 13, base: 14, overlay: 15 };
        let frequency = accelerator.profile().tell_frequency.then_some(2_000_000);
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

//! QEMU's command line: one pure function from what a machine is to how QEMU is told.
//!
//! Nothing is left to a default that a distribution or a configuration file could change: no
//! default devices, no configuration files, no monitor beside the control socket. Whatever QEMU
//! takes as a descriptor, it gets as one; kernel and initramfs it takes by path only.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

use super::accelerator::Accelerator;
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

/// Kernel arguments of every machine. `reboot=t` with `-no-reboot` makes both a reboot and, with
/// `panic=-1`, a panic end QEMU at once; the rest is start-up time.
const KERNEL: &str = "console=ttyS0 quiet reboot=t panic=-1 8250.nr_uarts=1 cryptomgr.notests \
                      random.trust_cpu=on rcupdate.rcu_expedited=1 audit=0";

/// System calls that QEMU gives up before the guest's first instruction.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// The command line that makes QEMU this machine, without the program's own name.
///
/// Only x86-64 is built. Another architecture has another machine type (`virt` on aarch64),
/// console device and firmware; what is added here for it is the first four arguments' source.
pub fn arguments(machine: &Specification, descriptors: Descriptors) -> Vec<OsString> {
    let profile = machine.accelerator.profile();
    let mut line = Line::default();
    line.option("-name", format!("{},process={}", machine.name, machine.name));
    line.option(
        "-machine",
        format!("microvm,{},acpi=on,ioapic2=off,memory-backend=memory", profile.machine),
    );
    line.option("-bios", "qboot.rom");
    line.option("-cpu", profile.processor);
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
    line.kernel(machine, profile.kernel);
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

    fn control(&mut self, descriptors: Descriptors) {
        let Descriptors { control, console, vsock, .. } = descriptors;
        self.option("-chardev", format!("socket,id=control,fd={control}"));
        self.option("-mon", "chardev=control,mode=control");
        self.option("-chardev", format!("socket,id=console,fd={console}"));
        self.option("-serial", "chardev:console");
        self.option("-chardev", format!("socket,id=vsock,fd={vsock}"));
        self.option("-device", "vhost-user-vsock-device,chardev=vsock");
    }

    fn kernel(&mut self, machine: &Specification, accelerator_arguments: &str) {
        self.option("-kernel", &machine.kernel);
        self.option("-initrd", &machine.initramfs);
        let arguments = [KERNEL, accelerator_arguments, &machine.kernel_arguments];
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

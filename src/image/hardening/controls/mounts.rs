//! Controls of the mounts in a guest.

use mayfly_protocol::settings::GuestSettings;

use crate::hardening::expect::CheckResult;
use crate::hardening::{Conflict, Control, Expectation, Measure, Probe, ProbeUser};

pub(super) const CONTROLS: &[Control] = &[
    Control {
        name: "mounts.root-nodev",
        title: "Device nodes in the root file system have no effect.",
        why: "A job that is root could create one for the disk. Containers have a /dev of their \
              own.",
        reference: "CIS Debian 12, 1.1.2",
        conflict: Conflict::None,
        measures: &[Measure::Setting(|settings| settings.root_nodev = true)],
        probe: Some(Probe {
            user: ProbeUser::Root,
            script: FLAGS_OF_ROOT,
            expect: Expectation::Contains(&["nodev"]),
        }),
    },
    Control {
        name: "mounts.root-nosuid",
        title: "Set-user-id bits in the root file system have no effect.",
        why: "This includes programs of packages that a job installs later.",
        reference: "CIS Debian 12, 1.1.2",
        conflict: Conflict::Sudo,
        measures: &[Measure::Setting(|settings| settings.root_nosuid = true)],
        probe: Some(Probe {
            user: ProbeUser::Root,
            script: FLAGS_OF_ROOT,
            expect: Expectation::Contains(&["nosuid"]),
        }),
    },
    Control {
        name: "mounts.data",
        title: "Device nodes and set-user-id bits in /home and /var have no effect, and nothing in \
                /var/log can be executed.",
        why: "It also applies where the recipe enables sudo, unlike nosuid on the root file \
              system. /home, /var and the rest are one disk but several mounts, so hard \
              links between them fail, as between /tmp and the rest.",
        reference: "CIS Debian 12, 1.1.2.3 to 1.1.2.6; Lynis FILE-6310, FILE-6374",
        conflict: Conflict::None,
        measures: &[Measure::Setting(|settings| settings.restrict_data = true)],
        probe: Some(Probe {
            user: ProbeUser::Root,
            script: "awk '$2 ~ /^\\/(home|var|var\\/log)$/ {
                print $2, ($4 ~ /nodev/ ? \"nodev\" : \"\"), ($4 ~ /nosuid/ ? \"nosuid\" : \"\"),
                    ($4 ~ /noexec/ ? \"noexec\" : \"\")
                }' /proc/mounts | sort",
            expect: Expectation::Lines(&[
                "/home nodev nosuid",
                "/var nodev nosuid",
                "/var/log nodev nosuid noexec",
            ]),
        }),
    },
    Control {
        name: "mounts.temporary",
        title: "Device nodes and set-user-id bits in world-writable directories have no effect.",
        why: "Programs in /tmp can be executed, because builds put them there.",
        reference: "CIS Debian 12, 1.1.2.1 to 1.1.2.7; Lynis FILE-6374",
        conflict: Conflict::None,
        measures: &[],
        probe: Some(Probe {
            user: ProbeUser::Root,
            script: "awk '$2 ~ /^\\/(tmp|var\\/tmp|dev\\/shm|run)$/ {
                print $2, ($4 ~ /nodev/ ? \"nodev\" : \"\"), ($4 ~ /nosuid/ ? \"nosuid\" : \"\")
                }' /proc/mounts | sort",
            expect: Expectation::Lines(&[
                "/dev/shm nodev nosuid",
                "/run nodev nosuid",
                "/tmp nodev nosuid",
                "/var/tmp nodev nosuid",
            ]),
        }),
    },
    Control {
        name: "mounts.hidden-processes",
        title: "Users see only their own processes.",
        why: "Command lines of other users, including root, are private.",
        reference: "Lynis FILE-6344",
        conflict: Conflict::None,
        measures: &[Measure::Setting(|settings| settings.hide_processes = true)],
        probe: Some(Probe {
            user: ProbeUser::Job,
            script: "ls -d /proc/[0-9]* | while read -r directory; do
                    [ ! -e $directory ] || [ \"$(stat -c %u $directory)\" = \"$(id -u)\" ] || echo $directory
                done",
            expect: Expectation::Nothing,
        }),
    },
    Control {
        name: "mounts.documented",
        title: "Only the documented mounts exist.",
        why: "A job sees its disk, memory and the kernel's own file systems, but nothing of the \
              host and no initramfs.",
        reference: "",
        conflict: Conflict::None,
        measures: &[],
        probe: Some(Probe {
            user: ProbeUser::Job,
            script: "awk '{print $3, $2}' /proc/self/mounts",
            expect: Expectation::Custom(only_documented),
        }),
    },
];

/// Prints the mount options of the root file system, one per line.
const FLAGS_OF_ROOT: &str = "awk '$2 == \"/\" {print $4}' /proc/mounts | tr , '\\n'";

/// Type and mount point of every mount that an agent makes.
pub(in crate::hardening) const DOCUMENTED: [&str; 13] = [
    "devtmpfs /dev",
    "ext4 /",
    "proc /proc",
    "sysfs /sys",
    "devpts /dev/pts",
    "tmpfs /dev/shm",
    "tmpfs /run",
    "cgroup2 /sys/fs/cgroup",
    "ext4 /home",
    "ext4 /var",
    "ext4 /var/log",
    "ext4 /tmp",
    "ext4 /var/tmp",
];

fn only_documented(_: &GuestSettings, lines: &[&str]) -> CheckResult {
    let others: Vec<&str> =
        lines.iter().copied().filter(|line| !DOCUMENTED.contains(line)).collect();
    match (lines.is_empty(), others.is_empty()) {
        (true, _) => CheckResult::fail("no mounts were found"),
        (false, true) => CheckResult::pass(format!("{} mounts", lines.len())),
        (false, false) => CheckResult::fail(others.join(", ")),
    }
}

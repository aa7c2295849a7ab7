//! The file systems of a guest.

use mayfly_protocol::settings::Settings;

use crate::image::hardening::expect::Verdict;
use crate::image::hardening::{By, Control, Expect, Measure, Probe, Unless};

pub(super) const CONTROLS: &[Control] = &[
    Control {
        name: "mounts.root-nodev",
        title: "A device node in the root file system is no device.",
        why: "A job that is root would make one for the disk. Containers have a /dev of their own.",
        reference: "CIS Debian 12, 1.1.2",
        unless: Unless::Never,
        measures: &[Measure::Setting(|settings| settings.root_nodev = true)],
        probe: Some(Probe { by: By::Root, script: FLAGS_OF_ROOT, expect: Expect::Among(&["nodev"]) }),
    },
    Control {
        name: "mounts.root-nosuid",
        title: "A set-user-id bit in the root file system does not count.",
        why: "Also one that appears later, by a package that a job installs.",
        reference: "CIS Debian 12, 1.1.2",
        unless: Unless::Sudo,
        measures: &[Measure::Setting(|settings| settings.root_nosuid = true)],
        probe: Some(Probe { by: By::Root, script: FLAGS_OF_ROOT, expect: Expect::Among(&["nosuid"]) }),
    },
    Control {
        name: "mounts.data",
        title: "In /home and /var neither device nodes nor set-user-id bits count, and nothing in \
                /var/log is executed.",
        why: "It holds where the recipe has sudo, too, and the rest of the root can't have it. \
              /home, /var and the rest are one disk but several mounts: a hard link from one to \
              another is refused, as between /tmp and the rest.",
        reference: "CIS Debian 12, 1.1.2.3 to 1.1.2.6; Lynis FILE-6310, FILE-6374",
        unless: Unless::Never,
        measures: &[Measure::Setting(|settings| settings.restrict_data = true)],
        probe: Some(Probe {
            by: By::Root,
            script: "awk '$2 ~ /^\\/(home|var|var\\/log)$/ {
                print $2, ($4 ~ /nodev/ ? \"nodev\" : \"\"), ($4 ~ /nosuid/ ? \"nosuid\" : \"\"),
                    ($4 ~ /noexec/ ? \"noexec\" : \"\")
                }' /proc/mounts | sort",
            expect: Expect::Lines(&[
                "/home nodev nosuid",
                "/var nodev nosuid",
                "/var/log nodev nosuid noexec",
            ]),
        }),
    },
    Control {
        name: "mounts.temporary",
        title: "What everybody may write to holds neither devices nor set-user-id programs.",
        why: "Programs in /tmp do run: builds put them there.",
        reference: "CIS Debian 12, 1.1.2.1 to 1.1.2.7; Lynis FILE-6374",
        unless: Unless::Never,
        measures: &[],
        probe: Some(Probe {
            by: By::Root,
            script: "awk '$2 ~ /^\\/(tmp|var\\/tmp|dev\\/shm|run)$/ {
                print $2, ($4 ~ /nodev/ ? \"nodev\" : \"\"), ($4 ~ /nosuid/ ? \"nosuid\" : \"\")
                }' /proc/mounts | sort",
            expect: Expect::Lines(&[
                "/dev/shm nodev nosuid",
                "/run nodev nosuid",
                "/tmp nodev nosuid",
                "/var/tmp nodev nosuid",
            ]),
        }),
    },
    Control {
        name: "mounts.hidden-processes",
        title: "A user sees only processes of its own.",
        why: "Command lines of others, root's included, are nobody's business.",
        reference: "Lynis FILE-6344",
        unless: Unless::Never,
        measures: &[Measure::Setting(|settings| settings.hide_processes = true)],
        probe: Some(Probe {
            by: By::Job,
            script: "ls -d /proc/[0-9]* | while read -r directory; do
                    [ ! -e $directory ] || [ \"$(stat -c %u $directory)\" = \"$(id -u)\" ] || echo $directory
                done",
            expect: Expect::Nothing,
        }),
    },
    Control {
        name: "mounts.documented",
        title: "There are no other mounts than the documented ones.",
        why: "A job sees its disk, memory and the kernel's own file systems; nothing of the host, \
              no initramfs.",
        reference: "",
        unless: Unless::Never,
        measures: &[],
        probe: Some(Probe {
            by: By::Job,
            script: "awk '{print $3, $2}' /proc/self/mounts",
            expect: Expect::Judged(only_documented),
        }),
    },
];

/// Options of the root, a line each.
const FLAGS_OF_ROOT: &str = "awk '$2 == \"/\" {print $4}' /proc/mounts | tr , '\\n'";

/// Kind and place of every mount that an agent makes.
pub(in crate::image::hardening) const DOCUMENTED: [&str; 13] = [
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

fn only_documented(_: &Settings, lines: &[&str]) -> Verdict {
    let others: Vec<&str> =
        lines.iter().copied().filter(|line| !DOCUMENTED.contains(line)).collect();
    match (lines.is_empty(), others.is_empty()) {
        (true, _) => Verdict::fail("no mounts were seen"),
        (false, true) => Verdict::pass(format!("{} mounts", lines.len())),
        (false, false) => Verdict::fail(others.join(", ")),
    }
}

//! The environment of a job in the image `runner`, checked from inside, in one boot. The table in
//! `docs/guide/images.md` is generated from the rows here.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::support::{Host, TIMEOUT};

/// A property of the job's environment, as seen by its user.
struct Row {
    /// Its name on the page.
    what: &'static str,
    /// A shell command that checks it.
    look: &'static str,
    /// The line that the command prints.
    prints: &'static str,
    /// Its description on the page.
    says: &'static str,
    /// The key of the recipe that changes it, for the page.
    change: &'static str,
}

const fn row(
    what: &'static str,
    look: &'static str,
    prints: &'static str,
    says: &'static str,
    change: &'static str,
) -> Row {
    Row { what, look, prints, says, change }
}

const ROWS: &[Row] = &[
    row("user", "id -un; id -u", "runner 1001", "`runner`, 1001", "`[[users]]`"),
    row("root", "sudo -n id -un", "root", "`sudo`, without a password", "`hardening.sudo = false`"),
    row(
        "files created by root",
        "sudo mkdir -p /opt/made && sudo sh -c 'echo text >/opt/made/file' && cat /opt/made/file",
        "text",
        "readable by all: `umask` 022 also with `sudo`",
        "",
    ),
    row(
        "Docker",
        "test -S /run/docker.sock && id -Gn | grep -ow docker",
        "docker",
        "the engine starts at its first use; the job's user may use it",
        "`docker = false`",
    ),
    row(
        "shell, locale",
        "echo $SHELL $LANG",
        "/bin/bash C.UTF-8",
        "Bash, `C.UTF-8`",
        "`[[users]]`",
    ),
    row("time zone", "date +%Z", "UTC", "UTC; the clock is set when the job starts", ""),
    row(
        "machine id",
        "grep -cxE '[0-9a-f]{32}' /etc/machine-id",
        "1",
        "unique to this microVM",
        "a file `/etc/machine-id` in the recipe",
    ),
    row(
        "host name",
        "getent hosts $(hostname) | wc -l",
        "1",
        "the microVM's ID, which resolves",
        "",
    ),
    row("open files", "ulimit -Sn; ulimit -Hn", "65536 1048576", "65,536, at most 1,048,576", ""),
    row("processes", "ulimit -Su", "unlimited", "limited only by the kernel", ""),
    row("core dumps", "ulimit -Hc", "0", "none", "`hardening.off = [\"job.no-core-dumps\"]`"),
    row("new files", "umask", "0022", "`umask` 022", "`hardening.off = [\"job.umask\"]`"),
    row("`vm.max_map_count`", "cat /proc/sys/vm/max_map_count", "262144", "262,144", "`[sysctl]`"),
    row(
        "inotify",
        "cd /proc/sys/fs/inotify; cat max_user_watches max_user_instances",
        "655360 1280",
        "655,360 watches, 1,280 instances",
        "`[sysctl]`",
    ),
    row(
        "inodes on the 16 GiB of `run`",
        "stat -fc %c /",
        "1048576",
        "1,048,576, one per 16 KiB",
        "`inodes`",
    ),
    row("swap", "grep -c / /proc/swaps", "0", "none", ""),
    row("IPv6", "ip -6 route show default | wc -l", "0", "loopback only", ""),
    row(
        "user namespaces",
        "unshare --user true 2>/dev/null && echo yes || echo no",
        "no",
        "only for root (affects the sandboxes of Bazel and browsers, and rootless Docker)",
        "`hardening.off = [\"kernel.user-namespaces\"]`",
    ),
    row(
        "tracing",
        "cat /proc/sys/kernel/yama/ptrace_scope",
        "1",
        "a debugger may trace only its own children",
        "`hardening.off = [\"kernel.tracing\"]`",
    ),
    row(
        "performance events",
        "cat /proc/sys/kernel/perf_event_paranoid",
        "3",
        "only for root: `sudo perf`",
        "`hardening.off = [\"kernel.tracing\"]`",
    ),
    row(
        "`io_uring`",
        "cat /proc/sys/kernel/io_uring_disabled",
        "1",
        "only for root",
        "`hardening.off = [\"kernel.io-uring\"]`",
    ),
    row(
        "kernel modules",
        "cat /proc/sys/kernel/modules_disabled; command -v modprobe || echo none",
        "1 none",
        "the image's modules are loaded, further loading is disabled; no `modprobe`",
        "`kernel.guest_modules`, `hardening.off = [\"kernel.modules-locked\"]`",
    ),
    row(
        "Node.js",
        "command -v node || echo none",
        "none",
        "not in `PATH`: use `actions/setup-node`; actions use the runner's own",
        "`packages = [\"nodejs\", \"npm\"]`",
    ),
    row(
        "`strace`, `gdb`",
        "command -v strace gdb || echo none",
        "none",
        "not installed: use `sudo apt-get install`",
        "`packages = [\"strace\", \"gdb\"]`",
    ),
    row(
        "tools",
        "for tool in git git-lfs curl jq zip unzip rsync gcc make cmake python3 pip3 docker; do \
         command -v $tool >/dev/null || echo $tool; done; echo all",
        "all",
        "Git with LFS, curl, jq, zip, rsync, C, CMake, Python",
        "`packages`",
    ),
];

/// Returns the table of the page.
fn table() -> String {
    let mut table = "| Property | Value | Changed by |\n|---|---|---|\n".to_owned();
    for Row { what, says, change, .. } in ROWS {
        writeln!(table, "| {what} | {says} | {change} |").unwrap();
    }
    table
}

#[test]
fn the_page_describes_the_jobs_environment() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guide/images.md");
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once("<!-- made: found -->\n").unwrap();
    let (_, after) = rest.split_once("<!-- end -->").unwrap();
    let made = format!("{before}<!-- made: found -->\n{}<!-- end -->{after}", table());
    if std::env::var_os("MAYFLY_WRITE_REFERENCE").is_some() {
        fs::write(&path, &made).unwrap();
    }
    let old =
        "the table is out of date: run MAYFLY_WRITE_REFERENCE=1 cargo test --test microvm found";
    assert!(made == page || fs::read_to_string(&path).unwrap() == made, "{old}");
}

#[test]
fn the_jobs_environment_matches_the_page() {
    let mut script = String::new();
    for (number, Row { look, .. }) in ROWS.iter().enumerate() {
        writeln!(script, "echo \"{number}\t$( ({look}) 2>&1 | xargs)\"").unwrap();
    }
    let host = Host::with_image("runner");
    let running = host.start(["--image=runner", "--", "bash", "-c", &script]);
    let ending = running.finish(3 * TIMEOUT);
    let text = ending.assert_code(0).text();
    let found: Vec<&str> = text.lines().filter_map(|line| Some(line.split_once('\t')?.1)).collect();
    assert_eq!(found.len(), ROWS.len(), "{ending:?}");
    for (Row { what, look, prints, .. }, found) in ROWS.iter().zip(found) {
        assert_eq!(found, *prints, "{what}: {look}");
    }
}

#[test]
fn two_microvms_are_two_machines_and_base_has_no_sudo() {
    let host = Host::new();
    let look = "cat /etc/machine-id; ! command -v sudo";
    let ids = [host.shell(look), host.shell(look)].map(|ending| ending.assert_code(0).text());
    assert_ne!(ids[0], ids[1]);
    assert!(ids.iter().all(|id| id.len() == 33), "{ids:?}");
}

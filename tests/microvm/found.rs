//! What a job finds in the image `runner`, looked at from inside, in one boot. The table in
//! `docs/guide/images.md` is made from the rows here.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::support::{Host, PATIENCE};

/// One thing that a job finds, as its user.
struct Row {
    /// What it is, for the page.
    what: &'static str,
    /// A shell command that looks.
    look: &'static str,
    /// The one line that it prints.
    prints: &'static str,
    /// What the page says of it.
    says: &'static str,
    /// What changes it: for the page, a key of the recipe.
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
        "files that root makes",
        "sudo mkdir -p /opt/made && sudo sh -c 'echo text >/opt/made/file' && cat /opt/made/file",
        "text",
        "all may read them: `umask` 022 with `sudo`, too",
        "",
    ),
    row(
        "Docker",
        "test -S /run/docker.sock && id -Gn | grep -ow docker",
        "docker",
        "the engine starts at its first use; its user may use it",
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
        "one of this microVM's own",
        "a file `/etc/machine-id` of the recipe's",
    ),
    row(
        "host name",
        "getent hosts $(hostname) | wc -l",
        "1",
        "the microVM's id, which resolves",
        "",
    ),
    row("open files", "ulimit -Sn; ulimit -Hn", "65536 1048576", "65,536; 1,048,576 at most", ""),
    row("processes", "ulimit -Su", "unlimited", "as many as the kernel has room for", ""),
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
        "1,048,576, one for 16 KiB",
        "`inodes`",
    ),
    row("swap", "grep -c / /proc/swaps", "0", "none", ""),
    row("IPv6", "ip -6 route show default | wc -l", "0", "loopback only", ""),
    row(
        "user namespaces",
        "unshare --user true 2>/dev/null && echo yes || echo no",
        "no",
        "root's only (Bazel's and a browser's sandbox, Docker without root)",
        "`hardening.off = [\"kernel.user-namespaces\"]`",
    ),
    row(
        "tracing",
        "cat /proc/sys/kernel/yama/ptrace_scope",
        "1",
        "a debugger traces what it started",
        "`hardening.off = [\"kernel.tracing\"]`",
    ),
    row(
        "performance events",
        "cat /proc/sys/kernel/perf_event_paranoid",
        "3",
        "root's only: `sudo perf`",
        "`hardening.off = [\"kernel.tracing\"]`",
    ),
    row(
        "`io_uring`",
        "cat /proc/sys/kernel/io_uring_disabled",
        "1",
        "root's only",
        "`hardening.off = [\"kernel.io-uring\"]`",
    ),
    row(
        "kernel modules",
        "cat /proc/sys/kernel/modules_disabled; command -v modprobe || echo none",
        "1 none",
        "the image's are loaded, no other can be; no `modprobe`",
        "`kernel.guest_modules`, `hardening.off = [\"kernel.modules-locked\"]`",
    ),
    row(
        "Node.js",
        "command -v node || echo none",
        "none",
        "not on the path: `actions/setup-node`; actions use the runner's own",
        "`packages = [\"nodejs\", \"npm\"]`",
    ),
    row(
        "`strace`, `gdb`",
        "command -v strace gdb || echo none",
        "none",
        "not there: `sudo apt-get install`",
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

/// The table of the page.
fn table() -> String {
    let mut table = "| what | as it is | what changes it |\n|---|---|---|\n".to_owned();
    for Row { what, says, change, .. } in ROWS {
        writeln!(table, "| {what} | {says} | {change} |").unwrap();
    }
    table
}

#[test]
fn the_page_says_what_a_job_finds() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guide/images.md");
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once("<!-- made: found -->\n").unwrap();
    let (_, after) = rest.split_once("<!-- end -->").unwrap();
    let made = format!("{before}<!-- made: found -->\n{}<!-- end -->{after}", table());
    if std::env::var_os("MAYFLY_WRITE_REFERENCE").is_some() {
        fs::write(&path, &made).unwrap();
    }
    let old =
        "the table is old: MAYFLY_WRITE_REFERENCE=1 cargo test --test microvm found writes it";
    assert!(made == page || fs::read_to_string(&path).unwrap() == made, "{old}");
}

#[test]
fn a_job_finds_what_the_page_says() {
    let mut script = String::new();
    for (number, Row { look, .. }) in ROWS.iter().enumerate() {
        writeln!(script, "echo \"{number}\t$( ({look}) 2>&1 | xargs)\"").unwrap();
    }
    let host = Host::with_image("runner");
    let running = host.start(["--image=runner", "--", "bash", "-c", &script]);
    let ending = running.finish(3 * PATIENCE);
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

//! Ordinary programs in the image `runner`, all tested in one boot of an extended image. The table
//! in `docs/guide/images.md` is generated from the rows here.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::{Host, images, is_long_run};

/// The functions that test the programs (`programs.sh` documents the calls).
const SCRIPT: &str = include_str!("programs.sh");

/// The time limit for building the image, and then for all programs together, in emulation.
const TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// The job enables user namespaces; programs that need them are tested before and after that.
const ALLOW: &str = "allow_user_namespaces";

/// The expected result of a program, run by a job's user.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Does {
    /// It works.
    Work,
    /// It fails until the job has run [`ALLOW`].
    WorkWhenAllowed,
    /// It fails.
    Fail,
}
use Does::{Fail, Work, WorkWhenAllowed};

/// A program: its function, its name and the test, the expected result, and the note on the page.
struct Program(&'static str, &'static str, Does, &'static str);

const USER_NAMESPACES: &str = "`sudo sysctl -w kernel.unprivileged_userns_clone=1` in the job, or \
                               `hardening.off = [\"kernel.user-namespaces\"]`";

#[rustfmt::skip]
const PROGRAMS: &[Program] = &[
    // Languages.
    Program("jvm", "Java: a build with javac and jar, threads", Work, ""),
    Program("node_watch", "Node.js watching 500 directories", Work, ""),
    Program("npm_install", "npm: pack, install", Work, ""),
    Program("python_server", "Python: a virtual environment, a server", Work, ""),
    Program("pip_wheel", "pip: a wheel built and installed", Work, ""),
    Program("python_processes", "Python's `multiprocessing`, shared memory", Work, ""),
    Program("gcc_make", "GCC, make", Work, ""),
    Program("cmake_ninja", "CMake, Ninja, CTest", Work, ""),
    Program("go_build", "Go: module, build", Work, ""),
    Program("rust", "Rust: rustc", Work, ""),
    // Servers.
    Program("elasticsearch", "Elasticsearch's bootstrap checks", Work, ""),
    Program("postgres", "PostgreSQL, started by the job's user", Work, ""),
    Program("redis", "Redis, started by the job's user", Work, ""),
    Program("nginx", "nginx, started by the job's user", Work, ""),
    Program("sysv_service", "`sudo service redis-server start`", Work, ""),
    Program("sshd", "OpenSSH: server (`sudo mkdir -p /run/sshd` first), agent, client", Work, ""),
    Program("git_http", "Git over HTTP from the job's own server", Work, ""),
    Program("hostname_server", "a server at the machine's own name", Work, ""),
    Program("dbus_session", "D-Bus: a session bus", Work, ""),
    Program("dbus_system", "D-Bus: the system bus, started by `sudo dbus-daemon --system`", Work, ""),
    Program("systemd", "systemd's user services", Fail, "the image has no systemd: use `sudo service`, or run the program itself"),
    Program("cron_job", "cron, started by `sudo cron`, with root's `crontab -u`", Work, "the job can't use `crontab` itself: a hardened image has no set-id programs"),
    // Programs that inspect other processes.
    Program("gdb_child", "gdb with a program that it starts", Work, ""),
    Program("gdb_live", "gdb with a running process: `sudo gdb`", Work, "without `sudo`: `hardening.off = [\"kernel.tracing\"]`"),
    Program("strace_child", "strace with a program that it starts", Work, ""),
    Program("strace_live", "strace with a running process: `sudo strace`", Work, "without `sudo`: `hardening.off = [\"kernel.tracing\"]`"),
    Program("perf", "`sudo perf stat`", Work, "without `sudo`: `hardening.off = [\"kernel.tracing\"]`"),
    // Containers, namespaces, mounts, devices.
    Program("docker_compose", "Docker Compose: two services, a health check", Work, ""),
    Program("iptables_in_container", "iptables in a container with `NET_ADMIN`", Work, ""),
    Program("podman_root", "`sudo podman run`", Work, ""),
    Program("podman_rootless", "Podman without root", Fail, "`sudo podman`"),
    Program("user_namespace", "a user namespace: `unshare --user`", WorkWhenAllowed, USER_NAMESPACES),
    Program("bubblewrap", "bubblewrap", WorkWhenAllowed, USER_NAMESPACES),
    Program("network_namespace", "network namespaces: `sudo ip netns`, a veth pair", Work, ""),
    Program("tun", "`sudo ip tuntap add`", Work, "`kernel.guest_modules = [\"tun\"]`"),
    Program("fuse_overlayfs", "FUSE: `sudo fuse-overlayfs`", Work, "`kernel.guest_modules = [\"fuse\"]`"),
    Program("loop_mount", "a file mounted as a disk", Work, "`kernel.guest_modules = [\"loop\"]`"),
    Program("swap", "a swap file", Work, ""),
    // A browser, and a display for one.
    Program("chromium_without_sandbox", "Chromium without its sandbox (`--no-sandbox`)", Work, ""),
    Program("chromium_sandboxed", "Chromium with its sandbox", WorkWhenAllowed, USER_NAMESPACES),
    Program("xvfb", "Xvfb", Work, ""),
    // Other programs that build scripts call.
    Program("apt_file", "`sudo apt-get install` from a repository", Work, ""),
    Program("inotify", "inotify", Work, ""),
    Program("limits", "a million open files, core dumps", Work, ""),
    Program("gnupg", "GnuPG: a key, a signature", Work, ""),
    Program("sqlite", "SQLite with a write-ahead log", Work, ""),
    Program("ffmpeg_encode", "ffmpeg", Work, ""),
    Program("tmux_session", "tmux", Work, ""),
    Program("pty", "a terminal: `script`", Work, ""),
];

/// Returns the table of the page.
fn table() -> String {
    let mut table = "| Program | Result | Required change |\n|---|---|---|\n".to_owned();
    for Program(_, what, does, says) in PROGRAMS {
        let does = if *does == Work { "works" } else { "does not work" };
        writeln!(table, "| {what} | {does} | {says} |").unwrap();
    }
    table
}

#[test]
fn the_page_lists_the_working_programs() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guide/images.md");
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once("<!-- made: programs -->\n").unwrap();
    let (_, after) = rest.split_once("<!-- end -->").unwrap();
    let made = format!("{before}<!-- made: programs -->\n{}<!-- end -->{after}", table());
    if std::env::var_os("MAYFLY_WRITE_REFERENCE").is_some() {
        fs::write(&path, &made).unwrap();
    }
    let old =
        "the table is out of date: run MAYFLY_WRITE_REFERENCE=1 cargo test --test microvm programs";
    assert!(made == page || fs::read_to_string(&path).unwrap() == made, "{old}");
}

/// Creates a host with an image that contains all programs.
fn host() -> Host {
    let host = Host::bare();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let archive = host.root().join("runner.tgz");
    let packed = Command::new(root.join("tests/github-sim/pack-runner")).arg(&archive).status();
    assert!(packed.unwrap().success());
    let profile = root.join("tests/microvm/programs/programs.toml");
    let mut build = host.mayfly(["image", "build", "--set", "name=programs", "--set", "size=10G"]);
    build.arg("--set").arg(format!("profiles+={}", profile.display()));
    build.arg("--runner-archive").arg(archive).arg(root.join("images/runner/image.toml"));
    let built = build.output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    host
}

/// Takes minutes and gigabytes of packages. Runs with `scripts/test --long`.
#[test]
#[ignore = "takes minutes"]
fn ordinary_programs_work_or_the_page_lists_the_required_change() {
    assert!(is_long_run() && images().is_dir(), "run scripts/test --long");
    let host = host();
    let names = PROGRAMS.iter().map(|Program(name, ..)| *name);
    let again = PROGRAMS.iter().filter(|Program(_, _, does, _)| *does == WorkWhenAllowed);
    let again = again.map(|Program(name, ..)| *name);
    let command = ["--image=programs", "--cpus=2", "--memory=4G", "--", "bash", "-c", SCRIPT, "-"];
    let running = host.start(command.into_iter().chain(names).chain([ALLOW]).chain(again));
    let ending = running.finish(TIMEOUT);
    let text = ending.assert_code(0).text();
    let mut tried = text.lines().filter_map(|line| {
        let mut fields = line.strip_prefix("tried\t")?.split('\t');
        Some((fields.next()?, fields.next()? == "0"))
    });
    let mut wrong = Vec::new();
    let mut expect = |name: &'static str, works: bool| {
        let found = tried.next();
        if found != Some((name, works)) {
            wrong.push(format!("{name}: {found:?}"));
        }
    };
    for Program(name, _, does, _) in PROGRAMS {
        expect(name, *does == Work);
    }
    expect(ALLOW, true);
    for Program(name, ..) in
        PROGRAMS.iter().filter(|Program(_, _, does, _)| *does == WorkWhenAllowed)
    {
        expect(name, true);
    }
    assert!(wrong.is_empty(), "{wrong:#?}: {ending:?}");
}

//! Runs `mayfly.service` under systemd, with every restriction of the unit in force.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::machine::Machine;
use crate::support::injector::inject;
use crate::support::{TIMEOUT, images, until};
use crate::tree::{build_options, script};

/// Adapts the installed settings to the test.
const SETTINGS: &str = "\
    sed -i 's/^# allow_emulation.*/allow_emulation = true\\nlisten = \"127.0.0.1:9180\"/; \
    s/^cpus = 2.*/cpus = 1/; s/^memory.*/memory = \"384M\"/; s/^max.*/max = 2/; \
    s/^egress.*/egress = \"none\"/' /etc/mayfly/mayfly.toml";

/// The daemon's log: the machine has no journal.
const LOG: &str = "/run/mayfly.log";

/// Boots a machine with the files to install, which are not installed yet.
fn boot() -> Machine {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let [_, binaries] = build_options();
    let libexec = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| project.join("target"), Into::into)
        .join("libexec");
    Machine::boot(&[project, Path::new(&binaries), &libexec, &image(), &verified()])
}

/// Installs Mayfly with an image and starts its service.
fn install(machine: &Machine) {
    let image = image();
    let install =
        [vec![script("install").display().to_string()], build_options().to_vec()].concat();
    machine.run(install).assert_code(0).assert_stderr_has("systemctl enable --now mayfly");
    // udev does this on a real machine.
    machine.shell("chgrp kvm /dev/kvm");
    machine.shell(SETTINGS);
    machine.shell(&format!(
        "mkdir -p /var/lib/mayfly/images/base /etc/credstore /run/systemd/system/mayfly.service.d; \
         mount --bind {} /var/lib/mayfly/images/base; \
         cp -a {} /var/lib/mayfly/verified; \
         chown -R mayfly: /var/lib/mayfly/verified; chown mayfly: /var/lib/mayfly/images; \
         echo 'a-token-of-the-test-alone' > /etc/credstore/mayfly.api-token; \
         chmod 600 /etc/credstore/mayfly.api-token; \
         printf '[Service]\\nStandardError=append:{LOG}\\n' \
             > /run/systemd/system/mayfly.service.d/log.conf; systemctl daemon-reload",
        image.display(),
        verified().display()
    ));
    // Only the service and the administrator can read the token that `listen` requires.
    let check = ["mayfly", "config", "check", "--config", "/etc/mayfly/mayfly.toml"];
    machine.run(check).assert_code(0);
    let started = machine.run(["systemctl", "start", "mayfly"]);
    assert_eq!(started.code(), 0, "{started:?}\n{}", log(machine));
}

/// Returns the differences from the original machine: names and types of files that were added or
/// removed (type `c`, the overlay's whiteout).
fn changes(machine: &Machine) -> Vec<String> {
    let found = machine.shell("find /run/changed -mindepth 1 -printf '/%P %y\\n' | sort");
    let differs = |line: &&str| {
        let (path, kind) = line.rsplit_once(' ').unwrap();
        // Lock files and backups of the user tools, and temporary files.
        let noise = path == "/etc/.pwd.lock" || path.ends_with('-') || path.contains("/tmp/");
        !noise && (kind == "c" || !Path::new(path).exists())
    };
    found.lines().filter(differs).map(str::to_owned).collect()
}

fn image() -> PathBuf {
    fs::canonicalize(images().join("base")).unwrap()
}

/// Returns the directory of stamps for images that tests have already verified.
fn verified() -> PathBuf {
    let shared = Path::new(env!("CARGO_TARGET_TMPDIR")).join("verified");
    fs::create_dir_all(&shared).unwrap();
    shared
}

fn log(machine: &Machine) -> String {
    machine.shell(&format!("cat {LOG}"))
}

/// Queues a job of this duration and returns its number.
#[track_caller]
fn submit(machine: &Machine, seconds: u32) -> String {
    let script = format!("echo started; sleep {seconds}; echo done");
    let submit = ["mayfly", "submit", "--", "sh", "-c", &script];
    machine.run(submit).assert_code(0).text().trim().to_owned()
}

fn job(machine: &Machine, job: &str) -> Value {
    let ending = machine.run(["mayfly", "explain", job, "--json"]);
    let explanation: Value = serde_json::from_slice(&ending.stdout).unwrap_or_default();
    explanation["job"].clone()
}

fn wait_for(machine: &Machine, number: &str, state: &str) {
    until(&format!("job {number}, {state}"), TIMEOUT * 2, || {
        let found = job(machine, number);
        assert_ne!(found["state"], "failed", "{found:#}\n{}", log(machine));
        (found["state"] == state).then_some(())
    });
}

/// Checks that a job ran exactly once and completely.
#[track_caller]
fn assert_done(machine: &Machine, number: &str) {
    wait_for(machine, number, "finished");
    assert_eq!(job(machine, number)["exit_code"], 0);
    machine.run(["mayfly", "logs", number]).assert_output("started\ndone\n");
}

/// Checks that compromised processes of a microVM under the unit are confined as elsewhere. The job
/// is not disturbed.
fn assert_compromised_processes_are_confined(machine: &Machine, daemon: &str) {
    let parameters = [
        "image=/var/lib/mayfly/images/base/latest/rootfs.img",
        "token=/run/credentials/mayfly.service/api-token",
    ];
    let parameters = parameters.map(str::to_owned);
    inject("unit", machine.outer_pid(daemon), Path::new("/var/lib/mayfly"), &parameters);
}

/// Runs the timer's daily refresh. It needs the mirror of this machine's packages.
fn assert_images_are_kept_up_to_date(machine: &Machine) {
    let unit = "mayfly-image-refresh.service";
    machine.shell(&format!(
        "mkdir /run/systemd/system/{unit}.d; \
         printf '[Service]\nNetworkNamespacePath=/run/network\n\
                 StandardOutput=append:/run/refresh.log\nStandardError=append:/run/refresh.log\n' \
             > /run/systemd/system/{unit}.d/test.conf; systemctl daemon-reload"
    ));
    let started = machine.run(["systemctl", "start", unit]);
    let log = machine.shell("cat /run/refresh.log");
    assert_eq!(started.code(), 0, "{started:?}\n{log}");
    assert!(log.contains(" is up to date (") && log.contains("base@"), "{log}");
    assert_eq!(machine.property("mayfly-image-refresh.timer", "Unit"), unit);
}

#[test]
fn the_service_runs_jobs_loses_none_when_restarted_and_leaves_nothing() {
    let machine = boot();
    let before = changes(&machine);
    install(&machine);
    assert_eq!(machine.property("mayfly", "ActiveState"), "active", "{}", log(&machine));
    assert!(machine.property("mayfly", "StatusText").contains("jobs run"));
    let pid = machine.property("mayfly", "MainPID");
    let process = machine.shell(&format!("cat /proc/{pid}/status"));
    for restriction in ["NoNewPrivs:\t1", "CapBnd:\t0000000000000000", "Seccomp:\t2"] {
        assert!(process.contains(restriction), "{restriction}: {process}");
    }
    let devices = machine.shell(&format!("nsenter --target {pid} --mount ls /dev /dev/net"));
    assert!(devices.contains("kvm") && devices.contains("tun"), "{devices}");

    // The daemon is replaced while two jobs run and one waits.
    let jobs: Vec<_> = (0..3).map(|_| submit(&machine, 14)).collect();
    wait_for(&machine, &jobs[0], "running");
    assert_compromised_processes_are_confined(&machine, &pid);
    machine.run(["systemctl", "restart", "mayfly"]).assert_code(0);
    assert_ne!(machine.property("mayfly", "MainPID"), pid);
    let log_text = log(&machine);
    assert!(log_text.contains("adopted microVMs"), "{log_text}");
    assert!(!log_text.contains("draining"), "{log_text}");
    for number in &jobs {
        assert_done(&machine, number);
    }

    machine.run(["systemctl", "reload", "mayfly"]).assert_code(0);
    until("the reload of the settings", TIMEOUT, || {
        log(&machine).contains("settings reloaded").then_some(())
    });

    // systemd replaces a daemon that hangs, without an effect on its jobs.
    machine.shell(
        "printf '[Service]\\nWatchdogSec=5s\\nTimeoutAbortSec=1s\\n' \
         > /run/systemd/system/mayfly.service.d/watchdog.conf; systemctl daemon-reload; \
         systemctl restart mayfly",
    );
    let last = submit(&machine, 5);
    wait_for(&machine, &last, "running");
    let hanging = machine.property("mayfly", "MainPID");
    machine.shell(&format!("kill -STOP {hanging}"));
    until("a new daemon", TIMEOUT, || {
        let now = machine.property("mayfly", "MainPID");
        (now != hanging && now != "0").then_some(())
    });
    assert_done(&machine, &last);

    assert_images_are_kept_up_to_date(&machine);

    machine.run(["systemctl", "stop", "mayfly"]).assert_code(0);
    assert_eq!(machine.property("mayfly", "Result"), "success", "{}", log(&machine));
    machine.shell("umount /var/lib/mayfly/images/base");
    let uninstall = script("uninstall").display().to_string();
    machine.run([&uninstall, "--purge"]).assert_code(0);
    machine.shell("rmdir /etc/credstore");
    assert_eq!(changes(&machine), before);
    let users = machine.shell("cat /etc/passwd /etc/group /etc/subuid /etc/subgid");
    assert!(!users.contains("mayfly"), "{users}");
    assert!(
        machine.run(["systemctl", "cat", "mayfly"]).code() != 0,
        "systemd still knows the unit"
    );
}

#[test]
fn a_host_shutdown_ends_the_jobs_first() {
    let mut machine = boot();
    install(&machine);
    let number = submit(&machine, 600);
    wait_for(&machine, &number, "running");
    let mut log = machine.open(LOG);
    let took = machine.shut_down();
    let mut text = String::new();
    log.read_to_string(&mut text).unwrap();
    // Without SIGUSR1, systemd would wait for the drain, and so for the job.
    assert!(took.is_some(), "{text}");
    for line in
        ["ending all jobs: the host is shutting down", "the microVM ended", "the daemon ended"]
    {
        assert!(text.contains(line), "{line}: {text}");
    }
}

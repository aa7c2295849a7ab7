//! Hosts that lack or forbid something: each case has its own exit code, message, and hint.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::support::host::Devices;
use crate::support::image::TestImage;
use crate::support::{CommandOutput, Host, Running, TIMEOUT};

/// Creates a host with an image that is found and verified, for failures before the boot.
fn unbootable_host() -> Host {
    let host = Host::bare();
    TestImage::unbootable().install(&host);
    host
}

fn run_unbootable(host: &Host, options: &[&str]) -> CommandOutput {
    host.run(["--image", "hollow"].iter().chain(options).chain(&["--", "true"]))
}

/// Checks that nothing was started.
#[track_caller]
fn assert_untouched(host: &Host) {
    host.assert_clean();
}

#[test]
fn a_missing_image_is_named() {
    let host = Host::bare();
    let ending = host.run(["--image", "no-such", "--", "true"]);
    ending
        .assert_code(66)
        .assert_stderr_has("image `no-such` not found")
        .assert_stderr_has("hint: ");
    let ending = host.run(["--image", "hollow@0123", "--", "true"]);
    ending.assert_code(66).assert_stderr_has("`hollow@0123`");
    let ending = host.run(["--image", "No Name", "--", "true"]);
    ending.assert_code(64).assert_stderr_has("is not an image name");
    assert_untouched(&host);
}

#[test]
fn a_changed_image_is_rejected() {
    let host = Host::bare();
    let image = TestImage::unbootable().install(&host);
    for part in ["kernel", "initramfs", "rootfs.img"] {
        let path = image.join(part);
        let good = fs::read(&path).unwrap();
        // Flips one bit in place.
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[good[5] ^ 1], 5).unwrap();
        let ending = run_unbootable(&host, &[]);
        ending
            .assert_code(65)
            .assert_stderr_has(&path.display().to_string())
            .assert_stderr_has("hint: ");
        file.write_all_at(&[good[5]], 5).unwrap();
    }
    fs::write(image.join("manifest.json"), "{}").unwrap();
    run_unbootable(&host, &[]).assert_code(65).assert_stderr_has("manifest.json");
    assert_untouched(&host);
}

#[test]
fn an_image_changed_after_verification_is_rejected() {
    let host = Host::bare();
    let image = TestImage::unbootable().install(&host);
    // Verified, and then rejected by QEMU, because it is not a kernel.
    let ending = run_unbootable(&host, &["--json"]);
    ending.assert_failed(&host, "machine", 69);
    fs::remove_dir_all(host.state().join("microvms")).unwrap();
    fs::write(image.join("kernel"), "not a kernel").unwrap();
    run_unbootable(&host, &[]).assert_code(65).assert_stderr_has("kernel");
    assert_untouched(&host);
}

#[test]
fn devices_that_an_ordinary_user_can_not_open_are_named() {
    for (devices, options, code, says) in [
        (Devices { tun: Some(0o600), kvm: None }, &[][..], 77, ["/dev/net/tun", "chmod 0666"]),
        (Devices { tun: None, kvm: None }, &[], 69, ["/dev/net/tun", "modprobe tun"]),
        (
            Devices { kvm: Some(0o600), ..Devices::default() },
            &["--accel", "kvm"],
            77,
            ["/dev/kvm", "group"],
        ),
        (
            Devices { kvm: None, ..Devices::default() },
            &["--accel", "kvm"],
            69,
            ["/dev/kvm does not exist", "tcg"],
        ),
    ] {
        let mut host = unbootable_host();
        host.run_as_ordinary_user(&devices);
        let ending = run_unbootable(&host, options);
        says.iter().fold(ending.assert_code(code), |ending, text| ending.assert_stderr_has(text));
        ending.assert_stderr_has("hint: ");
        assert_untouched(&host);
    }
}

/// Executes `$0 $@` in a user namespace in which no other can be created.
pub(crate) const FORBID: &str = "echo 0 > /proc/sys/user/max_user_namespaces; \
                      exec setpriv --ambient-caps=-all --inh-caps=-all -- \"$0\" \"$@\"";

#[test]
fn forbidden_user_namespaces_are_named() {
    let mut host = unbootable_host();
    host.run_as_ordinary_user(&Devices::default());
    let namespace = ["unshare", "--user", "--map-current-user", "--keep-caps"];
    let wrapper = namespace.iter().chain(&["sh", "-ec", FORBID]).map(Into::into);
    host.wrapper.extend(wrapper);
    let ending = run_unbootable(&host, &[]);
    ending.assert_code(77).assert_stderr_has("user namespaces");
    ending.assert_stderr_has("hint: raise the limit: sudo sysctl user.max_user_namespaces=");
    assert_untouched(&host);
}

#[test]
fn root_works_without_user_namespaces_if_they_are_forbidden() {
    crate::support::require_root();
    let mut host = Host::new();
    let namespace = ["unshare", "--user", "--map-root-user"];
    host.wrapper = namespace.iter().chain(&["sh", "-ec", FORBID]).map(Into::into).collect();
    host.shell("echo out; exit 7").assert_code(7).assert_output("out\n");
    host.assert_clean();
}

#[test]
fn missing_programs_are_named() {
    const ALL: [&str; 3] = ["qemu-system-x86_64", "qemu-img", "vhost-device-vsock"];
    for (missing, hint) in ALL.iter().zip(["qemu-system-x86", "qemu-utils", "cargo install"]) {
        let mut host = unbootable_host();
        let others: Vec<_> = ALL.iter().copied().filter(|name| name != missing).collect();
        host.restrict_programs(&others);
        let ending = run_unbootable(&host, &[]);
        ending.assert_code(69).assert_stderr_has(&format!("the program {missing} was not found"));
        ending.assert_stderr_has("hint: ").assert_stderr_has(hint);
        assert_untouched(&host);
    }
}

#[test]
fn output_of_broken_programs_is_quoted() {
    let script = "echo no such machine: microvm >&2; exit 1";
    // A program with its own root directory must not need other programs.
    let (qemu, vsock) = ("qemu-system-x86_64", "vhost-device-vsock");
    for (program, script, says) in [
        (qemu, None, "QEMU exited at startup with exit status: 1: Try '"),
        (qemu, Some(script), "can't run "),
        ("qemu-img", Some(script), "qemu-img can't create the overlay: no such machine: microvm"),
        (vsock, None, "vhost-device-vsock exited at startup with exit status: 1"),
        (vsock, Some(script), "can't run "),
    ] {
        let mut host = unbootable_host();
        match script {
            Some(script) => host.replace_program(program, script),
            // It does not support any of the options.
            None => host.replace_program_by(program, Path::new("/bin/cat")),
        }
        let ending = run_unbootable(&host, &["--json"]);
        ending.assert_stderr_has(says);
        let code = if program == "qemu-img" { 73 } else { 69 };
        let failure = ending.failure();
        assert_eq!(failure["code"], code, "{ending:?}");
        ending.assert_failed(&host, "machine", code);
    }
}

#[test]
fn the_doctor_shows_versions_and_hints() {
    let mut host = Host::new();
    host.replace_program("qemu-system-x86_64", "echo QEMU emulator version 6.2.0");
    host.replace_program("vhost-device-vsock", "echo help, I am broken");
    let doctor = |arguments: &[&str]| {
        Running::start(&mut host.mayfly(arguments)).finish(Duration::from_secs(20))
    };
    let ending = doctor(&["doctor", "--json"]);
    ending.assert_code(69);
    let checks: Vec<Value> = serde_json::from_slice(&ending.stdout).unwrap();
    let check = |subject: &str| {
        checks
            .iter()
            .find(|check| check["subject"] == subject)
            .unwrap_or_else(|| panic!("{ending:?}"))
    };
    assert_eq!(check("qemu-system-x86_64")["outcome"], "bad");
    let found = check("qemu-system-x86_64")["found"].as_str().unwrap();
    assert!(found.contains("is version 6.2, older than the required 7.2"), "{found}");
    assert_eq!(check("vhost-device-vsock")["outcome"], "bad");
    let found = check("vhost-device-vsock")["found"].as_str().unwrap();
    assert!(found.contains("can't determine the version"), "{found}");
    for subject in ["qemu-img", "user namespaces", "/dev/net/tun", "images"] {
        assert_eq!(check(subject)["outcome"], "good", "{ending:?}");
    }
    let subjects = ["accelerator", "memory", "disk"];
    assert!(subjects.iter().all(|subject| check(subject)["outcome"] != "bad"), "{ending:?}");
    let text = doctor(&["doctor"]).assert_code(69).text();
    assert!(text.contains("→ install the package qemu-system-x86"), "{text}");
}

#[test]
fn more_resources_than_the_host_has_are_rejected() {
    let host = unbootable_host();
    let ending = run_unbootable(&host, &["--memory", "100T"]);
    ending.assert_code(69).assert_stderr_has("can't give a microVM 100 TiB of memory");
    let processors = std::thread::available_parallelism().unwrap().get() + 1;
    assert!(processors <= 255, "this host has more processors than an option can request");
    let ending = run_unbootable(&host, &["--cpus", &processors.to_string()]);
    ending
        .assert_code(69)
        .assert_stderr_has(&format!("can't give a microVM {processors} processors"));
    let ending = run_unbootable(&host, &["--disk", "512K"]);
    ending.assert_code(64).assert_stderr_has("a disk of 512 KiB is smaller than the 1 MiB");
    assert_untouched(&host);
}

#[test]
fn invalid_arguments_are_rejected() {
    let host = unbootable_host();
    for (arguments, says) in [
        (&["--memory", "64M", "--", "true"][..], "at least 192 MiB"),
        (&["--cpus", "0", "--", "true"], "--cpus"),
        (&["--egress", "no-such", "--", "true"], "unknown egress policy \"no-such\""),
        (&["--timeout", "soon", "--", "true"], "--timeout"),
        (&["--accel", "magic", "--", "true"], "one of auto, kvm, tcg"),
        (&["--copy-in", "nowhere", "--", "true"], "separated by a colon"),
        (&[], "CMD"),
    ] {
        let arguments = ["--image", "hollow"].iter().chain(arguments);
        host.run(arguments).assert_code(64).assert_stderr_has(says);
    }
    assert_untouched(&host);
}

#[test]
fn an_unwritable_state_directory_is_named() {
    let mut host = unbootable_host();
    host.run_as_ordinary_user(&Devices::default());
    let closed = host.root().join("closed");
    fs::create_dir(&closed).unwrap();
    let run = |state: &Path| {
        let mut command = host.command(["--image", "hollow", "--", "true"]);
        Running::start(command.env("MAYFLY_STATE_DIR", state)).finish(TIMEOUT)
    };
    let ending = run(&closed.join("state"));
    ending
        .assert_code(73)
        .assert_stderr_has("can't create the state directory")
        .assert_stderr_has("MAYFLY_STATE_DIR");
    // It exists, but belongs to another user.
    for directory in ["images", "microvms", "verified", "private"] {
        fs::create_dir(closed.join(directory)).unwrap();
    }
    let ending = run(&closed);
    ending.assert_code(73).assert_stderr_has("can't write to the state directory");
    ending.assert_stderr_has("hint: use a directory that you can write to");
    assert_untouched(&host);
}

//! What a host may lack or forbid: each has its own exit code, is named, and says what to do.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::support::host::Devices;
use crate::support::image::Forgery;
use crate::support::{Ending, Host, PATIENCE, Running};

/// A host with an image that is found and verified, for failures that come before any boot.
fn hollow_host() -> Host {
    let host = Host::bare();
    Forgery::hollow().install(&host);
    host
}

fn run_hollow(host: &Host, options: &[&str]) -> Ending {
    host.run(["--image", "hollow"].iter().chain(options).chain(&["--", "true"]))
}

/// Fails unless nothing was begun.
#[track_caller]
fn assert_untouched(host: &Host) {
    host.assert_clean();
}

#[test]
fn an_image_that_is_not_there_is_named() {
    let host = Host::bare();
    let ending = host.run(["--image", "no-such", "--", "true"]);
    ending.assert_code(66).assert_says("there is no image `no-such`").assert_says("hint: ");
    let ending = host.run(["--image", "hollow@0123", "--", "true"]);
    ending.assert_code(66).assert_says("`hollow@0123`");
    let ending = host.run(["--image", "No Name", "--", "true"]);
    ending.assert_code(64).assert_says("is not an image name");
    assert_untouched(&host);
}

#[test]
fn an_image_that_was_changed_is_refused() {
    let host = Host::bare();
    let image = Forgery::hollow().install(&host);
    for part in ["kernel", "initramfs", "rootfs.img"] {
        let path = image.join(part);
        let good = fs::read(&path).unwrap();
        // One bit, in place.
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[good[5] ^ 1], 5).unwrap();
        let ending = run_hollow(&host, &[]);
        ending.assert_code(65).assert_says(&path.display().to_string()).assert_says("hint: ");
        file.write_all_at(&[good[5]], 5).unwrap();
    }
    fs::write(image.join("manifest.json"), "{}").unwrap();
    run_hollow(&host, &[]).assert_code(65).assert_says("manifest.json");
    assert_untouched(&host);
}

#[test]
fn an_image_that_is_changed_after_it_was_verified_is_refused() {
    let host = Host::bare();
    let image = Forgery::hollow().install(&host);
    // Verified, and then refused by QEMU, for which it is no kernel.
    let ending = run_hollow(&host, &["--json"]);
    ending.assert_failed(&host, "machine", 69);
    fs::remove_dir_all(host.state().join("microvms")).unwrap();
    fs::write(image.join("kernel"), "no kernal").unwrap();
    run_hollow(&host, &[]).assert_code(65).assert_says("kernel");
    assert_untouched(&host);
}

#[test]
fn devices_that_an_ordinary_user_may_not_open_are_named() {
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
            ["no /dev/kvm", "tcg"],
        ),
    ] {
        let mut host = hollow_host();
        host.become_ordinary(&devices);
        let ending = run_hollow(&host, options);
        says.iter().fold(ending.assert_code(code), |ending, text| ending.assert_says(text));
        ending.assert_says("hint: ");
        assert_untouched(&host);
    }
}

/// Executes `$0 $@` in a user namespace below which there can be no other.
pub(crate) const FORBID: &str = "echo 0 > /proc/sys/user/max_user_namespaces; \
                      exec setpriv --ambient-caps=-all --inh-caps=-all -- \"$0\" \"$@\"";

#[test]
fn user_namespaces_that_are_forbidden_are_named() {
    let mut host = hollow_host();
    host.become_ordinary(&Devices::default());
    let namespace = ["unshare", "--user", "--map-current-user", "--keep-caps"];
    let wrapper = namespace.iter().chain(&["sh", "-ec", FORBID]).map(Into::into);
    host.wrapper.extend(wrapper);
    let ending = run_hollow(&host, &[]);
    ending.assert_code(77).assert_says("user namespaces");
    ending.assert_says("hint: allow some: sudo sysctl user.max_user_namespaces=");
    assert_untouched(&host);
}

#[test]
fn root_does_without_user_namespaces_where_they_are_forbidden() {
    crate::support::require_root();
    let mut host = Host::new();
    let namespace = ["unshare", "--user", "--map-root-user"];
    host.wrapper = namespace.iter().chain(&["sh", "-ec", FORBID]).map(Into::into).collect();
    host.shell("echo out; exit 7").assert_code(7).assert_output("out\n");
    host.assert_clean();
}

#[test]
fn programs_that_are_missing_are_named() {
    const ALL: [&str; 3] = ["qemu-system-x86_64", "qemu-img", "vhost-device-vsock"];
    for (missing, hint) in ALL.iter().zip(["qemu-system-x86", "qemu-utils", "cargo install"]) {
        let mut host = hollow_host();
        let others: Vec<_> = ALL.iter().copied().filter(|name| name != missing).collect();
        host.keep_programs(&others);
        let ending = run_hollow(&host, &[]);
        ending.assert_code(69).assert_says(&format!("the program {missing} was not found"));
        ending.assert_says("hint: ").assert_says(hint);
        assert_untouched(&host);
    }
}

#[test]
fn programs_that_do_not_work_are_quoted() {
    let script = "echo no such machine: microvm >&2; exit 1";
    // What runs in a root of its own has to be a program that needs no other.
    let (qemu, vsock) = ("qemu-system-x86_64", "vhost-device-vsock");
    for (program, script, says) in [
        (qemu, None, "QEMU ended at once with exit status: 1: Try '"),
        (qemu, Some(script), "can't run "),
        ("qemu-img", Some(script), "qemu-img can't make the overlay: no such machine: microvm"),
        (vsock, None, "vhost-device-vsock ended at once with exit status: 1"),
        (vsock, Some(script), "can't run "),
    ] {
        let mut host = hollow_host();
        match script {
            Some(script) => host.replace_program(program, script),
            // It knows none of the options.
            None => host.replace_program_by(program, Path::new("/bin/cat")),
        }
        let ending = run_hollow(&host, &["--json"]);
        ending.assert_says(says);
        let code = if program == "qemu-img" { 73 } else { 69 };
        let failure = ending.failure();
        assert_eq!(failure["code"], code, "{ending:?}");
        ending.assert_failed(&host, "machine", code);
    }
}

#[test]
fn the_doctor_tells_versions_and_what_to_do() {
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
    assert!(found.contains("is version 6.2, older than the 7.2"), "{found}");
    assert_eq!(check("vhost-device-vsock")["outcome"], "bad");
    let found = check("vhost-device-vsock")["found"].as_str().unwrap();
    assert!(found.contains("does not tell its version"), "{found}");
    for subject in ["qemu-img", "user namespaces", "/dev/net/tun", "images"] {
        assert_eq!(check(subject)["outcome"], "good", "{ending:?}");
    }
    let subjects = ["accelerator", "memory", "disk"];
    assert!(subjects.iter().all(|subject| check(subject)["outcome"] != "bad"), "{ending:?}");
    let text = doctor(&["doctor"]).assert_code(69).text();
    assert!(text.contains("→ install the package qemu-system-x86"), "{text}");
}

#[test]
fn more_than_the_host_has_is_refused() {
    let host = hollow_host();
    let ending = run_hollow(&host, &["--memory", "100T"]);
    ending.assert_code(69).assert_says("100 TiB of memory is more than the");
    let processors = std::thread::available_parallelism().unwrap().get() + 1;
    assert!(processors <= 255, "this host has more processors than one can ask for");
    let ending = run_hollow(&host, &["--cpus", &processors.to_string()]);
    ending.assert_code(69).assert_says(&format!("{processors} processors are more than the"));
    let ending = run_hollow(&host, &["--disk", "512K"]);
    ending.assert_code(64).assert_says("a disk of 512 KiB is less than the 1 MiB");
    assert_untouched(&host);
}

#[test]
fn arguments_that_make_no_sense_are_refused() {
    let host = hollow_host();
    for (arguments, says) in [
        (&["--memory", "64M", "--", "true"][..], "at least 192 MiB"),
        (&["--cpus", "0", "--", "true"], "--cpus"),
        (&["--egress", "no-such", "--", "true"], "there is no egress policy \"no-such\""),
        (&["--timeout", "soon", "--", "true"], "--timeout"),
        (&["--accel", "magic", "--", "true"], "one of auto, kvm, tcg"),
        (&["--copy-in", "nowhere", "--", "true"], "a colon between"),
        (&[], "CMD"),
    ] {
        let arguments = ["--image", "hollow"].iter().chain(arguments);
        host.run(arguments).assert_code(64).assert_says(says);
    }
    assert_untouched(&host);
}

#[test]
fn a_state_directory_that_cant_be_written_is_named() {
    let mut host = hollow_host();
    host.become_ordinary(&Devices::default());
    let closed = host.root().join("closed");
    fs::create_dir(&closed).unwrap();
    let run = |state: &Path| {
        let mut command = host.command(["--image", "hollow", "--", "true"]);
        Running::start(command.env("MAYFLY_STATE_DIR", state)).finish(PATIENCE)
    };
    let ending = run(&closed.join("state"));
    ending
        .assert_code(73)
        .assert_says("can't make the state directory")
        .assert_says("MAYFLY_STATE_DIR");
    // All there, but another user's.
    for directory in ["images", "microvms", "verified", "private"] {
        fs::create_dir(closed.join(directory)).unwrap();
    }
    let ending = run(&closed);
    ending.assert_code(73).assert_says("can't write to the state directory");
    ending.assert_says("hint: name a directory that you may write to");
    assert_untouched(&host);
}

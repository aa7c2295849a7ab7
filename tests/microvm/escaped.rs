//! What QEMU, the vsock program and a shepherd can still do once they were taken over: each call is
//! made in a fork of the live process, under its own rights, root directory and filters.

use std::fs;
use std::path::Path;

use crate::lacking::FORBID;
use crate::support::host::Devices;
use crate::support::injector::inject;
use crate::support::processes::{Tree, file};
use crate::support::{Host, Running, require_root};

/// Tries everything in all three processes of a microVM, which lives on afterwards.
fn assert_escaped_is_nowhere(setting: &str, host: &Host) {
    require_root();
    let mut running = host.start(["--", "sh", "-c", "echo begun; sleep 6; echo done"]);
    running.wait_for_output("begun");
    let image = fs::canonicalize(host.images().join("base/latest/rootfs.img")).unwrap();
    inject(setting, running.pid(), &host.state(), &[format!("image={}", image.display())]);
    finish(running);
}

/// What was tried has not disturbed it.
fn finish(running: Running) {
    running.finish(crate::support::PATIENCE).assert_code(0).assert_output("begun\ndone\n");
}

/// A descriptor that whoever starts Mayfly has left open is not for those who serve the guest.
fn assert_descriptors_are_their_own(tree: Tree, secret: &Path) {
    for pid in [tree.shepherd, tree.qemu, tree.vsock] {
        let entries = fs::read_dir(file(pid, "fd")).unwrap();
        let open: Vec<_> =
            entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()).collect();
        assert!(open.len() > 3 && !open.iter().any(|path| path == secret), "{pid}: {open:?}");
        let variables = fs::read(file(pid, "environ")).unwrap();
        let variables = String::from_utf8_lossy(&variables).into_owned();
        assert!(!variables.contains("secret"), "{pid}: {variables}");
    }
}

#[test]
fn who_is_taken_over_as_root_reaches_nothing() {
    assert_escaped_is_nowhere("root", &Host::new());
}

#[test]
fn who_is_taken_over_as_an_ordinary_user_reaches_nothing() {
    let mut host = Host::new();
    host.become_ordinary(&Devices::default());
    assert_escaped_is_nowhere("user", &host);
}

#[test]
fn who_is_taken_over_as_root_without_user_namespaces_reaches_nothing() {
    let mut host = Host::new();
    let namespace = ["unshare", "--user", "--map-root-user"];
    host.wrapper = namespace.iter().chain(&["sh", "-ec", FORBID]).map(Into::into).collect();
    assert_escaped_is_nowhere("root", &host);
}

#[test]
fn descriptors_and_variables_of_whoever_starts_mayfly_are_not_inherited() {
    let mut host = Host::new();
    let secret = host.root().join("secret");
    fs::write(&secret, "secret").unwrap();
    let leak = "exec 9<secret; export LEAKED=secret; exec \"$0\" \"$@\"";
    host.wrapper = ["sh", "-c", leak].map(Into::into).to_vec();
    let mut running = host.start(["--", "sh", "-c", "echo begun; sleep 3; echo done"]);
    running.wait_for_output("begun");
    assert_descriptors_are_their_own(Tree::of(running.pid()), &secret);
    finish(running);
}

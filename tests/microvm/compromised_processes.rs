//! The remaining abilities of a compromised QEMU, vsock program, or shepherd: each call is made in
//! a fork of the live process, with its own privileges, root directory, and filters.

use std::fs;
use std::path::Path;

use crate::missing_requirements::FORBID;
use crate::support::host::Devices;
use crate::support::injector::inject;
use crate::support::processes::{ProcessTree, file};
use crate::support::{Host, Running, require_root};

/// Makes every attempt in all three processes of a microVM, which keeps running afterwards.
fn assert_processes_are_confined(setting: &str, host: &Host) {
    require_root();
    let mut running = host.start(["--", "sh", "-c", "echo begun; sleep 6; echo done"]);
    running.wait_for_output("begun");
    let image = fs::canonicalize(host.images().join("base/latest/rootfs.img")).unwrap();
    inject(setting, running.pid(), &host.state(), &[format!("image={}", image.display())]);
    finish(running);
}

/// Checks that the attempts have not disturbed the microVM.
fn finish(running: Running) {
    running.finish(crate::support::TIMEOUT).assert_code(0).assert_output("begun\ndone\n");
}

/// Checks that the processes have not inherited descriptors or variables of Mayfly's parent.
fn assert_nothing_inherited(tree: ProcessTree, secret: &Path) {
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
fn processes_compromised_as_root_reach_nothing() {
    assert_processes_are_confined("root", &Host::new());
}

#[test]
fn processes_compromised_as_an_ordinary_user_reach_nothing() {
    let mut host = Host::new();
    host.run_as_ordinary_user(&Devices::default());
    assert_processes_are_confined("user", &host);
}

#[test]
fn processes_compromised_as_root_without_user_namespaces_reach_nothing() {
    let mut host = Host::new();
    let namespace = ["unshare", "--user", "--map-root-user"];
    host.wrapper = namespace.iter().chain(&["sh", "-ec", FORBID]).map(Into::into).collect();
    assert_processes_are_confined("root", &host);
}

#[test]
fn descriptors_and_variables_of_mayflys_parent_are_not_inherited() {
    let mut host = Host::new();
    let secret = host.root().join("secret");
    fs::write(&secret, "secret").unwrap();
    let leak = "exec 9<secret; export LEAKED=secret; exec \"$0\" \"$@\"";
    host.wrapper = ["sh", "-c", leak].map(Into::into).to_vec();
    let mut running = host.start(["--", "sh", "-c", "echo begun; sleep 3; echo done"]);
    running.wait_for_output("begun");
    assert_nothing_inherited(ProcessTree::wait_for(running.pid()), &secret);
    finish(running);
}

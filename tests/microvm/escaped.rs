//! What QEMU, the vsock program and a shepherd can still do once they were taken over: each call is
//! made inside the live process, under its own rights, root directory and filters.

use std::fs;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::Pid;

use crate::lacking::FORBID;
use crate::support::host::{Devices, ORDINARY_USER};
use crate::support::processes::{Tree, file};
use crate::support::{Host, Running, require_root};

/// Everything that the attempts are aimed at, there and open to who can reach it.
struct Targets {
    words: Vec<String>,
    _paths: Vec<UnixListener>,
    _ports: Vec<TcpListener>,
}

impl Targets {
    fn make(host: &Host, own: &Path) -> Self {
        let file = |name: &str| {
            let path = host.state().join(name);
            fs::write(&path, "secret").unwrap();
            std::os::unix::fs::chown(&path, Some(ORDINARY_USER), None).unwrap();
            path
        };
        let other = host.state().join("microvms/m-another000");
        fs::create_dir(&other).unwrap();
        let paths = [host.state().join("api.sock"), other.join("front-0"), host.root().join("any")];
        let paths = paths.map(|path| (UnixListener::bind(&path).unwrap(), path));
        for path in paths.iter().map(|(_, path)| path).chain([&other]) {
            std::os::unix::fs::chown(path, Some(ORDINARY_USER), None).unwrap();
        }
        let name = format!("mayfly-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let nameless = UnixListener::bind_addr(&address).unwrap();
        let ports = ["127.0.0.1:0", "[::1]:0"].map(|address| TcpListener::bind(address).unwrap());
        let image = fs::canonicalize(host.images().join("base/latest/rootfs.img")).unwrap();
        let given: [(&str, PathBuf); 8] = [
            ("ledger", file("ledger.db")),
            ("token", file("token")),
            ("other", other),
            ("own", own.to_owned()),
            ("image", image),
            ("daemon", paths[0].1.clone()),
            ("shepherd", paths[1].1.clone()),
            ("socket", paths[2].1.clone()),
        ];
        let port = |at: usize| ports[at].local_addr().unwrap().port();
        let more = [
            format!("abstract={name}"),
            format!("port4={}", port(0)),
            format!("port6={}", port(1)),
        ];
        let given = given.iter().map(|(key, path)| format!("{key}={}", path.display()));
        Self {
            words: given.chain(more).collect(),
            _paths: paths.into_iter().map(|(listener, _)| listener).chain([nameless]).collect(),
            _ports: ports.into(),
        }
    }
}

/// Tries everything in all three processes of a microVM, which lives on afterwards.
fn assert_escaped_is_nowhere(host: &Host) {
    require_root();
    let mut running = host.start(["--", "sh", "-c", "echo begun; sleep 6; echo done"]);
    running.wait_for_output("begun");
    let Tree { qemu, vsock, shepherd, .. } = Tree::of(running.pid());
    let [own] = &host.microvms()[..] else { panic!("{:?}", host.microvms()) };
    let targets = Targets::make(host, own);
    for (process, pid) in [("vsock", vsock), ("shepherd", shepherd), ("qemu", qemu)] {
        inject(process, pid, &targets.words);
    }
    finish(running);
}

fn inject(process: &str, pid: Pid, given: &[String]) {
    // Built with the tests, beside the program.
    let program = Path::new(env!("CARGO_BIN_EXE_mayfly")).with_file_name("mayfly-injector");
    let mut command = Command::new(program);
    let output = command.arg(process).arg(pid.to_string()).args(given).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{process}:\n{said}{complaint}");
    assert!(said.lines().count() > 30, "{said}");
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
    assert_escaped_is_nowhere(&Host::new());
}

#[test]
fn who_is_taken_over_as_an_ordinary_user_reaches_nothing() {
    let mut host = Host::new();
    host.become_ordinary(&Devices::default());
    assert_escaped_is_nowhere(&host);
}

#[test]
fn who_is_taken_over_as_root_without_user_namespaces_reaches_nothing() {
    let mut host = Host::new();
    let namespace = ["unshare", "--user", "--map-root-user"];
    host.wrapper = namespace.iter().chain(&["sh", "-ec", FORBID]).map(Into::into).collect();
    assert_escaped_is_nowhere(&host);
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

//! Mayfly's gate in a separate process, as in a shepherd.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;

use mayfly_egress::address::AddressCheck;
use mayfly_egress::policy::Policy;
use mayfly_egress::record::{EgressRecorder, RecordIdentity, RecordLimits};
use mayfly_egress::{Gate, GateLimits, GateSettings, listen};
use nix::sched::{CloneFlags, setns};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::load::{NAME, ORIGIN_PORT};
use crate::support::{FakeResolver, GATEWAY, GUEST};

/// The argument that makes this program run a gate.
pub const ARGUMENT: &str = "gate";

/// A gate process, killed when dropped.
pub struct GateProcess {
    child: Child,
    _stdin: ChildStdin,
    _record: TempDir,
}

impl GateProcess {
    /// Starts a gate that serves one network namespace and reaches the origin in another.
    pub fn start(namespace: &File, world: &File) -> Self {
        let record = tempfile::tempdir().unwrap();
        let [namespace, world] = [namespace, world]
            .map(|file| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([ARGUMENT, &namespace, &world])
            .arg(record.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self { child, _stdin: stdin, _record: record }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for GateProcess {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Runs a gate until the parent process exits.
pub fn run([namespace, world, record]: [&Path; 3]) {
    let enter = |namespace| {
        setns(File::open(namespace).unwrap().as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
    };
    enter(namespace);
    let policy = toml::from_str(&format!(
        "allow = [{{ host = \"{NAME}\" }}]\nresolve = {{ \"{NAME}\" = \"127.0.0.1:{ORIGIN_PORT}\" }}"
    ));
    let policy = Policy::check(Path::new("bench"), "ci", &policy.unwrap()).unwrap();
    let policy = Arc::new(policy);
    let listeners = listen(&policy, GATEWAY).unwrap();
    enter(world);
    let identity = RecordIdentity { microvm: "vm1".into(), policy: "ci".into(), guest: GUEST };
    let recorder = EgressRecorder::create(record, identity, RecordLimits::default()).unwrap();
    let settings = GateSettings {
        policy,
        resolver: Arc::new(FakeResolver::default()),
        addresses: AddressCheck::new(Vec::new()),
        limits: GateLimits::default(),
        gateway: GATEWAY,
    };
    // One thread, as in the shepherd.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let cancel = CancellationToken::new();
    let cancel_at_eof = cancel.clone();
    std::thread::spawn(move || {
        _ = std::io::stdin().read(&mut [0]);
        cancel_at_eof.cancel();
    });
    let server = async {
        println!("ready");
        Gate::new(settings, recorder).unwrap().serve(listeners, cancel).await
    };
    runtime.block_on(server).unwrap();
}

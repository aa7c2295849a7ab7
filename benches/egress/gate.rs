//! Mayfly's side: a gate in a process of its own, as it is in a shepherd.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;

use mayfly::egress::address::AddressCheck;
use mayfly::egress::policy::Policy;
use mayfly::egress::record::{Identity, Rate, Recorder};
use mayfly::egress::{Gate, Limits, Settings, listen};
use nix::sched::{CloneFlags, setns};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::load::{NAME, ORIGIN_PORT};
use crate::support::{GATEWAY, GUEST, Names};

/// The argument that makes this program a gate.
pub const ARGUMENT: &str = "gate";

/// A gate that runs until this is dropped.
pub struct Process {
    child: Child,
    _stdin: ChildStdin,
    _record: TempDir,
}

impl Process {
    /// Starts one that serves a network namespace and reaches the origin in another.
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

impl Drop for Process {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Is a gate until whoever started it is gone.
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
    let identity = Identity { microvm: "vm1".into(), policy: "ci".into(), guest: GUEST };
    let recorder = Recorder::create(record, identity, Rate::default()).unwrap();
    let settings = Settings {
        policy,
        resolver: Arc::new(Names::default()),
        addresses: AddressCheck::new(Vec::new()),
        limits: Limits::default(),
        gateway: GATEWAY,
    };
    // As the shepherd's: one thread.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let cancel = CancellationToken::new();
    let ended = cancel.clone();
    std::thread::spawn(move || {
        _ = std::io::stdin().read(&mut [0]);
        ended.cancel();
    });
    let served = async {
        println!("ready");
        Gate::new(settings, recorder).unwrap().serve(listeners, cancel).await
    };
    runtime.block_on(served).unwrap();
}

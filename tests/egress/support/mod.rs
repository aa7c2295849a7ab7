//! A guest without a microVM, and servers for it to reach.

mod servers;
mod squid;

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use mayfly_egress::address::AddressCheck;
use mayfly_egress::dial::{Lookup, Resolve, ResolveError};
use mayfly_egress::host::HostName;
use mayfly_egress::policy::Policy;
use mayfly_egress::record::{EgressRecorder, EgressReport, RecordIdentity, RecordLimits};
use mayfly_egress::{Gate, GateLimits, GateSettings, Listeners, listen};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

pub use servers::{Echo, TlsServer, WebServer};
pub use squid::Squid;

pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 1);
pub const GUEST: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 2);

/// A resolver whose answers a test sets.
#[derive(Default)]
pub struct FakeResolver(pub Mutex<Vec<(&'static str, Vec<IpAddr>)>>);

impl Resolve for FakeResolver {
    fn resolve<'a>(&'a self, name: &'a HostName) -> Lookup<'a> {
        let names = self.0.lock().unwrap();
        let found = names.iter().find(|(known, _)| *known == name.as_str());
        let answer = found.map(|(_, addresses)| addresses.clone());
        Box::pin(async move { answer.ok_or(ResolveError::NotFound) })
    }
}

/// A guest behind a gate. Dropping it stops the gate.
pub struct Guest {
    directory: TempDir,
    namespace: File,
    recorder: EgressRecorder,
    cancel: CancellationToken,
    gate: Option<JoinHandle<()>>,
}

/// Test options beside the policy.
#[derive(Default)]
pub struct Options {
    pub limits: GateLimits,
    pub names: FakeResolver,
    pub host: Vec<IpAddr>,
}

/// Runs a closure on a new thread, so that namespaces it enters do not affect the caller.
fn run_on_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}

pub fn new_namespace() -> File {
    run_on_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect(
            "network namespaces need root: run the tests \
             as root, or under `unshare --user --map-root-user`",
        );
        File::open("/proc/thread-self/ns/net").unwrap()
    })
}

pub fn run_in_namespace<T: Send>(namespace: &File, work: impl FnOnce() -> T + Send) -> T {
    run_on_thread(|| {
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
        work()
    })
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {output:?}");
}

impl Guest {
    pub fn new(policy: &str) -> Self {
        Self::with(policy, Options::default())
    }

    pub fn with(policy: &str, options: Options) -> Self {
        let policy = toml::from_str(policy).unwrap();
        let policy = Arc::new(Policy::check(Path::new("test"), "ci", &policy).unwrap());
        let directory = tempfile::tempdir().unwrap();
        let resolv = format!("nameserver {GATEWAY}\noptions attempts:3 timeout:5\n");
        std::fs::write(directory.path().join("resolv.conf"), resolv).unwrap();
        let outer = new_namespace();
        let namespace = new_namespace();
        join(&outer, &namespace);
        let listeners = run_in_namespace(&outer, || listen(&policy, GATEWAY)).unwrap();
        let identity = RecordIdentity { microvm: "vm1".into(), policy: "ci".into(), guest: GUEST };
        let recorder =
            EgressRecorder::create(directory.path(), identity, RecordLimits::default()).unwrap();
        let cancel = CancellationToken::new();
        let begin = (recorder.clone(), cancel.clone());
        let gate = start(policy, options, listeners, begin);
        Self { directory, namespace, recorder, cancel, gate: Some(gate) }
    }

    /// Runs a command as the guest would.
    pub fn run(&self, command: &[&str]) -> Output {
        self.run_with(command, &[])
    }

    /// Runs a command with variables of its environment set.
    pub fn run_with(&self, command: &[&str], environment: &[(&str, &str)]) -> Output {
        let resolv = self.directory.path().join("resolv.conf");
        run_in_namespace(&self.namespace, || {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some(&resolv), "/etc/resolv.conf", none, MsFlags::MS_BIND, none).unwrap();
            // Tests must not hang: no client here needs this long.
            Command::new("timeout")
                .arg("20")
                .args(command)
                .envs(environment.iter().copied())
                .stdin(Stdio::null())
                .output()
                .unwrap()
        })
    }

    /// Runs a closure in the guest's namespace.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        run_in_namespace(&self.namespace, work)
    }

    /// Runs curl. Returns its output with the status code after a space, or its error.
    pub fn curl(&self, arguments: &[&str]) -> Result<String, String> {
        let base = ["curl", "-sS", "-m", "15", "-w", " %{http_code}"];
        let output = self.run(&[&base[..], arguments].concat());
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
        }
    }

    /// Returns the JSON lines so far.
    pub fn events(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.directory.path().join("egress.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub fn access_log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("access.log")).unwrap()
    }

    pub fn report(&self) -> EgressReport {
        self.recorder.report()
    }

    /// Returns the synthetic address of a name in this guest.
    pub fn lookup(&self, name: &str) -> IpAddr {
        let output = self.run(&["getent", "ahostsv4", name]);
        let text = String::from_utf8_lossy(&output.stdout);
        text.split_whitespace().next().and_then(|text| text.parse().ok()).unwrap()
    }

    /// Waits until `found` returns a value. A packet is recorded shortly after it is sent, and the
    /// end of a connection when both sides have closed it, which is after its client is done.
    pub fn wait_for<T>(&self, what: &str, mut found: impl FnMut(&Self) -> Option<T>) -> T {
        for _ in 0..400 {
            if let Some(value) = found(self) {
                return value;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{what}: not in {:#?} nor in\n{}", self.events(), self.access_log());
    }

    /// Waits until the access log contains this text.
    pub fn wait_for_access(&self, text: &str) {
        self.wait_for(text, |guest| guest.access_log().contains(text).then_some(()));
    }

    /// Waits until a refusal with this text is among the events after the first `from`.
    pub fn wait_for_refusal(&self, from: usize, text: &str, what: &str) {
        self.wait_for(&format!("{what}: {text}"), |guest| {
            let refusals = refusals(&guest.events()[from..]);
            refusals.iter().any(|refusal| refusal.contains(text)).then_some(())
        });
    }

    /// Waits until exactly these refusals are recorded, as `HOST:PORT CAUSE`, without duplicates.
    pub fn expect_refusals(&self, expected: &[&str]) {
        self.wait_for(&format!("{expected:?}"), |guest| {
            (refusals(&guest.events()) == expected).then_some(())
        });
    }
}

fn refusals(events: &[serde_json::Value]) -> Vec<String> {
    let refused = events.iter().filter(|event| event["verdict"] == "refused");
    let mut texts: Vec<_> = refused
        .map(|event| {
            let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
            format!("{}:{} {}", text("host"), event["port"], text("cause"))
        })
        .collect();
    texts.sort();
    texts.dedup();
    texts
}

/// Connects the namespaces as a tap device connects a microVM and its namespace.
pub fn join(outer: &File, guest: &File) {
    // The path is of this process: `ip` is its child and may open it.
    use std::os::fd::AsRawFd;
    let path = format!("/proc/{}/fd/{}", std::process::id(), guest.as_raw_fd());
    run_in_namespace(outer, || {
        ip("link set lo up");
        ip("link add tap0 type veth peer name eth0");
        ip(&format!("link set eth0 netns {path}"));
        ip(&format!("addr add {GATEWAY}/24 dev tap0"));
        ip("link set tap0 up");
        ip("route add local 0.0.0.0/0 dev lo");
    });
    run_in_namespace(guest, || {
        ip("link set lo up");
        ip(&format!("addr add {GUEST}/24 dev eth0"));
        ip("link set eth0 up");
        ip(&format!("route add default via {GATEWAY}"));
    });
}

fn start(
    policy: Arc<Policy>,
    options: Options,
    listeners: Listeners,
    (recorder, cancel): (EgressRecorder, CancellationToken),
) -> JoinHandle<()> {
    let (ready, started) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let settings = GateSettings {
            policy,
            resolver: Arc::new(options.names),
            addresses: AddressCheck::new(options.host),
            limits: options.limits,
            gateway: GATEWAY,
        };
        let gate = Gate::new(settings, recorder).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        ready.send(()).unwrap();
        runtime.block_on(gate.serve(listeners, cancel)).unwrap();
    });
    started.recv().unwrap();
    thread
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.cancel.cancel();
        let ended = self.gate.take().unwrap().join();
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}

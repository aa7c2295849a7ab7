//! The files and sockets that the attempts try to reach.
//!
//! They are created in the mount and network namespaces of the daemon and are open to every process
//! that can name them. An attempt on a target that does not exist would prove nothing.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::Pid;

use crate::Parameters;

/// A thread in the daemon's namespaces, and the targets that it created there. The other threads
/// stay in their own namespaces.
pub(crate) struct TargetThread {
    pub(crate) parameters: Parameters,
    thread: JoinHandle<io::Result<()>>,
    stop: mpsc::Sender<()>,
}

impl TargetThread {
    /// Creates the targets that a state directory does not have. `own` is the compromised microVM.
    pub(crate) fn start(
        front: Pid,
        state: PathBuf,
        own: &str,
        parameters: Parameters,
    ) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel();
        let (stop, stopped) = mpsc::channel();
        let own = state.join("microvms").join(own);
        let thread = std::thread::spawn(move || {
            let targets = enter(front).and_then(|()| Targets::create(&state, &own, parameters));
            let targets = match targets {
                Ok(targets) => targets,
                Err(error) => return sender.send(Err(error)).map_err(io::Error::other),
            };
            sender.send(Ok(targets.parameters.clone())).map_err(io::Error::other)?;
            // Returns once the other end is dropped.
            let _ = stopped.recv();
            targets.remove()
        });
        let parameters = receiver.recv().map_err(io::Error::other)??;
        Ok(Self { parameters, thread, stop })
    }

    /// Removes the targets and ends the thread.
    pub(crate) fn stop(self) -> io::Result<()> {
        drop(self.stop);
        self.thread.join().map_err(|_| io::Error::other("the thread panicked"))?
    }
}

/// The targets, open as long as this value lives.
struct Targets {
    parameters: Parameters,
    created: Vec<PathBuf>,
    sockets: Vec<UnixListener>,
    _ports: Vec<TcpListener>,
}

/// Moves this thread, but no other, to the mount and network namespaces of a process.
fn enter(pid: Pid) -> io::Result<()> {
    let namespace = |name: &str| fs::File::open(format!("/proc/{pid}/ns/{name}"));
    let (mount, network) = (namespace("mnt")?, namespace("net")?);
    unshare(CloneFlags::CLONE_FS)?;
    setns(network, CloneFlags::CLONE_NEWNET)?;
    Ok(setns(mount, CloneFlags::CLONE_NEWNS)?)
}

impl Targets {
    /// Creates the missing targets and checks that all exist.
    fn create(state: &Path, own: &Path, overrides: Parameters) -> io::Result<Self> {
        let name = format!("mayfly-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name)?;
        let mut ports = vec![TcpListener::bind("127.0.0.1:0")?];
        // A container may lack IPv6.
        match TcpListener::bind("[::1]:0") {
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {}
            listener => ports.push(listener?),
        }
        let mut numbers = Vec::new();
        for (key, listener) in ["port4", "port6"].into_iter().zip(&ports) {
            numbers.push((key.to_owned(), listener.local_addr()?.port().to_string()));
        }
        let sockets = vec![UnixListener::bind_addr(&address)?];
        let parameters = Parameters::new();
        let mut targets = Self { parameters, created: Vec::new(), sockets, _ports: ports };
        let owner = fs::metadata(state)?.uid();
        let other = state.join("microvms/m-another000");
        targets.directory(&other, owner)?;
        for name in ["ledger.db", "token"] {
            targets.file(&state.join(name), owner)?;
        }
        let shepherd = other.join("front-0");
        for path in [&state.join("api.sock"), &shepherd, &state.join("any")] {
            targets.socket(path, owner)?;
        }
        let text = |path: &Path| path.display().to_string();
        targets.parameters.extend([
            ("ledger".to_owned(), text(&state.join("ledger.db"))),
            ("token".to_owned(), text(&state.join("token"))),
            ("other".to_owned(), text(&other)),
            ("own".to_owned(), text(own)),
            ("daemon".to_owned(), text(&state.join("api.sock"))),
            ("shepherd".to_owned(), text(&shepherd)),
            ("socket".to_owned(), text(&state.join("any"))),
            ("abstract".to_owned(), name),
        ]);
        targets.parameters.extend(numbers);
        targets.parameters.extend(overrides);
        targets.check()?;
        Ok(targets)
    }

    /// Checks that all targets exist: every attempt on a missing file fails, whatever protects it.
    fn check(&self) -> io::Result<()> {
        for key in ["ledger", "token", "other", "own", "image", "daemon", "shepherd", "socket"] {
            let path = self.parameters.get(key).ok_or_else(|| missing(key))?;
            fs::metadata(path).map_err(|error| io::Error::other(format!("{path}: {error}")))?;
        }
        Ok(())
    }

    fn directory(&mut self, path: &Path, owner: u32) -> io::Result<()> {
        fs::create_dir(path)?;
        self.created.push(path.to_owned());
        chown(path, Some(owner), None)
    }

    fn file(&mut self, path: &Path, owner: u32) -> io::Result<()> {
        if !path.exists() {
            fs::write(path, "secret")?;
            self.created.push(path.to_owned());
            chown(path, Some(owner), None)?;
        }
        Ok(())
    }

    fn socket(&mut self, path: &Path, owner: u32) -> io::Result<()> {
        if !path.exists() {
            self.sockets.push(UnixListener::bind(path)?);
            self.created.push(path.to_owned());
            chown(path, Some(owner), None)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
        }
        Ok(())
    }

    /// Removes the targets, and the file that an attempt created.
    fn remove(&self) -> io::Result<()> {
        let injected = Path::new(&self.parameters["own"]).join("injected");
        if injected.exists() {
            fs::remove_file(injected)?;
        }
        for path in self.created.iter().rev() {
            if path.is_dir() { fs::remove_dir(path)? } else { fs::remove_file(path)? }
        }
        Ok(())
    }
}

fn missing(key: &str) -> io::Error {
    io::Error::other(format!("missing parameter {key}=VALUE"))
}

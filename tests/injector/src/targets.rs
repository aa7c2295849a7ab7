//! Everything that the attempts are aimed at, there and open to who can reach it.
//!
//! It is made where the daemon is, in its mount and network namespaces: what is not to be found
//! from inside a microVM's processes has to be there for others.

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

use crate::Given;

/// A thread that is where the daemon is, while the others stay here, and what it has made there.
pub(crate) struct There {
    pub(crate) given: Given,
    thread: JoinHandle<io::Result<()>>,
    done: mpsc::Sender<()>,
}

impl There {
    /// Makes what a state directory does not have. `own` is the microVM that is taken over.
    pub(crate) fn enter(front: Pid, state: PathBuf, own: &str, given: Given) -> io::Result<Self> {
        let (tell, told) = mpsc::channel();
        let (done, wait) = mpsc::channel();
        let own = state.join("microvms").join(own);
        let thread = std::thread::spawn(move || {
            let targets = match enter(front).and_then(|()| Targets::make(&state, &own, given)) {
                Ok(targets) => targets,
                Err(error) => return tell.send(Err(error)).map_err(io::Error::other),
            };
            tell.send(Ok(targets.given.clone())).map_err(io::Error::other)?;
            // Until the other end is dropped.
            let _ = wait.recv();
            targets.remove()
        });
        let given = told.recv().map_err(io::Error::other)??;
        Ok(Self { given, thread, done })
    }

    /// Removes what was made.
    pub(crate) fn leave(self) -> io::Result<()> {
        drop(self.done);
        self.thread.join().map_err(|_| io::Error::other("the thread has panicked"))?
    }
}

/// What is there as long as this lives.
struct Targets {
    given: Given,
    made: Vec<PathBuf>,
    paths: Vec<UnixListener>,
    // Open as long as it lives.
    _ports: Vec<TcpListener>,
}

/// Enters the mount and network namespaces of a process, for this thread alone.
fn enter(pid: Pid) -> io::Result<()> {
    let namespace = |name: &str| fs::File::open(format!("/proc/{pid}/ns/{name}"));
    let (mount, network) = (namespace("mnt")?, namespace("net")?);
    unshare(CloneFlags::CLONE_FS)?;
    setns(network, CloneFlags::CLONE_NEWNET)?;
    Ok(setns(mount, CloneFlags::CLONE_NEWNS)?)
}

impl Targets {
    /// Makes those that are missing, and checks that all are there.
    fn make(state: &Path, own: &Path, given: Given) -> io::Result<Self> {
        let name = format!("mayfly-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name)?;
        let mut ports = vec![TcpListener::bind("127.0.0.1:0")?];
        // A container may have no IPv6.
        match TcpListener::bind("[::1]:0") {
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {}
            listener => ports.push(listener?),
        }
        let mut numbers = Vec::new();
        for (key, listener) in ["port4", "port6"].into_iter().zip(&ports) {
            numbers.push((key.to_owned(), listener.local_addr()?.port().to_string()));
        }
        let paths = vec![UnixListener::bind_addr(&address)?];
        let mut targets = Self { given: Given::new(), made: Vec::new(), paths, _ports: ports };
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
        targets.given.extend([
            ("ledger".to_owned(), text(&state.join("ledger.db"))),
            ("token".to_owned(), text(&state.join("token"))),
            ("other".to_owned(), text(&other)),
            ("own".to_owned(), text(own)),
            ("daemon".to_owned(), text(&state.join("api.sock"))),
            ("shepherd".to_owned(), text(&shepherd)),
            ("socket".to_owned(), text(&state.join("any"))),
            ("abstract".to_owned(), name),
        ]);
        targets.given.extend(numbers);
        targets.given.extend(given);
        targets.check()?;
        Ok(targets)
    }

    /// What is not there is refused whatever guards it.
    fn check(&self) -> io::Result<()> {
        for key in ["ledger", "token", "other", "own", "image", "daemon", "shepherd", "socket"] {
            let path = self.given.get(key).ok_or_else(|| missing(key))?;
            fs::metadata(path).map_err(|error| io::Error::other(format!("{path}: {error}")))?;
        }
        Ok(())
    }

    fn directory(&mut self, path: &Path, owner: u32) -> io::Result<()> {
        fs::create_dir(path)?;
        self.made.push(path.to_owned());
        chown(path, Some(owner), None)
    }

    fn file(&mut self, path: &Path, owner: u32) -> io::Result<()> {
        if !path.exists() {
            fs::write(path, "secret")?;
            self.made.push(path.to_owned());
            chown(path, Some(owner), None)?;
        }
        Ok(())
    }

    fn socket(&mut self, path: &Path, owner: u32) -> io::Result<()> {
        if !path.exists() {
            self.paths.push(UnixListener::bind(path)?);
            self.made.push(path.to_owned());
            chown(path, Some(owner), None)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
        }
        Ok(())
    }

    /// Removes what was made, and what the attempts have made.
    fn remove(&self) -> io::Result<()> {
        let injected = Path::new(&self.given["own"]).join("injected");
        if injected.exists() {
            fs::remove_file(injected)?;
        }
        for path in self.made.iter().rev() {
            if path.is_dir() { fs::remove_dir(path)? } else { fs::remove_file(path)? }
        }
        Ok(())
    }
}

fn missing(key: &str) -> io::Error {
    io::Error::other(format!("{key}=VALUE is missing"))
}

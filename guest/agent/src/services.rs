//! Programs that are started by the first who connects to their socket.
//!
//! Before there is a job the agent listens for each [`Service`]; its program inherits the socket as
//! from systemd (`sd_listen_fds(3)`). So a service that no job uses costs a socket and a thread, and
//! one that a job uses is there whenever it is asked for: who connects waits until it accepts.
//!
//! Everything is root's here, as it is with any init. A program's output goes to the console, of
//! which the host keeps a bounded tail.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mayfly_protocol::settings::Service;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;

use crate::error::{During, StepError};
use crate::job::reap::{self, Leave, Whom};
use crate::job::user;
use crate::power;

/// How often a program is started. One that keeps ending would keep the machine busy.
const STARTS: u32 = 5;

/// The MTU of a guest without a network: Ethernet's own.
const DEFAULT_MTU: u16 = 1500;

/// What stands between the agent and a service's program, run by the guest's own shell: the socket
/// comes as standard input, because that needs nothing between `fork` and `execve`; `exec` keeps the
/// process, which `LISTEN_PID` has to name. Files may be as many as a job's, and of all processes
/// the agent alone is never killed for want of memory.
const START: &str = "
echo 0 >/proc/self/oom_score_adj
ulimit -n 1048576 && ulimit -Sn 65536
LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\" 3<&0 </dev/null
";

/// The services of an image.
#[derive(Debug, Clone, Default)]
pub struct Services {
    services: Vec<Service>,
    state: Arc<Mutex<State>>,
}

/// Whether programs are started. It stays locked for the moment of a start.
#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Offered,
    Withdrawn,
}

impl Services {
    /// Services that are yet to be [offered](Self::offer).
    pub fn new(services: Vec<Service>) -> Self {
        Self { services, state: Arc::default() }
    }

    /// Listens for all of them. Must come before there is a job: a socket is closed to others only
    /// when all of this is done.
    ///
    /// `groups` is the file of groups; `mtu` that of the guest's network, where it has one.
    pub(crate) fn offer(&self, groups: &Path, mtu: Option<u16>) -> Result<(), StepError> {
        for service in &self.services {
            let listener = listen(service, groups)?;
            let attendant = Attendant {
                listener,
                arguments: with_mtu(&service.command, mtu.unwrap_or(DEFAULT_MTU)),
                state: Arc::clone(&self.state),
            };
            let thread = std::thread::Builder::new().name(service.name.clone());
            // It lasts as long as the machine, so nobody joins it.
            thread
                .spawn(move || attendant.attend())
                .map(drop)
                .during(|| format!("start the thread of the service {}", service.name))?;
        }
        Ok(())
    }

    /// Lets no program be started any more. Those that run are the caller's to end.
    pub(crate) fn withdraw(&self) {
        *lock(&self.state) = State::Withdrawn;
    }
}

/// A thread that waits for connections to one service.
struct Attendant {
    listener: UnixListener,
    arguments: Vec<String>,
    state: Arc<Mutex<State>>,
}

impl Attendant {
    /// Starts the program for a connection; when it has ended, for the next. After the last start
    /// the socket is closed: to be refused is better than to wait for ever.
    fn attend(self) {
        for _ in 0..STARTS {
            if self.wait_for_connection().is_err() {
                return;
            }
            match self.start() {
                Ok(Some(program)) => {
                    // Whether it is this thread that sees the end, or the job's that reaps it.
                    let _ended = reap::wait(Whom::One(program), Leave::Zombie);
                }
                Ok(None) => return,
                Err(error) => power::say(&error),
            }
        }
    }

    fn wait_for_connection(&self) -> Result<(), Errno> {
        loop {
            let mut listener = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
            match poll(&mut listener, PollTimeout::NONE) {
                Err(Errno::EINTR) => {}
                result => return result.map(drop),
            }
        }
    }

    /// Starts the program, unless the services were withdrawn.
    fn start(&self) -> Result<Option<Pid>, StepError> {
        let state = lock(&self.state);
        if *state == State::Withdrawn {
            return Ok(None);
        }
        let started = self.listener.try_clone().and_then(|socket| spawn(socket, &self.arguments));
        started.map(Some).during(|| format!("start {}", self.arguments.join(" ")))
    }
}

fn spawn(socket: UnixListener, arguments: &[String]) -> io::Result<Pid> {
    let program = Command::new("/bin/sh")
        .args(["-c", START, "service"])
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env("LANG", "C.UTF-8")
        .stdin(Stdio::from(OwnedFd::from(socket)))
        .process_group(0)
        .spawn()?;
    // Whoever reaps the job's orphans reaps this one, too.
    Ok(Pid::from_raw(program.id().cast_signed()))
}

/// Makes a service's socket: for root and those of its group.
fn listen(service: &Service, groups: &Path) -> Result<UnixListener, StepError> {
    let path = PathBuf::from(&service.socket);
    let step = || format!("make the socket {} of {}", service.socket, service.name);
    let known = fs::read(groups).during(|| format!("read {}", groups.display()))?;
    let group = user::group_number(&service.group, &known)
        .ok_or_else(|| StepError::new(step(), format!("there is no group {}", service.group)))?;
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).during(step)?;
    }
    let listener = UnixListener::bind(&path).during(step)?;
    chown(&path, None, Some(group)).during(step)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).during(step)?;
    Ok(listener)
}

/// The arguments with the MTU where they ask for it.
fn with_mtu(command: &[String], mtu: u16) -> Vec<String> {
    command.iter().map(|argument| argument.replace("{mtu}", &mtu.to_string())).collect()
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // A thread that panicked has ended the process.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// A service in a directory of its own, whose program is a shell script there.
    struct Fixture {
        directory: tempfile::TempDir,
        services: Services,
    }

    impl Fixture {
        fn offer(script: &str) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let group = nix::unistd::getegid();
            fs::write(directory.path().join("group"), format!("own:x:{group}:\n")).unwrap();
            let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
            let service = Service {
                name: "test".to_owned(),
                socket: path("run/test.sock"),
                group: "own".to_owned(),
                command: ["sh", "-c", script, "{mtu}", &path("out")].map(str::to_owned).into(),
            };
            let services = Services::new(vec![service]);
            services.offer(&directory.path().join("group"), Some(1400)).unwrap();
            Self { directory, services }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn connect(&self) -> io::Result<UnixStream> {
            UnixStream::connect(self.path("run/test.sock"))
        }

        fn wait_for(&self, what: &str, there: impl Fn(&str) -> bool) -> String {
            let start = Instant::now();
            loop {
                let text = fs::read_to_string(self.path("out")).unwrap_or_default();
                if there(&text) {
                    return text;
                }
                assert!(start.elapsed() < PATIENCE, "{what}: {text:?}");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    #[test]
    fn a_program_starts_with_the_first_connection_and_inherits_the_socket() {
        // It ends, and finds its own words when it is started again.
        let script = "test -e \"$1\" && exit; exec >\"$1.part\"
            test $LISTEN_PID = $$ && echo $0 $LISTEN_FDS
            readlink /proc/self/fd/0 /proc/self/fd/3; mv \"$1.part\" \"$1\"";
        let service = Fixture::offer(script);
        let socket = fs::metadata(service.path("run/test.sock")).unwrap();
        assert_eq!(socket.mode() & 0o777, 0o660);
        assert!(!service.path("out").exists(), "nobody has connected");

        let _connection = service.connect().unwrap();
        let text = service.wait_for("the program's words", |text| !text.is_empty());
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[..2], ["1400 1", "/dev/null"]);
        assert!(lines[2].starts_with("socket:"), "{text}");
    }

    #[test]
    fn a_program_that_ended_is_started_again_but_not_for_ever() {
        // It never accepts, so that the one connection is there for every start.
        let service = Fixture::offer("echo started >>\"$1\"");
        let connection = service.connect().unwrap();
        service.wait_for("all starts", |text| text.lines().count() >= STARTS as usize);
        // The last program has written, but may not have ended yet; with its end the socket closes.
        let start = Instant::now();
        let refused = loop {
            match service.connect() {
                Err(refused) => break refused,
                Ok(_) => assert!(start.elapsed() < PATIENCE, "the socket is not closed"),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        drop(connection);
        let text = service.wait_for("the starts", |_| true);
        assert_eq!(text.lines().count(), STARTS as usize);
    }

    #[test]
    fn nothing_is_started_once_the_services_are_withdrawn() {
        let service = Fixture::offer("echo started >>\"$1\"");
        service.services.withdraw();
        let mut connection = service.connect().unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        // It is closed when the thread has ended.
        let _reset = connection.read(&mut [0]);
        assert!(!service.path("out").exists());
    }

    #[test]
    fn a_group_that_is_not_there_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let groups = directory.path().join("group");
        fs::write(&groups, "root:x:0:\n").unwrap();
        let service = Service {
            name: "docker".to_owned(),
            socket: directory.path().join("docker.sock").to_str().unwrap().to_owned(),
            group: "docker".to_owned(),
            command: vec!["true".to_owned()],
        };
        let error = Services::new(vec![service]).offer(&groups, None).unwrap_err();
        let message = crate::error::chain(&error);
        assert!(
            message.contains("docker.sock") && message.contains("no group docker"),
            "{message}"
        );
    }

    #[test]
    fn the_mtu_is_put_where_it_is_asked_for() {
        let command = ["dockerd", "--mtu={mtu}", "a={mtu}{mtu}"].map(str::to_owned);
        assert_eq!(with_mtu(&command, 9000), ["dockerd", "--mtu=9000", "a=90009000"]);
    }
}

//! Starts service programs at the first connection to their socket.
//!
//! The agent listens for each [`Service`] before the job starts. The program inherits the socket as
//! with systemd (`sd_listen_fds(3)`). An unused service costs only a socket and a thread, and a
//! used one is always reachable: a client waits until the program accepts its connection.
//!
//! Services run as root, as with any init. Their output goes to the console, of which the host
//! keeps a limited tail.

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

use crate::error::{Context, StepError};
use crate::job::reap::{self, ReapMode, WaitFor};
use crate::job::user;
use crate::power;

/// The most starts of a program, so that one that keeps exiting does not keep the machine busy.
const STARTS: u32 = 5;

/// The MTU of a guest without a network: that of Ethernet.
const DEFAULT_MTU: u16 = 1500;

/// The script with which the guest's shell starts a service's program.
///
/// The socket is passed as standard input, because that needs no code between `fork` and `execve`.
/// `exec` keeps the process ID, which `LISTEN_PID` must contain. The limit of open files is that of
/// a job, and the OOM killer may kill the program, unlike the agent.
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

/// Whether programs may be started. Locked during each start.
#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Enabled,
    Disabled,
}

impl Services {
    /// Returns services that are not yet [offered](Self::offer).
    pub fn new(services: Vec<Service>) -> Self {
        Self { services, state: Arc::default() }
    }

    /// Listens on the sockets of all services. Must be called before the job starts: a socket is
    /// inaccessible to other users only when this has finished.
    ///
    /// `groups` is the path of the group file; `mtu` is that of the guest's network, if it has one.
    pub(crate) fn offer(&self, groups: &Path, mtu: Option<u16>) -> Result<(), StepError> {
        for service in &self.services {
            let listener = listen(service, groups)?;
            let service_thread = ServiceThread {
                listener,
                arguments: insert_mtu(&service.command, mtu.unwrap_or(DEFAULT_MTU)),
                state: Arc::clone(&self.state),
            };
            let thread = std::thread::Builder::new().name(service.name.clone());
            // Runs as long as the machine, so it is never joined.
            thread
                .spawn(move || service_thread.run())
                .map(drop)
                .context(|| format!("start the thread of the service {}", service.name))?;
        }
        Ok(())
    }

    /// Disables further starts. The caller must end the running programs.
    pub(crate) fn disable(&self) {
        *lock(&self.state) = State::Disabled;
    }
}

/// A thread that waits for connections to one service.
struct ServiceThread {
    listener: UnixListener,
    arguments: Vec<String>,
    state: Arc<Mutex<State>>,
}

impl ServiceThread {
    /// Starts the program at the first connection, and again for the next one once it has ended.
    /// After the last start it closes the socket: a refused connection is better than an endless
    /// wait.
    fn run(self) {
        for _ in 0..STARTS {
            if self.wait_for_connection().is_err() {
                return;
            }
            match self.start() {
                Ok(Some(program)) => {
                    // This thread or the job's, which reaps it, sees the end first.
                    let _ended = reap::wait(WaitFor::One(program), ReapMode::KeepZombie);
                }
                Ok(None) => return,
                Err(error) => power::log_error(&error),
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

    /// Starts the program, unless the services are disabled.
    fn start(&self) -> Result<Option<Pid>, StepError> {
        let state = lock(&self.state);
        if *state == State::Disabled {
            return Ok(None);
        }
        let started = self.listener.try_clone().and_then(|socket| spawn(socket, &self.arguments));
        started.map(Some).context(|| format!("start {}", self.arguments.join(" ")))
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
    // The thread that reaps the job's orphans reaps this process, too.
    Ok(Pid::from_raw(program.id().cast_signed()))
}

/// Creates a service's socket, accessible to root and its group.
fn listen(service: &Service, groups: &Path) -> Result<UnixListener, StepError> {
    let path = PathBuf::from(&service.socket);
    let step = || format!("create the socket {} of {}", service.socket, service.name);
    let known = fs::read(groups).context(|| format!("read {}", groups.display()))?;
    let group = user::group_number(&service.group, &known)
        .ok_or_else(|| StepError::new(step(), format!("unknown group {}", service.group)))?;
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).context(step)?;
    }
    let listener = UnixListener::bind(&path).context(step)?;
    chown(&path, None, Some(group)).context(step)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).context(step)?;
    Ok(listener)
}

/// Replaces `{mtu}` in the arguments by the MTU.
fn insert_mtu(command: &[String], mtu: u16) -> Vec<String> {
    command.iter().map(|argument| argument.replace("{mtu}", &mtu.to_string())).collect()
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // Ignores poisoning by a panicked thread.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(30);

    /// A service in its own directory, whose program is a shell script.
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
                assert!(start.elapsed() < TIMEOUT, "{what}: {text:?}");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    #[test]
    fn a_program_starts_with_the_first_connection_and_inherits_the_socket() {
        // It exits; if it is started again, it finds its own output and does nothing.
        let script = "test -e \"$1\" && exit; exec >\"$1.part\"
            test $LISTEN_PID = $$ && echo $0 $LISTEN_FDS
            readlink /proc/self/fd/0 /proc/self/fd/3; mv \"$1.part\" \"$1\"";
        let service = Fixture::offer(script);
        let socket = fs::metadata(service.path("run/test.sock")).unwrap();
        assert_eq!(socket.mode() & 0o777, 0o660);
        assert!(!service.path("out").exists(), "started before a connection");

        let _connection = service.connect().unwrap();
        let text = service.wait_for("the output", |text| !text.is_empty());
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[..2], ["1400 1", "/dev/null"]);
        assert!(lines[2].starts_with("socket:"), "{text}");
    }

    #[test]
    fn a_program_that_ended_is_restarted_a_limited_number_of_times() {
        // It never accepts, so the one connection causes every start.
        let service = Fixture::offer("echo started >>\"$1\"");
        let connection = service.connect().unwrap();
        service.wait_for("all starts", |text| text.lines().count() >= STARTS as usize);
        // The last program has written, but may not have ended yet; with its end the socket closes.
        let start = Instant::now();
        let refused = loop {
            match service.connect() {
                Err(refused) => break refused,
                Ok(_) => assert!(start.elapsed() < TIMEOUT, "the socket is not closed"),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        drop(connection);
        let text = service.wait_for("the starts", |_| true);
        assert_eq!(text.lines().count(), STARTS as usize);
    }

    #[test]
    fn nothing_is_started_once_the_services_are_disabled() {
        let service = Fixture::offer("echo started >>\"$1\"");
        service.services.disable();
        let mut connection = service.connect().unwrap();
        connection.set_read_timeout(Some(TIMEOUT)).unwrap();
        // The socket is closed when the thread has ended.
        let _reset = connection.read(&mut [0]);
        assert!(!service.path("out").exists());
    }

    #[test]
    fn an_unknown_group_is_named() {
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
            message.contains("docker.sock") && message.contains("unknown group docker"),
            "{message}"
        );
    }

    #[test]
    fn the_mtu_is_inserted_into_the_arguments() {
        let command = ["dockerd", "--mtu={mtu}", "a={mtu}{mtu}"].map(str::to_owned);
        assert_eq!(insert_mtu(&command, 9000), ["dockerd", "--mtu=9000", "a=90009000"]);
    }
}

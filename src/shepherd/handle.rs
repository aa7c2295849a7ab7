//! A front end's handle to its shepherd.

use std::collections::VecDeque;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream as Socket;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mayfly_protocol::frame::{self, FrameError};
use mayfly_protocol::message::{HostMessage, Job};
use nix::sys::wait::{Id as Waited, WaitPidFlag, WaitStatus, waitid};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::attach::{self, AttachError};
use super::detached::MicrovmDirectory;
use super::enclosure::{self, EnclosedProgram, EnclosureError};
use super::event::Event;
use super::identity;
use super::plan::{MicrovmPlan, ShepherdCommand};
use super::process::FRONT_END_FD;
use super::record::{self, Liveness};
use super::streams::FIRST_COPY_FD;
use super::wire::{
    self, Acknowledgement, Lines, Message, ShepherdReport, VersionError, WireError, WireHello,
};
use mayfly_failure::{Code, Failure};
use mayfly_host::descriptors;

/// An error of starting or controlling a shepherd.
#[derive(Debug, thiserror::Error)]
pub enum HandleError {
    /// The shepherd could not be started.
    #[error(transparent)]
    Enclosure(#[from] EnclosureError),
    /// The directory of a detached shepherd can't be created or used.
    #[error("can't create or use the directory {0}")]
    Directory(PathBuf, #[source] io::Error),
    /// The connection to the shepherd failed.
    #[error("lost the connection to the shepherd")]
    Connection(#[source] io::Error),
    /// The job does not fit into one message.
    #[error("the job's arguments, variables and paths exceed the limit of one message")]
    TooLong(#[source] FrameError),
    /// The command can't be encoded or is too long.
    #[error("can't send a command to the shepherd")]
    Command(#[source] WireError),
    /// The shepherd does not read commands: it is stopped or hangs.
    #[error("the shepherd has not read the last {QUEUE_LENGTH} commands")]
    NotReading,
    /// The started program has no protocol version in common with this one.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// The shepherd exited without reporting a reason.
    #[error("the shepherd exited unexpectedly: {0}")]
    Exited(String),
}

impl Failure for HandleError {
    fn code(&self) -> Code {
        match self {
            Self::Enclosure(error) => error.code(),
            Self::Directory(..) => Code::CannotWrite,
            Self::TooLong(_) | Self::Command(_) => Code::Usage,
            Self::Connection(_) | Self::Exited(_) | Self::NotReading | Self::Version(_) => {
                Code::MachineFailed
            }
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Enclosure(error) => error.hint(),
            Self::TooLong(_) => Some("pass large data in a file".to_owned()),
            Self::Version(_) => {
                Some("restart the daemon: the program it was started from was replaced".to_owned())
            }
            Self::Directory(..)
            | Self::Connection(_)
            | Self::Command(_)
            | Self::NotReading
            | Self::Exited(_) => None,
        }
    }
}

/// Checks that a job fits into the message that carries it to the guest. To be called before
/// anything is started.
pub fn check_job(job: &Job) -> Result<(), HandleError> {
    let start = HostMessage::Start(job.clone());
    frame::encode(&start).map(drop).map_err(HandleError::TooLong)
}

/// The descriptors of a job's streams.
#[derive(Debug)]
pub struct JobDescriptors {
    /// Standard input, output and error.
    pub standard: [OwnedFd; 3],
    /// Archives to copy in, open for reading, followed by archives to copy out, open for writing.
    pub copies: Vec<OwnedFd>,
}

/// A message from a shepherd to its front end.
#[derive(Debug, Clone, PartialEq)]
pub enum ShepherdUpdate {
    /// An event.
    Event(Box<Event>),
    /// The shepherd received a command and all with smaller numbers.
    Acknowledged(Acknowledgement),
}

/// A handle to a shepherd, running or not. If the handle of an attached shepherd is dropped, the
/// shepherd ends its microVM; a detached shepherd continues.
pub struct ShepherdHandle {
    // Of a detached shepherd.
    directory: Option<PathBuf>,
    // Of an attached shepherd that got its plan.
    evidence_directory: Option<PathBuf>,
    // `None` if the shepherd had exited before it was looked up.
    pidfd: Option<OwnedFd>,
    // `None` if there is no connection.
    commands: Option<mpsc::Sender<Vec<u8>>>,
    updates: mpsc::Receiver<ShepherdUpdate>,
    last: u64,
    unacknowledged: VecDeque<(u64, ShepherdCommand)>,
    // Reads updates and writes commands; both end with the connection.
    _tasks: JoinSet<()>,
}

/// Capacity of the queue of updates and of the queue of commands.
const QUEUE_LENGTH: usize = 64;

/// How long a shepherd may hold its directory after its connection ended.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval between two checks of the directory.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// How long a started shepherd may take to send its hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(60);

impl ShepherdHandle {
    /// The default program of a shepherd: this executable, with the argument `shepherd`.
    pub const THIS_PROGRAM: &str = "/proc/self/exe";

    /// Starts an attached shepherd, which ends with this process.
    pub fn spawn(descriptors: &JobDescriptors) -> Result<Self, HandleError> {
        let (ours, theirs) = Socket::pair().map_err(HandleError::Connection)?;
        let standard = descriptors.standard.iter().map(AsRawFd::as_raw_fd);
        let copies = descriptors.copies.iter().map(AsRawFd::as_raw_fd);
        let all: Vec<RawFd> = standard.chain([theirs.as_raw_fd()]).chain(copies).collect();
        const {
            assert!(
                FRONT_END_FD == 3 && FIRST_COPY_FD == FRONT_END_FD + 1,
                "the order of descriptors"
            );
        };
        let pidfd = start(Self::THIS_PROGRAM.as_ref(), &all)?;
        let (read, write) = asynchronous(ours)?.into_split();
        // The same program, so its hello needs no check.
        Self::new(None, Some(pidfd), Some(write), 0, |to| async move {
            forward(Lines::new(read), &to).await;
        })
    }

    /// Starts a detached shepherd, which outlives this process, and sends it its plan
    /// ([`MicrovmPlan::detached`] must be set). `program` is Mayfly's executable.
    ///
    /// Creates the plan's directory. The caller removes it with [`record::collect`] or
    /// [`record::keep_black_box`] after the microVM's end. On error nothing remains. The process is
    /// a child of this one and remains a zombie until [`ShepherdHandle::wait`] returns.
    pub async fn spawn_detached(program: &Path, plan: &MicrovmPlan) -> Result<Self, HandleError> {
        let refused = |error| HandleError::Directory(plan.directory.clone(), error);
        let directory_guard = MicrovmDirectory::create(&plan.directory).map_err(refused)?;
        match Self::spawn_in(&directory_guard, program, plan).await {
            // The shepherd owns lock and listener now.
            Ok(handle) => Ok(handle),
            Err(error) => {
                directory_guard.remove();
                Err(error)
            }
        }
    }

    async fn spawn_in(
        directory_guard: &MicrovmDirectory,
        program: &Path,
        plan: &MicrovmPlan,
    ) -> Result<Self, HandleError> {
        let (ours, theirs) = Socket::pair().map_err(HandleError::Connection)?;
        let null = std::fs::File::options().read(true).write(true).open("/dev/null");
        let null = null.map_err(HandleError::Connection)?;
        let [listener, lock] = directory_guard.descriptors();
        let standard = [null.as_raw_fd(); 3];
        let all: Vec<RawFd> =
            standard.into_iter().chain([theirs.as_raw_fd(), listener, lock]).collect();
        // Everything that can fail is done before the start, or kills the process on failure.
        let (read, write) = asynchronous(ours)?.into_split();
        let started = KillOnDrop(Some(start(program, &all)?));
        drop(theirs);
        let mut lines = Lines::new(read);
        let hello = tokio::time::timeout(HELLO_TIMEOUT, lines.next_report());
        match hello.await {
            Ok(Ok(Some(ShepherdReport::Hello(hello)))) => hello.check()?,
            Ok(_) => return Err(HandleError::Exited("it sent no hello".to_owned())),
            Err(_) => return Err(HandleError::NotReading),
        }
        let directory = plan.directory.clone();
        let follow = |to| follow(directory.clone(), Some(lines), to);
        let mut handle = Self::new(Some(directory.clone()), None, Some(write), 0, follow)?;
        handle.send_command(&ShepherdCommand::Prepare(Box::new(plan.clone())))?;
        handle.pidfd = started.disarm();
        Ok(handle)
    }

    /// Attaches to the detached shepherd of a directory, regardless of who started it. All events
    /// from the first on are delivered again; those of an exited shepherd are read from its record.
    /// An error never means that the shepherd is gone.
    pub async fn attach(directory: &Path) -> Result<Self, AttachError> {
        let attached = attach::attach(directory).await?;
        let (read, write, acknowledged) = match attached.connection {
            Some((lines, write, hello)) => (Some(lines), Some(write), hello.acknowledged),
            None => (None, None, 0),
        };
        let path = directory.to_owned();
        let follow = |to| follow(path, read, to);
        let pidfd = attached.pidfd;
        Self::new(Some(directory.to_owned()), pidfd, write, acknowledged, follow)
            .map_err(|error| AttachError::Failed(io::Error::other(error)))
    }

    fn new<F: Future<Output = ()> + Send + 'static>(
        directory: Option<PathBuf>,
        pidfd: Option<OwnedFd>,
        write: Option<OwnedWriteHalf>,
        last: u64,
        read: impl FnOnce(mpsc::Sender<ShepherdUpdate>) -> F,
    ) -> Result<Self, HandleError> {
        let (sender, updates) = mpsc::channel(QUEUE_LENGTH);
        let mut tasks = JoinSet::new();
        tasks.spawn(read(sender));
        let hello =
            wire::encode(&Message::Hello(&WireHello::ours(0))).map_err(HandleError::Command)?;
        let commands = write.map(|write| {
            let (commands, lines) = mpsc::channel(QUEUE_LENGTH);
            tasks.spawn(write_lines(write, hello, lines));
            commands
        });
        let unacknowledged = VecDeque::new();
        let evidence_directory = None;
        Ok(Self {
            directory,
            evidence_directory,
            pidfd,
            commands,
            updates,
            last,
            unacknowledged,
            _tasks: tasks,
        })
    }

    /// Queues a command and returns its number. Never waits. [`ShepherdUpdate::Acknowledged`]
    /// reports that the shepherd received it; events report its effect. A second `Start` is
    /// ignored; an accepted one leads to the phase `claimed`.
    pub fn send_command(&mut self, command: &ShepherdCommand) -> Result<u64, HandleError> {
        let number = self.last + 1;
        if let (ShepherdCommand::Prepare(plan), None) = (command, &self.directory) {
            self.evidence_directory = Some(plan.directory.clone());
        }
        self.enqueue(number, command)?;
        self.last = number;
        self.unacknowledged.push_back((number, command.clone()));
        Ok(number)
    }

    fn enqueue(&self, number: u64, command: &ShepherdCommand) -> Result<(), HandleError> {
        if self.unacknowledged.len() >= QUEUE_LENGTH {
            return Err(HandleError::NotReading);
        }
        let line =
            wire::encode(&Message::Command { number, command }).map_err(HandleError::Command)?;
        match self.commands.as_ref().map(|commands| commands.try_send(line)) {
            Some(Err(mpsc::error::TrySendError::Full(_))) => Err(HandleError::NotReading),
            // The shepherd or the connection has ended; the end of the updates shows it.
            None | Some(Ok(()) | Err(mpsc::error::TrySendError::Closed(_))) => Ok(()),
        }
    }

    /// Returns the unacknowledged commands with their numbers, for [`ShepherdHandle::resend`].
    pub fn into_unacknowledged(self) -> VecDeque<(u64, ShepherdCommand)> {
        self.unacknowledged
    }

    /// Sends unacknowledged commands again after attaching, under their former numbers. The
    /// shepherd does not repeat a command that it received already.
    pub fn resend(
        &mut self,
        commands: impl IntoIterator<Item = (u64, ShepherdCommand)>,
    ) -> Result<(), HandleError> {
        for (number, command) in commands {
            if number > self.last {
                self.enqueue(number, &command)?;
                self.last = number;
                self.unacknowledged.push_back((number, command));
            }
        }
        Ok(())
    }

    /// Returns the next update, or `None` once the connection has ended: the shepherd exited, a
    /// newer connection replaced this one, or this one was not read for too long.
    /// [`record::liveness`] tells these apart. Cancel-safe.
    pub async fn next_update(&mut self) -> Option<ShepherdUpdate> {
        let update = self.updates.recv().await;
        if let Some(ShepherdUpdate::Acknowledged(acknowledged)) = &update {
            self.unacknowledged.retain(|(number, _)| *number > acknowledged.number);
        }
        update
    }

    /// Returns the next event; otherwise as [`ShepherdHandle::next_update`].
    pub async fn next_event(&mut self) -> Option<Event> {
        loop {
            if let ShepherdUpdate::Event(event) = self.next_update().await? {
                return Some(*event);
            }
        }
    }

    /// Kills the shepherd, and with it all processes of its microVM, through a pidfd, so that no
    /// other process can be hit. For a shepherd that does not obey commands.
    pub fn kill(&self) -> Result<(), HandleError> {
        let looked_up = match (&self.pidfd, &self.directory) {
            (None, Some(directory)) => {
                record::process(directory).map_err(HandleError::Connection)?
            }
            _ => None,
        };
        match self.pidfd.as_ref().or(looked_up.as_ref()) {
            Some(pidfd) => identity::kill(pidfd).map_err(HandleError::Connection),
            None => Ok(()),
        }
    }

    /// Waits for the shepherd's process, which exits after its last event, and returns its exit
    /// status as text. Removes the directory of an attached shepherd if it holds no evidence.
    pub async fn wait(mut self) -> Result<String, HandleError> {
        let evidence_directory = self.evidence_directory.take();
        let ended = self.wait_for_process().await;
        // The removal fails if there is evidence in it.
        let _ = evidence_directory.map(std::fs::remove_dir);
        ended
    }

    async fn wait_for_process(self) -> Result<String, HandleError> {
        let Some(pidfd) = self.pidfd else { return Ok("ended before".to_owned()) };
        // SAFETY: an `OwnedFd` is the same open descriptor for as long as it lives.
        let ended = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
        let ended = ended.map_err(|error| HandleError::Connection(error.into()))?;
        drop(ended.readable().await.map_err(HandleError::Connection)?);
        match waitid(Waited::PIDFd(std::os::fd::AsFd::as_fd(&ended)), WaitPidFlag::WEXITED) {
            Ok(WaitStatus::Exited(_, code)) => Ok(format!("exit status {code}")),
            Ok(WaitStatus::Signaled(_, signal, _)) => Ok(format!("signal {signal}")),
            // Not a child of this process.
            Ok(_) | Err(nix::Error::ECHILD) => Ok("ended".to_owned()),
            Err(error) => Err(HandleError::Connection(error.into())),
        }
    }
}

/// A process that is killed on drop unless disarmed.
struct KillOnDrop(Option<OwnedFd>);

impl KillOnDrop {
    fn disarm(mut self) -> Option<OwnedFd> {
        self.0.take()
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(pidfd) = &self.0 {
            // Fails only if it has exited already.
            let _ = identity::kill(pidfd);
            let _ = waitid(Waited::PIDFd(std::os::fd::AsFd::as_fd(pidfd)), WaitPidFlag::WEXITED);
        }
    }
}

fn start(program: &Path, descriptors: &[RawFd]) -> Result<OwnedFd, HandleError> {
    let path = CString::new(program.as_os_str().as_bytes());
    let path = path.map_err(|error| HandleError::Connection(error.into()))?;
    let child = enclosure::spawn(&EnclosedProgram {
        path: &path,
        arguments: &[CString::from(c"mayfly"), CString::from(c"shepherd")],
        environment: &[],
        descriptors,
    })?;
    Ok(child.pidfd)
}

pub(super) fn asynchronous(socket: Socket) -> Result<UnixStream, HandleError> {
    let set = socket.set_nonblocking(true);
    set.and_then(|()| UnixStream::from_std(socket)).map_err(HandleError::Connection)
}

/// Writes the hello and then the queued commands, until the connection ends.
async fn write_lines(
    mut to: OwnedWriteHalf,
    hello: Vec<u8>,
    mut commands: mpsc::Receiver<Vec<u8>>,
) {
    let mut line = hello;
    // The reader of updates notices a closed connection.
    while to.write_all(&line).await.is_ok() {
        match commands.recv().await {
            Some(next) => line = next,
            None => return,
        }
    }
}

/// Forwards updates until the connection ends or is invalid. Returns the number of events, and
/// false if the receiver is gone.
async fn forward(
    mut lines: Lines<OwnedReadHalf>,
    to: &mpsc::Sender<ShepherdUpdate>,
) -> (usize, bool) {
    let mut received = 0;
    while let Ok(Some(report)) = lines.next_report().await {
        let update = match report {
            ShepherdReport::Event(event) => {
                received += 1;
                ShepherdUpdate::Event(Box::new(event.normalize()))
            }
            ShepherdReport::Acknowledged(answer) => ShepherdUpdate::Acknowledged(answer),
            ShepherdReport::Hello(_) | ShepherdReport::Unknown => continue,
        };
        if to.send(update).await.is_err() {
            return (received, false);
        }
    }
    (received, true)
}

/// Forwards the updates of a detached shepherd: those of the connection, then the events that are
/// only in the record.
async fn follow(
    directory: PathBuf,
    lines: Option<Lines<OwnedReadHalf>>,
    to: mpsc::Sender<ShepherdUpdate>,
) {
    let (received, is_open) = match lines {
        Some(lines) => forward(lines, &to).await,
        None => (0, true),
    };
    if !is_open {
        return;
    }
    let released = async {
        // An error does not mean that the shepherd is gone.
        while !matches!(record::liveness(&directory), Ok(Liveness::Gone)) {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    if tokio::time::timeout(RELEASE_TIMEOUT, released).await.is_err() {
        // It is running and has a newer connection.
        return;
    }
    let events = loop {
        match record::read_events(&directory) {
            Ok(events) => break events,
            // Other errors end the updates; the follower checks the shepherd again.
            Err(error) if !descriptors::is_exhausted(&error) => return,
            Err(_) => tokio::time::sleep(POLL_INTERVAL).await,
        }
    };
    for event in events.into_iter().skip(received) {
        if to.send(ShepherdUpdate::Event(Box::new(event))).await.is_err() {
            return;
        }
    }
}

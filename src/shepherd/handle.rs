//! A shepherd, as its front end holds it.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream as Socket;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mayfly_protocol::frame::{self, FrameError};
use nix::sys::wait::{Id as Waited, WaitPidFlag, WaitStatus, waitid};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::detached::{self, Place};
use super::enclosure::{self, EnclosureError, Program};
use super::event::Event;
use super::job::FIRST_COPY;
use super::plan::{Order, Plan};
use super::process::FRONT;
use super::record;
use crate::channel::frames;
use crate::failure::{Code, Failure};

/// What goes wrong between a front end and its shepherd.
#[derive(Debug, thiserror::Error)]
pub enum HandleError {
    /// It could not be started.
    #[error(transparent)]
    Enclosure(#[from] EnclosureError),
    /// The directory of a detached one was refused.
    #[error("can't make or use the directory {0}")]
    Directory(PathBuf, #[source] io::Error),
    /// The connection to it failed.
    #[error("lost the connection to the shepherd")]
    Connection(#[source] io::Error),
    /// An order does not fit into a message.
    #[error("arguments, variables and paths of the job are too much for one message")]
    TooLong(#[source] FrameError),
    /// It ended without telling why.
    #[error("the shepherd ended without a word: {0}")]
    Vanished(String),
}

impl Failure for HandleError {
    fn code(&self) -> Code {
        match self {
            Self::Enclosure(error) => error.code(),
            Self::Directory(..) => Code::CannotWrite,
            Self::TooLong(_) => Code::Usage,
            Self::Connection(_) | Self::Vanished(_) => Code::MachineFailed,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Enclosure(error) => error.hint(),
            Self::TooLong(_) => Some("copy large data in as a file with --copy-in".to_owned()),
            Self::Directory(..) | Self::Connection(_) | Self::Vanished(_) => None,
        }
    }
}

/// The descriptors that a job's streams go to and come from.
#[derive(Debug)]
pub struct Descriptors {
    /// Standard input, output and error.
    pub standard: [OwnedFd; 3],
    /// Archives to copy in, open for reading, then archives that are copied out, open for
    /// writing.
    pub copies: Vec<OwnedFd>,
}

/// A shepherd, living or not. Where the handle of an attached one is dropped, the shepherd ends its
/// microVM; a detached one goes on.
pub struct Handle {
    // None of one that had ended before it was looked for.
    pidfd: Option<OwnedFd>,
    orders: Option<OwnedWriteHalf>,
    events: mpsc::Receiver<Event>,
    // Of an attached one that was given its plan.
    directory: Option<PathBuf>,
    // The reader of events; ends with the connection.
    _reader: JoinSet<()>,
}

/// Events that wait to be looked at.
const WAITING: usize = 16;

/// How long a shepherd whose connection ended may take to let go of its directory.
const LETTING_GO: Duration = Duration::from_secs(2);
/// Between two looks at whether it has.
const LOOK: Duration = Duration::from_millis(10);

impl Handle {
    /// The program that a shepherd is by default: this very one, with the argument `shepherd`.
    pub const THIS_PROGRAM: &str = "/proc/self/exe";

    /// Starts one that ends with this process.
    pub fn spawn(descriptors: &Descriptors) -> Result<Self, HandleError> {
        let (ours, theirs) = Socket::pair().map_err(HandleError::Connection)?;
        let standard = descriptors.standard.iter().map(AsRawFd::as_raw_fd);
        let copies = descriptors.copies.iter().map(AsRawFd::as_raw_fd);
        let all: Vec<RawFd> = standard.chain([theirs.as_raw_fd()]).chain(copies).collect();
        const { assert!(FRONT == 3 && FIRST_COPY == FRONT + 1, "the order of descriptors") };
        let pidfd = start(Self::THIS_PROGRAM.as_ref(), &all)?;
        let (read, orders) = asynchronous(ours)?.into_split();
        Ok(Self::new(Some(pidfd), Some(orders), |to| frames::forward(read, to)))
    }

    /// Starts one that outlives this process, and gives it its plan, which has to be one of a
    /// detached microVM ([`Plan::detached`]). `program` is Mayfly's executable.
    ///
    /// The plan's directory is made here, and is the caller's to [`record::collect`] or
    /// [`record::keep`] once the microVM is over. The process is a child of this one, and remains as
    /// a zombie until [`Handle::ended`] was waited for.
    pub async fn spawn_detached(program: &Path, plan: &Plan) -> Result<Self, HandleError> {
        let refused = |error| HandleError::Directory(plan.directory.clone(), error);
        let prepare = Order::Prepare(Box::new(plan.clone()));
        let prepare = frame::encode(&prepare).map_err(HandleError::TooLong)?;
        let place = Place::make(&plan.directory).map_err(refused)?;
        let (ours, theirs) = Socket::pair().map_err(HandleError::Connection)?;
        let null = std::fs::File::options().read(true).write(true).open("/dev/null");
        let null = null.map_err(HandleError::Connection)?;
        let [listener, lock] = place.descriptors();
        let standard = [null.as_raw_fd(); 3];
        let all: Vec<RawFd> =
            standard.into_iter().chain([theirs.as_raw_fd(), listener, lock]).collect();
        let pidfd = match start(program, &all) {
            Ok(pidfd) => pidfd,
            Err(error) => {
                place.abandon();
                return Err(error);
            }
        };
        // Lock and listener are the shepherd's now.
        drop((place, theirs));
        let (read, mut orders) = asynchronous(ours)?.into_split();
        // One that has ended already is told of by its events.
        let _ = orders.write_all(&prepare).await;
        let directory = plan.directory.clone();
        Ok(Self::new(Some(pidfd), Some(orders), |to| follow(directory, Some(read), to)))
    }

    /// Takes up the detached shepherd of a directory, whoever started it. Every event from the
    /// first on comes again; of one that is dead those that it recorded.
    pub fn attach(directory: &Path) -> Result<Self, HandleError> {
        let refused = |error| HandleError::Directory(directory.to_owned(), error);
        let pidfd = record::process(directory).map_err(refused)?;
        let connected = detached::connect(directory).ok().map(asynchronous).transpose()?;
        let (read, orders) = connected.map(UnixStream::into_split).unzip();
        Ok(Self::new(pidfd, orders, |to| follow(directory.to_owned(), read, to)))
    }

    fn new<F: Future<Output = ()> + Send + 'static>(
        pidfd: Option<OwnedFd>,
        orders: Option<OwnedWriteHalf>,
        read: impl FnOnce(mpsc::Sender<Event>) -> F,
    ) -> Self {
        let (sender, events) = mpsc::channel(WAITING);
        let mut reader = JoinSet::new();
        reader.spawn(read(sender));
        Self { pidfd, orders, events, directory: None, _reader: reader }
    }

    /// Gives an order. That it was taken is seen by the events only: a second `Start` is ignored,
    /// and one that the shepherd took is answered by the phase `claimed`.
    pub async fn order(&mut self, order: &Order) -> Result<(), HandleError> {
        let frame = frame::encode(order).map_err(HandleError::TooLong)?;
        if let Order::Prepare(plan) = order {
            self.directory = Some(plan.directory.clone());
        }
        let Some(orders) = &mut self.orders else { return Ok(()) };
        match orders.write_all(&frame).await {
            Ok(()) => Ok(()),
            // It has ended; the events that it left behind say why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(error) => Err(HandleError::Connection(error)),
        }
    }

    /// The next event. None once the shepherd has ended; of a detached one also where a newer
    /// connection took this one's place, or this one was not read from for long: as long as
    /// [`record::is_living`], it can be attached to again. Nothing is lost where the wait is given
    /// up.
    pub async fn event(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// Kills it, and with it everything of its microVM. For one that does not obey.
    pub fn kill(&self) -> Result<(), HandleError> {
        let Some(pidfd) = &self.pidfd else { return Ok(()) };
        let (number, info) = (pidfd.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
        // SAFETY: takes an open descriptor, a number, no information and no flags.
        let sent =
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, number, libc::SIGKILL, info, 0) };
        match io::Error::last_os_error() {
            error if sent < 0 && error.raw_os_error() != Some(libc::ESRCH) => {
                Err(HandleError::Connection(error))
            }
            _ => Ok(()),
        }
    }

    /// Waits for the end of its process, which follows that of its events, and tells how it ended.
    /// Of an attached one that left no evidence nothing is left then.
    pub async fn ended(mut self) -> Result<String, HandleError> {
        let directory = self.directory.take();
        let ended = self.process_ended().await;
        // One with evidence in it stays.
        let _ = directory.map(std::fs::remove_dir);
        ended
    }

    async fn process_ended(self) -> Result<String, HandleError> {
        let Some(pidfd) = self.pidfd else { return Ok("ended before".to_owned()) };
        // SAFETY: an `OwnedFd` is the same open descriptor for as long as it lives.
        let ended = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
        let ended = ended.map_err(|error| HandleError::Connection(error.into()))?;
        drop(ended.readable().await.map_err(HandleError::Connection)?);
        match waitid(Waited::PIDFd(std::os::fd::AsFd::as_fd(&ended)), WaitPidFlag::WEXITED) {
            Ok(WaitStatus::Exited(_, code)) => Ok(format!("exit status {code}")),
            Ok(WaitStatus::Signaled(_, signal, _)) => Ok(format!("signal {signal}")),
            Ok(status) => Ok(format!("{status:?}")),
            // Another process's child.
            Err(nix::Error::ECHILD) => Ok("ended".to_owned()),
            Err(error) => Err(HandleError::Connection(error.into())),
        }
    }
}

fn start(program: &Path, descriptors: &[RawFd]) -> Result<OwnedFd, HandleError> {
    let path = CString::new(program.as_os_str().as_bytes());
    let path = path.map_err(|error| HandleError::Connection(error.into()))?;
    let child = enclosure::spawn(&Program {
        path: &path,
        arguments: &[CString::from(c"mayfly"), CString::from(c"shepherd")],
        environment: &[],
        descriptors,
    })?;
    Ok(child.pidfd)
}

fn asynchronous(socket: Socket) -> Result<UnixStream, HandleError> {
    let set = socket.set_nonblocking(true);
    set.and_then(|()| UnixStream::from_std(socket)).map_err(HandleError::Connection)
}

/// Passes on the events of a detached shepherd: those that come over the connection, then those
/// that only the record has.
async fn follow(directory: PathBuf, read: Option<OwnedReadHalf>, to: mpsc::Sender<Event>) {
    let mut heard = 0;
    if let Some(mut read) = read {
        while let Ok(event) = frames::read(&mut read).await {
            heard += 1;
            if to.send(event).await.is_err() {
                return;
            }
        }
    }
    let let_go = async {
        while record::is_living(&directory).unwrap_or(false) {
            tokio::time::sleep(LOOK).await;
        }
    };
    if tokio::time::timeout(LETTING_GO, let_go).await.is_err() {
        // It lives, and talks to another.
        return;
    }
    for event in record::events(&directory).unwrap_or_default().into_iter().skip(heard) {
        if to.send(event).await.is_err() {
            return;
        }
    }
}

/// A descriptor of a process of which only the number is known (`pidfd_open(2)`).
pub(super) fn open_process(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes plain numbers.
    let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match RawFd::try_from(opened) {
        // SAFETY: the kernel just made it, and nobody else has it.
        Ok(number) if number >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(number) }),
        _ => Err(io::Error::last_os_error()),
    }
}

//! A shepherd, as its front end holds it.

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
use super::detached::Place;
use super::enclosure::{self, EnclosureError, Program};
use super::event::Event;
use super::identity;
use super::job::FIRST_COPY;
use super::plan::{Order, Plan};
use super::process::FRONT;
use super::record::{self, Liveness};
use super::wire::{self, Acknowledgement, Hello, Lines, Message, Report, VersionError, WireError};
use crate::failure::{Code, Failure};
use crate::host::descriptors;

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
    /// A job does not fit into a message.
    #[error("arguments, variables and paths of the job are too much for one message")]
    TooLong(#[source] FrameError),
    /// An order can't be written, or is too long.
    #[error("the order can't be sent to the shepherd")]
    Order(#[source] WireError),
    /// It takes no more orders: it is stopped, or wedged.
    #[error("the shepherd has not taken the last {WAITING} orders")]
    NotReading,
    /// The program that was started is of a version that this one has nothing in common with.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// It ended without telling why.
    #[error("the shepherd ended without a word: {0}")]
    Vanished(String),
}

impl Failure for HandleError {
    fn code(&self) -> Code {
        match self {
            Self::Enclosure(error) => error.code(),
            Self::Directory(..) => Code::CannotWrite,
            Self::TooLong(_) | Self::Order(_) => Code::Usage,
            Self::Connection(_) | Self::Vanished(_) | Self::NotReading | Self::Version(_) => {
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
            | Self::Order(_)
            | Self::NotReading
            | Self::Vanished(_) => None,
        }
    }
}

/// Whether a job fits into the message that carries it to the guest; to be found out before
/// anything is started.
pub fn check_job(job: &Job) -> Result<(), HandleError> {
    let start = HostMessage::Start(job.clone());
    frame::encode(&start).map(drop).map_err(HandleError::TooLong)
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

/// What is heard from a shepherd.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    /// Something happened.
    Event(Box<Event>),
    /// An order was received, and so were those with smaller numbers.
    Acknowledged(Acknowledgement),
}

/// A shepherd, living or not. Where the handle of an attached one is dropped, the shepherd ends its
/// microVM; a detached one goes on.
pub struct Handle {
    // Of a detached one.
    directory: Option<PathBuf>,
    // Of an attached one that was given its plan.
    remains: Option<PathBuf>,
    // None of one that had ended before it was looked for.
    pidfd: Option<OwnedFd>,
    // None where there is nobody to give any to.
    orders: Option<mpsc::Sender<Vec<u8>>>,
    news: mpsc::Receiver<News>,
    last: u64,
    unacknowledged: VecDeque<(u64, Order)>,
    // The reader of news and the writer of orders; they end with the connection.
    _tasks: JoinSet<()>,
}

/// News and orders that wait, each.
const WAITING: usize = 64;

/// How long a shepherd whose connection ended may take to let go of its directory.
const LETTING_GO: Duration = Duration::from_secs(2);
/// Between two looks at whether it has.
const LOOK: Duration = Duration::from_millis(10);
/// How long a shepherd that was started may take to say hello.
const HELLO: Duration = Duration::from_secs(60);

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
        let (read, write) = asynchronous(ours)?.into_split();
        // The same program, so its hello says nothing new.
        Self::new(None, Some(pidfd), Some(write), 0, |to| async move {
            forward(Lines::new(read), &to).await;
        })
    }

    /// Starts one that outlives this process, and gives it its plan, which has to be one of a
    /// detached microVM ([`Plan::detached`]). `program` is Mayfly's executable.
    ///
    /// The plan's directory is made here, and is the caller's to [`record::collect`] or
    /// [`record::keep`] once the microVM is over; where this fails, nothing is left. The process is
    /// a child of this one, and remains as a zombie until [`Handle::ended`] was waited for.
    pub async fn spawn_detached(program: &Path, plan: &Plan) -> Result<Self, HandleError> {
        let refused = |error| HandleError::Directory(plan.directory.clone(), error);
        let place = Place::make(&plan.directory).map_err(refused)?;
        match Self::spawn_in(&place, program, plan).await {
            // Lock and listener are the shepherd's now.
            Ok(handle) => Ok(handle),
            Err(error) => {
                place.abandon();
                Err(error)
            }
        }
    }

    async fn spawn_in(place: &Place, program: &Path, plan: &Plan) -> Result<Self, HandleError> {
        let (ours, theirs) = Socket::pair().map_err(HandleError::Connection)?;
        let null = std::fs::File::options().read(true).write(true).open("/dev/null");
        let null = null.map_err(HandleError::Connection)?;
        let [listener, lock] = place.descriptors();
        let standard = [null.as_raw_fd(); 3];
        let all: Vec<RawFd> =
            standard.into_iter().chain([theirs.as_raw_fd(), listener, lock]).collect();
        // What can fail comes before the start, or ends what was started.
        let (read, write) = asynchronous(ours)?.into_split();
        let started = Started(Some(start(program, &all)?));
        drop(theirs);
        let mut lines = Lines::new(read);
        let hello = tokio::time::timeout(HELLO, lines.report());
        match hello.await {
            Ok(Ok(Some(Report::Hello(hello)))) => hello.check()?,
            Ok(_) => return Err(HandleError::Vanished("it said no hello".to_owned())),
            Err(_) => return Err(HandleError::NotReading),
        }
        let directory = plan.directory.clone();
        let follow = |to| follow(directory.clone(), Some(lines), to);
        let mut handle = Self::new(Some(directory.clone()), None, Some(write), 0, follow)?;
        handle.order(&Order::Prepare(Box::new(plan.clone())))?;
        handle.pidfd = started.keep();
        Ok(handle)
    }

    /// Takes up the detached shepherd of a directory, whoever started it. Every event from the
    /// first on comes again; of one that is gone those that it recorded. That this fails never
    /// means that the shepherd is gone.
    pub async fn attach(directory: &Path) -> Result<Self, AttachError> {
        let attached = attach::attach(directory).await?;
        let (read, write, acknowledged) = match attached.connection {
            Some((lines, write, hello)) => (Some(lines), Some(write), hello.acknowledged),
            None => (None, None, 0),
        };
        let owned = directory.to_owned();
        let follow = |to| follow(owned, read, to);
        let pidfd = attached.pidfd;
        Self::new(Some(directory.to_owned()), pidfd, write, acknowledged, follow)
            .map_err(|error| AttachError::Failed(io::Error::other(error)))
    }

    fn new<F: Future<Output = ()> + Send + 'static>(
        directory: Option<PathBuf>,
        pidfd: Option<OwnedFd>,
        write: Option<OwnedWriteHalf>,
        last: u64,
        read: impl FnOnce(mpsc::Sender<News>) -> F,
    ) -> Result<Self, HandleError> {
        let (sender, news) = mpsc::channel(WAITING);
        let mut tasks = JoinSet::new();
        tasks.spawn(read(sender));
        let hello = wire::encode(&Message::Hello(&Hello::ours(0))).map_err(HandleError::Order)?;
        let orders = write.map(|write| {
            let (orders, lines) = mpsc::channel(WAITING);
            tasks.spawn(write_lines(write, hello, lines));
            orders
        });
        let unacknowledged = VecDeque::new();
        let remains = None;
        Ok(Self { directory, remains, pidfd, orders, news, last, unacknowledged, _tasks: tasks })
    }

    /// Gives an order, and tells its number. Never waits. That it was received is told by
    /// [`News::Acknowledged`]; what comes of it by the events: a second `Start` is ignored, and one
    /// that the shepherd took is answered by the phase `claimed`.
    pub fn order(&mut self, order: &Order) -> Result<u64, HandleError> {
        let number = self.last + 1;
        if let (Order::Prepare(plan), None) = (order, &self.directory) {
            self.remains = Some(plan.directory.clone());
        }
        self.send(number, order)?;
        self.last = number;
        self.unacknowledged.push_back((number, order.clone()));
        Ok(number)
    }

    fn send(&self, number: u64, order: &Order) -> Result<(), HandleError> {
        if self.unacknowledged.len() >= WAITING {
            return Err(HandleError::NotReading);
        }
        let line = wire::encode(&Message::Order { number, order }).map_err(HandleError::Order)?;
        match self.orders.as_ref().map(|orders| orders.try_send(line)) {
            Some(Err(mpsc::error::TrySendError::Full(_))) => Err(HandleError::NotReading),
            // It has ended, or the connection has; the end of the news shows it.
            None | Some(Ok(()) | Err(mpsc::error::TrySendError::Closed(_))) => Ok(()),
        }
    }

    /// The orders that were not acknowledged, with their numbers, for [`Handle::resume`].
    pub fn into_unacknowledged(self) -> VecDeque<(u64, Order)> {
        self.unacknowledged
    }

    /// After attaching again: gives orders again that the shepherd did not acknowledge, with the
    /// numbers that they had. One that it has received after all is not carried out twice.
    pub fn resume(
        &mut self,
        orders: impl IntoIterator<Item = (u64, Order)>,
    ) -> Result<(), HandleError> {
        for (number, order) in orders {
            if number > self.last {
                self.send(number, &order)?;
                self.last = number;
                self.unacknowledged.push_back((number, order));
            }
        }
        Ok(())
    }

    /// What is heard next. None once the connection has ended: the shepherd has, or a newer
    /// connection took this one's place, or this one was not read from for long. Which of them it
    /// is, [`record::liveness`] tells. Nothing is lost where the wait is given up.
    pub async fn news(&mut self) -> Option<News> {
        let news = self.news.recv().await;
        if let Some(News::Acknowledged(answer)) = &news {
            self.unacknowledged.retain(|(number, _)| *number > answer.number);
        }
        news
    }

    /// The next event, as [`Handle::news`].
    pub async fn event(&mut self) -> Option<Event> {
        loop {
            if let News::Event(event) = self.news().await? {
                return Some(*event);
            }
        }
    }

    /// Kills it, and with it everything of its microVM, through a descriptor of its process, so
    /// that no other process can be meant. For one that does not obey.
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

    /// Waits for the end of its process, which follows that of its events, and tells how it ended.
    /// Of an attached one that left no evidence nothing is left then.
    pub async fn ended(mut self) -> Result<String, HandleError> {
        let remains = self.remains.take();
        let ended = self.process_ended().await;
        // One with evidence in it stays.
        let _ = remains.map(std::fs::remove_dir);
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
            // Another process's child is not waited for.
            Ok(_) | Err(nix::Error::ECHILD) => Ok("ended".to_owned()),
            Err(error) => Err(HandleError::Connection(error.into())),
        }
    }
}

/// A process that is killed unless it is kept.
struct Started(Option<OwnedFd>);

impl Started {
    fn keep(mut self) -> Option<OwnedFd> {
        self.0.take()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(pidfd) = &self.0 {
            // It can only have ended already.
            let _ = identity::kill(pidfd);
            let _ = waitid(Waited::PIDFd(std::os::fd::AsFd::as_fd(pidfd)), WaitPidFlag::WEXITED);
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

pub(super) fn asynchronous(socket: Socket) -> Result<UnixStream, HandleError> {
    let set = socket.set_nonblocking(true);
    set.and_then(|()| UnixStream::from_std(socket)).map_err(HandleError::Connection)
}

/// Writes the hello, then orders as they are given, until the connection ends.
async fn write_lines(mut to: OwnedWriteHalf, hello: Vec<u8>, mut orders: mpsc::Receiver<Vec<u8>>) {
    let mut line = hello;
    // A connection that ended shows itself where news are read.
    while to.write_all(&line).await.is_ok() {
        match orders.recv().await {
            Some(next) => line = next,
            None => return,
        }
    }
}

/// Passes on news until the connection ends or makes no sense; false where nobody takes them. Gives
/// the number of events.
async fn forward(mut lines: Lines<OwnedReadHalf>, to: &mpsc::Sender<News>) -> (usize, bool) {
    let mut heard = 0;
    while let Ok(Some(report)) = lines.report().await {
        let news = match report {
            Report::Event(event) => {
                heard += 1;
                News::Event(Box::new(event.settle()))
            }
            Report::Acknowledged(answer) => News::Acknowledged(answer),
            Report::Hello(_) | Report::Unknown => continue,
        };
        if to.send(news).await.is_err() {
            return (heard, false);
        }
    }
    (heard, true)
}

/// Passes on the news of a detached shepherd: those that come over the connection, then the events
/// that only the record has.
async fn follow(directory: PathBuf, lines: Option<Lines<OwnedReadHalf>>, to: mpsc::Sender<News>) {
    let (heard, wanted) = match lines {
        Some(lines) => forward(lines, &to).await,
        None => (0, true),
    };
    if !wanted {
        return;
    }
    let let_go = async {
        // That it can't be looked at does not mean that it is gone.
        while !matches!(record::liveness(&directory), Ok(Liveness::Gone)) {
            tokio::time::sleep(LOOK).await;
        }
    };
    if tokio::time::timeout(LETTING_GO, let_go).await.is_err() {
        // It lives, and talks to another.
        return;
    }
    let events = loop {
        match record::events(&directory) {
            Ok(events) => break events,
            // Whoever follows it looks at it again.
            Err(error) if !descriptors::ran_out(&error) => return,
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    };
    for event in events.into_iter().skip(heard) {
        if to.send(News::Event(Box::new(event))).await.is_err() {
            return;
        }
    }
}

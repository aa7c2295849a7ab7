//! A shepherd, as its front end holds it.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream as Socket;

use mayfly_protocol::frame::{self, FrameError};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::enclosure::{self, EnclosureError, Program};
use super::event::Event;
use super::job::FIRST_COPY;
use super::plan::Order;
use super::process::FRONT;
use crate::channel::frames;
use crate::failure::{Code, Failure};

/// What goes wrong between a front end and its shepherd.
#[derive(Debug, thiserror::Error)]
pub enum HandleError {
    /// It could not be started.
    #[error(transparent)]
    Enclosure(#[from] EnclosureError),
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
            Self::TooLong(_) => Code::Usage,
            Self::Connection(_) | Self::Vanished(_) => Code::MachineFailed,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Enclosure(error) => error.hint(),
            Self::TooLong(_) => Some("copy large data in as a file with --copy-in".to_owned()),
            Self::Connection(_) | Self::Vanished(_) => None,
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

/// A running shepherd. Where the handle is dropped, the shepherd ends its microVM.
pub struct Handle {
    pidfd: OwnedFd,
    orders: OwnedWriteHalf,
    events: mpsc::Receiver<Event>,
    // The reader of events; ends with the connection.
    _reader: JoinSet<()>,
}

/// Events that wait to be looked at.
const WAITING: usize = 16;

impl Handle {
    /// Starts one: this very program, with the argument `shepherd`.
    pub fn spawn(descriptors: &Descriptors) -> Result<Self, HandleError> {
        let (ours, theirs) = Socket::pair().map_err(HandleError::Connection)?;
        let standard = descriptors.standard.iter().map(AsRawFd::as_raw_fd);
        let copies = descriptors.copies.iter().map(AsRawFd::as_raw_fd);
        let all: Vec<RawFd> = standard.chain([theirs.as_raw_fd()]).chain(copies).collect();
        const { assert!(FRONT == 3 && FIRST_COPY == FRONT + 1, "the order of descriptors") };
        let child = enclosure::spawn(&Program {
            path: c"/proc/self/exe",
            arguments: &[CString::from(c"mayfly"), CString::from(c"shepherd")],
            environment: &[],
            descriptors: &all,
        })?;
        ours.set_nonblocking(true).map_err(HandleError::Connection)?;
        let connection = UnixStream::from_std(ours).map_err(HandleError::Connection)?;
        let (read, orders) = connection.into_split();
        let (sender, events) = mpsc::channel(WAITING);
        let mut reader = JoinSet::new();
        reader.spawn(frames::forward(read, sender));
        Ok(Self { pidfd: child.pidfd, orders, events, _reader: reader })
    }

    /// Gives an order.
    pub async fn order(&mut self, order: &Order) -> Result<(), HandleError> {
        let frame = frame::encode(order).map_err(HandleError::TooLong)?;
        match self.orders.write_all(&frame).await {
            Ok(()) => Ok(()),
            // It has ended; the events that it left behind say why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(error) => Err(HandleError::Connection(error)),
        }
    }

    /// The next event; none once the shepherd has ended. Nothing is lost where the wait is given
    /// up.
    pub async fn event(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// Waits for the end of its process, which follows that of its events, and tells how it ended.
    pub async fn ended(self) -> Result<String, HandleError> {
        let Self { pidfd, .. } = self;
        let wait = move || waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED);
        let waited = tokio::task::spawn_blocking(wait).await;
        match waited.map_err(io::Error::from).and_then(|status| Ok(status?)) {
            Ok(WaitStatus::Exited(_, code)) => Ok(format!("exit status {code}")),
            Ok(WaitStatus::Signaled(_, signal, _)) => Ok(format!("signal {signal}")),
            Ok(status) => Ok(format!("{status:?}")),
            Err(error) => Err(HandleError::Connection(error)),
        }
    }
}

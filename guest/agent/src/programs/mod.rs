//! Reports the programs that the job executes to the host.
//!
//! The kernel's process connector reports each successful `execve`. A thread with real-time
//! priority then reads the program from `/proc` at once, because it may exit very soon. The report
//! is limited ([`Batch`]): programs that do not fit into a message or into the kernel's buffer are
//! only counted.

mod batch;
mod connector;

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use mayfly_protocol::frame::FrameError;
use mayfly_protocol::message::GuestMessage;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::channel::Sender;
use crate::error::{Context, StepError};
use batch::Batch;
use connector::{Connector, Received};

/// The program log of a job.
pub(crate) struct ProgramLog(Arc<Log>);

struct Log {
    connector: Connector,
    sender: Arc<Sender>,
    batch: Mutex<Batch>,
}

impl ProgramLog {
    /// Starts the log. Its thread runs as long as the machine.
    pub(crate) fn start(sender: &Arc<Sender>) -> Result<Self, StepError> {
        let log = Arc::new(Log {
            connector: Connector::open().context(|| "subscribe to the kernel's process events")?,
            sender: Arc::clone(sender),
            batch: Mutex::default(),
        });
        let shared = Arc::clone(&log);
        let listen = move || {
            raise_priority();
            // A failure means that the host has disconnected, which the session detects, too.
            let _disconnected = shared.listen();
        };
        let thread = std::thread::Builder::new().name("programs".into());
        thread.spawn(listen).context(|| "start the program log's thread")?;
        Ok(Self(log))
    }

    /// Sends the remaining programs to the host, and stops the log.
    pub(crate) fn finish(&self) -> Result<(), FrameError> {
        let mut batch = self.0.batch();
        self.0.drain(&mut batch);
        let last = batch.end();
        // Still locked, so that the thread sends nothing after it.
        last.map_or(Ok(()), |message| self.0.sender.send(&message))
    }
}

impl Log {
    fn listen(&self) -> Result<(), FrameError> {
        loop {
            let wait = self.batch().due_in(Instant::now());
            let timeout = wait.and_then(|wait| PollTimeout::try_from(wait).ok());
            let mut event = [PollFd::new(self.connector.as_fd(), PollFlags::POLLIN)];
            // An interrupted wait needs no special handling.
            let _interrupted = poll(&mut event, timeout.unwrap_or(PollTimeout::NONE));
            let mut batch = self.batch();
            self.drain(&mut batch);
            if let Some(message) = batch.take(Instant::now()) {
                self.send(batch, &message)?;
            }
        }
    }

    /// Sends with the batch locked, so that [`ProgramLog::finish`] sends after this.
    fn send(&self, batch: MutexGuard<'_, Batch>, message: &GuestMessage) -> Result<(), FrameError> {
        let sent = self.sender.send(message);
        drop(batch);
        sent
    }

    /// Reads all available events.
    fn drain(&self, batch: &mut Batch) {
        loop {
            match self.connector.receive() {
                Received::Executed(executed) if batch.has_space() => batch.add(executed.look_up()),
                // At least one.
                Received::Executed(_) | Received::Overrun => batch.count_omitted(),
                Received::Other => {}
                Received::Empty => return,
            }
        }
    }

    fn batch(&self) -> MutexGuard<'_, Batch> {
        // Ignores poisoning by a panicked thread.
        self.batch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives this thread real-time priority over the job, so that it reads a program before it exits.
/// If the kernel refuses, more programs are reported without their path.
fn raise_priority() {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: zero is this thread; the kernel reads one structure.
    let _refused = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
}

//! What the job executes, told to the host.
//!
//! The kernel's process connector says of each `execve` that it succeeded; what was executed is
//! read from `/proc` at once, by a thread that goes before all others, because the program may be
//! very short. What is told is bounded ([`Batch`]): what does not fit into a message, or into the
//! kernel's buffer, is counted.

mod batch;
mod connector;

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use mayfly_protocol::frame::FrameError;
use mayfly_protocol::message::GuestMessage;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::channel::Sender;
use crate::error::{During, StepError};
use batch::Batch;
use connector::{Connector, Received};

/// The log of one job.
pub(crate) struct ProgramLog(Arc<Log>);

struct Log {
    connector: Connector,
    sender: Arc<Sender>,
    batch: Mutex<Batch>,
}

impl ProgramLog {
    /// Begins to listen. Its thread lasts as long as the machine.
    pub(crate) fn start(sender: &Arc<Sender>) -> Result<Self, StepError> {
        let log = Arc::new(Log {
            connector: Connector::open().during(|| "listen to the kernel's process events")?,
            sender: Arc::clone(sender),
            batch: Mutex::default(),
        });
        let shared = Arc::clone(&log);
        let listen = move || {
            go_first();
            // It fails where the host is gone, which whoever reads from it finds, too.
            let _gone = shared.listen();
        };
        let thread = std::thread::Builder::new().name("programs".into());
        thread.spawn(listen).during(|| "start the thread that logs programs")?;
        Ok(Self(log))
    }

    /// Tells the host what is left, and nothing any more from then on.
    pub(crate) fn finish(&self) -> Result<(), FrameError> {
        let mut batch = self.0.batch();
        self.0.drain(&mut batch);
        let last = batch.end();
        // Still locked, so that the thread sends nothing behind it.
        last.map_or(Ok(()), |message| self.0.sender.send(&message))
    }
}

impl Log {
    fn listen(&self) -> Result<(), FrameError> {
        loop {
            let wait = self.batch().due_in(Instant::now());
            let timeout = wait.and_then(|wait| PollTimeout::try_from(wait).ok());
            let mut event = [PollFd::new(self.connector.as_fd(), PollFlags::POLLIN)];
            // An interrupted wait is as good as one that is over.
            let _interrupted = poll(&mut event, timeout.unwrap_or(PollTimeout::NONE));
            let mut batch = self.batch();
            self.drain(&mut batch);
            if let Some(message) = batch.take(Instant::now()) {
                self.send(batch, &message)?;
            }
        }
    }

    /// With the batch locked: what [`ProgramLog::finish`] sends comes after this.
    fn send(&self, batch: MutexGuard<'_, Batch>, message: &GuestMessage) -> Result<(), FrameError> {
        let sent = self.sender.send(message);
        drop(batch);
        sent
    }

    /// Takes what the kernel has for us.
    fn drain(&self, batch: &mut Batch) {
        loop {
            match self.connector.receive() {
                Received::Executed(executed) if batch.has_room() => batch.add(executed.look()),
                // At least one.
                Received::Executed(_) | Received::Overrun => batch.leave_out(),
                Received::Other => {}
                Received::Nothing => return,
            }
        }
    }

    fn batch(&self) -> MutexGuard<'_, Batch> {
        // A thread that panicked has ended the process.
        self.batch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts this thread before those of the job, so that it looks at a program before that has ended.
/// Where the kernel does not let it, more programs are told without their path.
fn go_first() {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: zero is this thread; the kernel reads one structure.
    let _refused = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
}

//! Input streams from the host to the job: bounded queues between the thread that reads the
//! connection and the thread that consumes the bytes.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use mayfly_protocol::flow::ReceiveWindow;
use mayfly_protocol::message::{GuestMessage, InputStream};

use crate::channel::Sender;
use crate::error::StepError;

/// An input stream. It buffers at most one window.
pub(crate) struct Input {
    stream: InputStream,
    sender: Arc<Sender>,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    bytes: VecDeque<u8>,
    window: ReceiveWindow,
    /// The host has sent everything.
    ended: bool,
    /// The stream has no reader any more: input is discarded, but still credited.
    closed: bool,
}

impl Input {
    pub(crate) fn new(stream: InputStream, sender: Arc<Sender>) -> Self {
        Self { stream, sender, queue: Mutex::default(), changed: Condvar::new() }
    }

    /// Queues bytes from the host.
    pub(crate) fn push(&self, bytes: &[u8]) -> Result<(), StepError> {
        let mut queue = self.lock();
        if queue.ended {
            return Err(self.violation("received bytes after the end"));
        }
        queue.window.receive(bytes.len()).map_err(|error| self.violation(&error.to_string()))?;
        if queue.closed {
            let credit = queue.window.pass_on(bytes.len());
            drop(queue);
            self.give(credit);
        } else {
            queue.bytes.extend(bytes);
            self.changed.notify_one();
        }
        Ok(())
    }

    /// Records the end of the stream.
    pub(crate) fn end(&self) -> Result<(), StepError> {
        let mut queue = self.lock();
        if queue.ended {
            return Err(self.violation("received a second end"));
        }
        queue.ended = true;
        self.changed.notify_one();
        Ok(())
    }

    /// Discards all queued and future input. A reader then sees the end of the stream.
    pub(crate) fn close(&self) {
        let mut queue = self.lock();
        queue.closed = true;
        let waiting = queue.bytes.len();
        queue.bytes = VecDeque::new();
        let credit = queue.window.pass_on(waiting);
        drop(queue);
        self.changed.notify_all();
        self.give(credit);
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends credit to the host. A failure means that the host has disconnected, which ends the
    /// machine.
    fn give(&self, credit: Option<u32>) {
        if let Some(bytes) = credit {
            let _disconnected =
                self.sender.send(&GuestMessage::Credit { stream: self.stream, bytes });
        }
    }

    fn violation(&self, reason: &str) -> StepError {
        StepError::new("handle a message of the host", format!("{}: {reason}", self.stream))
    }
}

/// Blocks until bytes are available or the stream ends.
impl Read for &Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let waiting = |queue: &mut Queue| queue.bytes.is_empty() && !queue.ended && !queue.closed;
        let mut queue =
            self.changed.wait_while(self.lock(), waiting).unwrap_or_else(PoisonError::into_inner);
        let count = queue.bytes.read(buffer)?;
        let credit = queue.window.pass_on(count);
        drop(queue);
        self.give(credit);
        Ok(count)
    }
}

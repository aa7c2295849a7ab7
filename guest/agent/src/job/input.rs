//! What comes from the host for the job: a bounded queue between the thread that reads the
//! connection and the one that uses the bytes.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use mayfly_protocol::flow::ReceiveWindow;
use mayfly_protocol::message::{GuestMessage, InputStream};

use crate::channel::Sender;
use crate::error::StepError;

/// One input stream. It holds a window's bytes at most.
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
    /// The host has sent all.
    ended: bool,
    /// Nobody reads any more: what comes is discarded, but goes on giving credit.
    closed: bool,
}

impl Input {
    pub(crate) fn new(stream: InputStream, sender: Arc<Sender>) -> Self {
        Self { stream, sender, queue: Mutex::default(), changed: Condvar::new() }
    }

    /// Takes in what the host has sent.
    pub(crate) fn push(&self, bytes: &[u8]) -> Result<(), StepError> {
        let mut queue = self.lock();
        if queue.ended {
            return Err(self.broken("bytes after the end"));
        }
        queue.window.receive(bytes.len()).map_err(|error| self.broken(&error.to_string()))?;
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

    /// Notes that the host has sent all.
    pub(crate) fn end(&self) -> Result<(), StepError> {
        let mut queue = self.lock();
        if queue.ended {
            return Err(self.broken("a second end"));
        }
        queue.ended = true;
        self.changed.notify_one();
        Ok(())
    }

    /// Discards what is there and all that still comes; a reader finds the end.
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

    /// Lets the host send more. Where that fails it is gone, and with it the machine.
    fn give(&self, credit: Option<u32>) {
        if let Some(bytes) = credit {
            let _gone = self.sender.send(&GuestMessage::Credit { stream: self.stream, bytes });
        }
    }

    fn broken(&self, how: &str) -> StepError {
        StepError::new("understand the host", format!("{:?}: {how}", self.stream))
    }
}

/// Blocks until there are bytes or no more come.
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

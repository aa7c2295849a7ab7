//! Output streams from the job to the host, each with its own window.

use std::io::{self, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use mayfly_protocol::flow::{MAX_CHUNK, SendWindow};
use mayfly_protocol::frame::FrameError;
use mayfly_protocol::message::{GuestMessage, OutputStream};
use nix::errno::Errno;

use crate::channel::Sender;
use crate::error::StepError;

/// An output stream. It is unbuffered: a writer blocks until the host accepts more.
pub(crate) struct Output {
    stream: OutputStream,
    sender: Arc<Sender>,
    window: Mutex<SendWindow>,
    changed: Condvar,
}

impl Output {
    pub(crate) fn new(stream: OutputStream, sender: Arc<Sender>) -> Self {
        Self { stream, sender, window: Mutex::default(), changed: Condvar::new() }
    }

    /// Adds credit from the host.
    pub(crate) fn credit(&self, bytes: u32) -> Result<(), StepError> {
        self.lock().credit(bytes).map_err(|error| {
            StepError::new("handle a message of the host", format!("{}: {error}", self.stream))
        })?;
        self.changed.notify_one();
        Ok(())
    }

    /// Sends the end of the stream.
    pub(crate) fn end(&self, error: Option<String>) -> Result<(), FrameError> {
        self.sender.send(&GuestMessage::OutputEnd { stream: self.stream, error })
    }

    /// Sends everything from `from`, as fast as the host accepts it.
    pub(crate) fn pump(&self, mut from: impl Read) -> Result<(), FrameError> {
        let mut buffer = vec![0; MAX_CHUNK];
        loop {
            let limit = self.wait_for_window();
            let count = match from.read(&mut buffer[..limit]) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // A terminal returns EIO when no process has it open any more.
                Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => 0,
                Err(error) => return Err(error.into()),
            };
            if count == 0 {
                return Ok(());
            }
            self.send(&buffer[..count])?;
        }
    }

    /// Blocks until the host accepts more. Returns the number of bytes that it accepts.
    fn wait_for_window(&self) -> usize {
        let full = |window: &mut SendWindow| window.available() == 0;
        let window = self.changed.wait_while(self.lock(), full);
        window.unwrap_or_else(PoisonError::into_inner).available()
    }

    /// Sends bytes that the window allows. Only this stream's thread spends its window.
    fn send(&self, bytes: &[u8]) -> Result<(), FrameError> {
        self.lock().spend(bytes.len());
        let bytes = bytes.to_vec().into();
        self.sender.send(&GuestMessage::Output { stream: self.stream, bytes })
    }

    fn lock(&self) -> MutexGuard<'_, SendWindow> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Blocks until the host accepts more.
impl Write for &Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.wait_for_window().min(bytes.len());
        self.send(&bytes[..count]).map_err(io::Error::other)?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

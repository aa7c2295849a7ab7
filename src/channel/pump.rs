//! Pumps: move a job's streams between the channel and descriptors of the host.
//!
//! The descriptors block: a terminal, a pipe with a slow reader, a file. Making them non-blocking
//! would affect all processes that share them, so each stream has a thread.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread;

use mayfly_protocol::flow::{FlowError, SendWindow};
use mayfly_protocol::frame;
use mayfly_protocol::message::{HostMessage, InputStream, OutputStream};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::{mpsc as asynchronous, oneshot};

/// The progress of an [`OutputPump`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputProgress {
    /// This many bytes were written, or discarded because the reader is gone.
    Written(OutputStream, usize),
    /// The reader is gone. Reported once.
    ReaderGone(OutputStream),
    /// All output was written and the descriptor is closed. Reported last.
    Finished(OutputStream),
}

/// Writes an output stream to a descriptor or another writer.
///
/// Its buffer is bounded by the stream's window, which the caller enforces.
pub struct OutputPump {
    chunks: mpsc::Sender<Vec<u8>>,
}

impl OutputPump {
    /// Starts the pump's thread. It ends after [`OutputProgress::Finished`], once the pump is
    /// dropped and the reader has read everything. It is not joined, because a reader that does not
    /// read would block the owner; it leaves nothing behind.
    pub fn start(
        stream: OutputStream,
        mut to: impl Write + Send + 'static,
        progress: asynchronous::UnboundedSender<OutputProgress>,
    ) -> io::Result<Self> {
        let (chunks, queue) = mpsc::channel::<Vec<u8>>();
        thread::Builder::new().name(stream.to_string()).spawn(move || {
            let mut reader_gone = false;
            // If the receiver of `progress` is gone, nothing waits for this thread either.
            let report = |what| {
                let _ = progress.send(what);
            };
            for chunk in queue {
                if !reader_gone && to.write_all(&chunk).is_err() {
                    reader_gone = true;
                    report(OutputProgress::ReaderGone(stream));
                }
                report(OutputProgress::Written(stream, chunk.len()));
            }
            drop(to);
            report(OutputProgress::Finished(stream));
        })?;
        Ok(Self { chunks })
    }

    /// Queues a chunk.
    pub fn write(&self, chunk: Vec<u8>) {
        // The thread does not end before this sender is dropped.
        let _ = self.chunks.send(chunk);
    }
}

/// Reads an input stream from a descriptor.
pub struct InputPump {
    window: Arc<Window>,
    // Closing it wakes the thread while it waits for input.
    stop: OwnedFd,
    // Its sender is dropped when the thread ends.
    ended: oneshot::Receiver<()>,
}

#[derive(Default)]
struct Window {
    state: Mutex<(SendWindow, Stop)>,
    changed: Condvar,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
struct Stop(bool);

impl InputPump {
    /// Starts the pump's thread. It ends with the input, the channel or the pump.
    pub fn start(
        stream: InputStream,
        from: OwnedFd,
        to: asynchronous::Sender<Vec<u8>>,
    ) -> io::Result<Self> {
        let window = Arc::new(Window::default());
        let (stopped, stop) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let (shared, from) = (Arc::clone(&window), File::from(from));
        let (ends, ended) = oneshot::channel::<()>();
        thread::Builder::new().name(stream.to_string()).spawn(move || {
            let _ends = ends;
            // The end of the input, an error and the end of the pump all mean: no more input.
            while let Some(chunk) = read_chunk(&shared, &from, &stopped) {
                let message = HostMessage::Input { stream, bytes: chunk.into() };
                let Ok(frame) = frame::encode(&message) else { break };
                if to.blocking_send(frame).is_err() {
                    return;
                }
            }
            if let Ok(frame) = frame::encode(&HostMessage::InputEnd { stream }) {
                // A closed channel does not need the end of input.
                let _ = to.blocking_send(frame);
            }
        })?;
        Ok(Self { window, stop, ended })
    }

    /// Adds credit, so that the pump may send more.
    pub fn credit(&self, bytes: u32) -> Result<(), FlowError> {
        let mut state = self.window.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0.credit(bytes)?;
        self.window.changed.notify_all();
        Ok(())
    }

    /// Ends the thread and waits until the channel has taken its last message or is closed.
    pub async fn close(self) {
        self.window.state.lock().unwrap_or_else(PoisonError::into_inner).1 = Stop(true);
        self.window.changed.notify_all();
        drop(self.stop);
        // The error means that the thread dropped its sender.
        let _ = self.ended.await;
    }
}

/// Waits for credit and for input. `None` at the end of input or when told to stop.
fn read_chunk(window: &Window, mut from: &File, stopped: &OwnedFd) -> Option<Vec<u8>> {
    let state = window.state.lock().unwrap_or_else(PoisonError::into_inner);
    let full = |state: &mut (SendWindow, Stop)| state.0.available() == 0 && state.1 == Stop(false);
    let state = window.changed.wait_while(state, full).unwrap_or_else(PoisonError::into_inner);
    let (room, Stop(stop)) = (state.0.available(), state.1);
    drop(state);
    if stop || !wait_readable(from, stopped) {
        return None;
    }
    let mut chunk = vec![0; room];
    let count = loop {
        match from.read(&mut chunk) {
            Ok(0) => return None,
            Ok(count) => break count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    };
    chunk.truncate(count);
    window.state.lock().unwrap_or_else(PoisonError::into_inner).0.spend(count);
    Some(chunk)
}

/// Waits until there is input or the end of it. False if told to stop.
fn wait_readable(from: &File, stopped: &OwnedFd) -> bool {
    let mut polled = [
        PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
        PollFd::new(from.as_fd(), PollFlags::POLLIN),
    ];
    loop {
        match poll(&mut polled, PollTimeout::NONE) {
            Ok(_) => return polled[0].revents().is_some_and(|events| events.is_empty()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_protocol::flow::WINDOW;
    use mayfly_protocol::message::HostMessage;

    fn message(frame: &[u8]) -> HostMessage {
        frame::decode(&frame[frame::HEADER..]).unwrap()
    }

    #[test]
    fn input_stops_at_the_window_and_continues_with_credit() {
        let (to, mut frames) = asynchronous::channel(1024);
        let file = tempfile::tempfile().unwrap();
        file.set_len(u64::from(WINDOW) + 10).unwrap();
        let pump = InputPump::start(InputStream::Stdin, file.into(), to).unwrap();
        let mut received = 0_usize;
        let mut next = |received: &mut usize| match message(&frames.blocking_recv().unwrap()) {
            HostMessage::Input { bytes, .. } => {
                *received += bytes.len();
                false
            }
            _ => true,
        };
        while received < WINDOW as usize {
            assert!(!next(&mut received));
        }
        pump.credit(WINDOW).unwrap();
        assert!(!next(&mut received));
        assert_eq!(received, WINDOW as usize + 10);
        assert!(next(&mut received), "the end of input was sent");
    }

    #[tokio::test]
    async fn a_pump_that_waits_for_input_ends_when_closed() {
        let (_keep_open, from) = io::pipe().map(|(read, write)| (write, read)).unwrap();
        let (to, mut frames) = asynchronous::channel(4);
        InputPump::start(InputStream::Stdin, from.into(), to).unwrap().close().await;
        let frame = frames.recv().await.unwrap();
        assert_eq!(message(&frame), HostMessage::InputEnd { stream: InputStream::Stdin });
    }

    #[test]
    fn output_without_a_reader_is_discarded_and_reported_once() {
        let (read, write) = io::pipe().unwrap();
        drop(read);
        let (progress, mut reports) = asynchronous::unbounded_channel();
        let pump = OutputPump::start(OutputStream::Stdout, write, progress).unwrap();
        pump.write(vec![1; 3]);
        pump.write(vec![1; 4]);
        drop(pump);
        let all: Vec<OutputProgress> = std::iter::from_fn(|| reports.blocking_recv()).collect();
        let stream = OutputStream::Stdout;
        assert_eq!(
            all,
            [
                OutputProgress::ReaderGone(stream),
                OutputProgress::Written(stream, 3),
                OutputProgress::Written(stream, 4),
                OutputProgress::Finished(stream)
            ]
        );
    }
}

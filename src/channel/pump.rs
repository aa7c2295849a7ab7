//! Moves the job's streams between the channel and descriptors of the host.
//!
//! Descriptors block: a person's terminal, a pipe with a slow reader, a file. Making them
//! non-blocking would change them for everyone who shares them, so each stream has a thread.

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

/// What became of output that was given to an [`OutputPump`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passed {
    /// So many bytes were taken by the reader, or thrown away because there is none any more.
    On(OutputStream, usize),
    /// The reader is gone; comes once.
    ReaderGone(OutputStream),
    /// Everything was passed on and the descriptor is closed; comes last.
    All(OutputStream),
}

/// Writes an output stream to a descriptor, or to whatever else takes bytes.
///
/// What it holds is bounded by the stream's window, which its owner enforces.
pub struct OutputPump {
    chunks: mpsc::Sender<Vec<u8>>,
}

impl OutputPump {
    /// Starts its thread, which ends after [`Passed::All`], once the pump is dropped and the
    /// reader has taken everything. It is not joined: a reader that takes nothing would hold up
    /// its owner, and there is nothing that it leaves behind.
    pub fn start(
        stream: OutputStream,
        mut to: impl Write + Send + 'static,
        passed: asynchronous::UnboundedSender<Passed>,
    ) -> io::Result<Self> {
        let (chunks, given) = mpsc::channel::<Vec<u8>>();
        thread::Builder::new().name(format!("{stream:?}")).spawn(move || {
            let mut reader_gone = false;
            // Where nobody listens to `passed` any more, nobody waits for this thread either.
            let tell = |what| {
                let _ = passed.send(what);
            };
            for chunk in given {
                if !reader_gone && to.write_all(&chunk).is_err() {
                    reader_gone = true;
                    tell(Passed::ReaderGone(stream));
                }
                tell(Passed::On(stream, chunk.len()));
            }
            drop(to);
            tell(Passed::All(stream));
        })?;
        Ok(Self { chunks })
    }

    /// Gives it more.
    pub fn give(&self, chunk: Vec<u8>) {
        // The thread ends only after this sender is gone.
        let _ = self.chunks.send(chunk);
    }
}

/// Reads an input stream from a descriptor.
pub struct InputPump {
    window: Arc<Window>,
    // Closing it wakes the thread from waiting for input.
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
    /// Starts its thread, which ends with the input, with the channel, or with the pump.
    pub fn start(
        stream: InputStream,
        from: OwnedFd,
        to: asynchronous::Sender<Vec<u8>>,
    ) -> io::Result<Self> {
        let window = Arc::new(Window::default());
        let (stopped, stop) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let (shared, from) = (Arc::clone(&window), File::from(from));
        let (ends, ended) = oneshot::channel::<()>();
        thread::Builder::new().name(format!("{stream:?}")).spawn(move || {
            let _ends = ends;
            // The input's end, its failure and the pump's end are one to the job: no more input.
            while let Some(chunk) = read_chunk(&shared, &from, &stopped) {
                let message = HostMessage::Input { stream, bytes: chunk.into() };
                let Ok(frame) = frame::encode(&message) else { break };
                if to.blocking_send(frame).is_err() {
                    return;
                }
            }
            if let Ok(frame) = frame::encode(&HostMessage::InputEnd { stream }) {
                // A closed channel needs no end of input.
                let _ = to.blocking_send(frame);
            }
        })?;
        Ok(Self { window, stop, ended })
    }

    /// Lets it send more.
    pub fn credit(&self, bytes: u32) -> Result<(), FlowError> {
        let mut state = self.window.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0.credit(bytes)?;
        self.window.changed.notify_all();
        Ok(())
    }

    /// Ends the thread and waits for it, until the channel has taken its last words or is gone.
    pub async fn close(self) {
        self.window.state.lock().unwrap_or_else(PoisonError::into_inner).1 = Stop(true);
        self.window.changed.notify_all();
        drop(self.stop);
        // An error is what tells that the sender is gone.
        let _ = self.ended.await;
    }
}

/// Waits for room in the window and for input; `None` when there is no more of either.
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

/// Waits until there is something to read, or the end of it; false if told to stop instead.
fn wait_readable(from: &File, stopped: &OwnedFd) -> bool {
    let mut wanted = [
        PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
        PollFd::new(from.as_fd(), PollFlags::POLLIN),
    ];
    loop {
        match poll(&mut wanted, PollTimeout::NONE) {
            Ok(_) => return wanted[0].revents().is_some_and(|events| events.is_empty()),
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
    fn input_stops_at_the_window_and_goes_on_with_credit() {
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
        assert!(next(&mut received), "the end of input was said");
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
    fn output_whose_reader_is_gone_is_thrown_away_and_said_once() {
        let (read, write) = io::pipe().unwrap();
        drop(read);
        let (passed, mut told) = asynchronous::unbounded_channel();
        let pump = OutputPump::start(OutputStream::Stdout, write, passed).unwrap();
        pump.give(vec![1; 3]);
        pump.give(vec![1; 4]);
        drop(pump);
        let all: Vec<Passed> = std::iter::from_fn(|| told.blocking_recv()).collect();
        let stream = OutputStream::Stdout;
        assert_eq!(
            all,
            [
                Passed::ReaderGone(stream),
                Passed::On(stream, 3),
                Passed::On(stream, 4),
                Passed::All(stream)
            ]
        );
    }
}

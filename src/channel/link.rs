//! Drives a [`Conversation`] over a byte stream.

use mayfly_protocol::frame::{self, FrameError};
use mayfly_protocol::message::{GuestMessage, HostMessage, OutputStream};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::conversation::{Conversation, Heard, Violation};
use super::frames;

/// Messages from the guest that wait to be looked at. Each is at most a frame long.
const INCOMING: usize = 4;
/// Control messages that wait for the guest to read them. Honest guests read them at once.
const OUTGOING: usize = 64;
/// Chunks of input that wait for the guest to read them.
const OUTGOING_DATA: usize = 2;

/// The channel is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The guest closed it, or died.
    #[error("the guest closed the channel")]
    Closed,
    /// The guest broke the rules.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// What was to be said does not fit into a frame.
    #[error("arguments, variables and paths of the job are too much for one message")]
    TooLong(#[source] FrameError),
}

/// A conversation with a guest, under way.
pub struct Link {
    conversation: Conversation,
    incoming: mpsc::Receiver<Result<GuestMessage, FrameError>>,
    control: mpsc::Sender<Vec<u8>>,
    data: mpsc::Sender<Vec<u8>>,
    // Reader and writer; both end when the transport does, or with this link.
    _tasks: JoinSet<()>,
}

impl Link {
    /// Begins a conversation over a connection that the guest has made.
    pub fn open(transport: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        let (read, write) = tokio::io::split(transport);
        let (heard, incoming) = mpsc::channel(INCOMING);
        let (control, outgoing) = mpsc::channel(OUTGOING);
        let (data, outgoing_data) = mpsc::channel(OUTGOING_DATA);
        let mut tasks = JoinSet::new();
        tasks.spawn(read_messages(read, heard));
        tasks.spawn(write_frames(write, outgoing, outgoing_data));
        Self { conversation: Conversation::default(), incoming, control, data, _tasks: tasks }
    }

    /// The next message that has its place. Nothing is lost where the wait is given up.
    pub async fn hear(&mut self) -> Result<Heard, ChannelError> {
        match self.incoming.recv().await {
            None | Some(Err(FrameError::Io(_))) => Err(ChannelError::Closed),
            Some(Err(error)) => Err(Violation::Frame(error).into()),
            Some(Ok(message)) => Ok(self.conversation.hear(message)?),
        }
    }

    /// Says something that is no input. Never waits: a guest that lets so much pile up is given
    /// up.
    pub fn say(&mut self, message: &HostMessage) -> Result<(), ChannelError> {
        let frame = frame::encode(message).map_err(ChannelError::TooLong)?;
        self.conversation.say(message);
        self.control.try_send(frame).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Violation::NotReading.into(),
            mpsc::error::TrySendError::Closed(_) => ChannelError::Closed,
        })
    }

    /// Notes that output was passed on, and lets the guest send more.
    pub fn pass_on(&mut self, stream: OutputStream, bytes: usize) -> Result<(), ChannelError> {
        match self.conversation.pass_on(stream, bytes) {
            Some(credit) => self.say(&credit),
            None => Ok(()),
        }
    }

    /// Where the frames of input streams go; full while the guest does not read.
    pub fn input(&self) -> mpsc::Sender<Vec<u8>> {
        self.data.clone()
    }
}

async fn read_messages(
    mut from: impl AsyncRead + Unpin,
    to: mpsc::Sender<Result<GuestMessage, FrameError>>,
) {
    loop {
        let message = frames::read(&mut from).await;
        let ended = message.is_err();
        // Nobody listens any more, or nothing sensible can follow.
        if to.send(message).await.is_err() || ended {
            return;
        }
    }
}

async fn write_frames(
    mut to: impl AsyncWrite + Unpin,
    mut control: mpsc::Receiver<Vec<u8>>,
    mut data: mpsc::Receiver<Vec<u8>>,
) {
    loop {
        let frame = tokio::select! {
            biased;
            Some(frame) = control.recv() => frame,
            Some(frame) = data.recv() => frame,
            else => return,
        };
        // A broken transport shows on the reading side, which tells it.
        if to.write_all(&frame).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_protocol::message::Hello;
    use tokio::io::duplex;

    async fn first_error(bytes: &[u8]) -> String {
        let (host, mut guest) = duplex(1 << 21);
        let mut link = Link::open(host);
        guest.write_all(bytes).await.unwrap();
        drop(guest);
        loop {
            if let Err(error) = link.hear().await {
                return crate::failure::chain(&error);
            }
        }
    }

    #[tokio::test]
    async fn each_kind_of_bad_frame_is_named() {
        for (bytes, named) in [
            (&[0, 0, 0, 0][..], "empty frame"),
            (&[0xff, 0xff, 0xff, 0xff], "more than the 1048576 allowed"),
            (&[0, 0, 0, 2, 0xee, 0xee], "malformed message"),
            (&[0, 0, 0, 2, 1, 1], "left over"),
            (&[0, 0, 0, 9, 1], "closed the channel"),
            (&[0, 0, 0, 1, 1], "Prepared before its hello"),
            (&[], "closed the channel"),
        ] {
            let error = first_error(bytes).await;
            assert!(error.contains(named), "{bytes:?}: {error}");
        }
    }

    #[tokio::test]
    async fn a_guest_that_does_not_read_is_given_up() {
        let (host, _guest) = duplex(64);
        let mut link = Link::open(host);
        let message = HostMessage::Signal(15);
        let error = (0..1000).find_map(|_| link.say(&message).err()).unwrap();
        assert!(matches!(error, ChannelError::Violation(Violation::NotReading)), "{error}");
    }

    #[tokio::test]
    async fn an_honest_guest_is_heard() {
        let (host, mut guest) = duplex(1 << 16);
        let mut link = Link::open(host);
        let hello = Hello {
            protocol: mayfly_protocol::VERSION,
            agent: "0.1.0".to_owned(),
            kernel: "6.12".to_owned(),
        };
        let frame = frame::encode(&GuestMessage::Hello(hello.clone())).unwrap();
        guest.write_all(&frame).await.unwrap();
        assert_eq!(link.hear().await.unwrap(), Heard::Hello(hello));
    }
}

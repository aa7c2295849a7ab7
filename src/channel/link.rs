//! A link: drives a [`Conversation`] over a byte stream.

use mayfly_protocol::frame::{self, FrameError};
use mayfly_protocol::message::{GuestMessage, HostMessage, OutputStream};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::conversation::{Conversation, Received, Violation};
use super::frames;

/// Capacity of the queue of received messages. Each has at most the size of a frame.
const INCOMING_MESSAGES: usize = 4;
/// Capacity of the queue of control messages. Honest guests read them at once.
const OUTGOING_MESSAGES: usize = 64;
/// Capacity of the queue of input chunks.
const OUTGOING_CHUNKS: usize = 2;

/// An error that ends the channel.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The guest closed the channel or died.
    #[error("the guest closed the channel")]
    Closed,
    /// The guest violated the protocol.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// The message does not fit into a frame.
    #[error("the job's arguments, variables and paths exceed the limit of one message")]
    TooLong(#[source] FrameError),
}

/// A running conversation with a guest.
pub struct Link {
    conversation: Conversation,
    incoming: mpsc::Receiver<Result<GuestMessage, FrameError>>,
    control: mpsc::Sender<Vec<u8>>,
    data: mpsc::Sender<Vec<u8>>,
    // Reader and writer; both end with the transport or with this link.
    _tasks: JoinSet<()>,
}

impl Link {
    /// Starts a conversation over the guest's connection.
    pub fn open(transport: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        let (read, write) = tokio::io::split(transport);
        let (received, incoming) = mpsc::channel(INCOMING_MESSAGES);
        let (control, outgoing) = mpsc::channel(OUTGOING_MESSAGES);
        let (data, outgoing_data) = mpsc::channel(OUTGOING_CHUNKS);
        let mut tasks = JoinSet::new();
        tasks.spawn(read_messages(read, received));
        tasks.spawn(write_frames(write, outgoing, outgoing_data));
        Self { conversation: Conversation::default(), incoming, control, data, _tasks: tasks }
    }

    /// Returns the next valid message. Cancel-safe.
    pub async fn receive(&mut self) -> Result<Received, ChannelError> {
        match self.incoming.recv().await {
            None | Some(Err(FrameError::Io(_))) => Err(ChannelError::Closed),
            Some(Err(error)) => Err(Violation::Frame(error).into()),
            Some(Ok(message)) => Ok(self.conversation.receive(message)?),
        }
    }

    /// Queues a message other than input. Never waits: a full queue means that the guest does not
    /// read, which is a violation.
    pub fn send(&mut self, message: &HostMessage) -> Result<(), ChannelError> {
        let frame = frame::encode(message).map_err(ChannelError::TooLong)?;
        self.conversation.record_sent(message);
        self.control.try_send(frame).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Violation::NotReading.into(),
            mpsc::error::TrySendError::Closed(_) => ChannelError::Closed,
        })
    }

    /// Reports that output was delivered, so that the guest may send more.
    pub fn credit_output(
        &mut self,
        stream: OutputStream,
        bytes: usize,
    ) -> Result<(), ChannelError> {
        match self.conversation.credit_output(stream, bytes) {
            Some(credit) => self.send(&credit),
            None => Ok(()),
        }
    }

    /// Returns the queue for frames of input streams. It is full while the guest does not read.
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
        // The receiver is gone, or nothing valid can follow an error.
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
        // The reader reports a broken transport.
        if to.write_all(&frame).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_protocol::message::GuestHello;
    use tokio::io::duplex;

    async fn first_error(bytes: &[u8]) -> String {
        let (host, mut guest) = duplex(1 << 21);
        let mut link = Link::open(host);
        guest.write_all(bytes).await.unwrap();
        drop(guest);
        loop {
            if let Err(error) = link.receive().await {
                return mayfly_failure::chain(&error);
            }
        }
    }

    #[tokio::test]
    async fn each_kind_of_bad_frame_is_reported() {
        for (bytes, named) in [
            (&[0, 0, 0, 0][..], "empty frame"),
            (&[0xff, 0xff, 0xff, 0xff], "exceeds the limit of 1048576"),
            (&[0, 0, 0, 2, 0xee, 0xee], "malformed message"),
            (&[0, 0, 0, 2, 1, 1], "trailing bytes after the message"),
            (&[0, 0, 0, 9, 1], "closed the channel"),
            (&[0, 0, 0, 1, 1], "Prepared before its hello"),
            (&[], "closed the channel"),
        ] {
            let error = first_error(bytes).await;
            assert!(error.contains(named), "{bytes:?}: {error}");
        }
    }

    #[tokio::test]
    async fn a_guest_that_does_not_read_violates_the_protocol() {
        let (host, _guest) = duplex(64);
        let mut link = Link::open(host);
        let message = HostMessage::Signal(15);
        let error = (0..1000).find_map(|_| link.send(&message).err()).unwrap();
        assert!(matches!(error, ChannelError::Violation(Violation::NotReading)), "{error}");
    }

    #[tokio::test]
    async fn a_valid_message_is_received() {
        let (host, mut guest) = duplex(1 << 16);
        let mut link = Link::open(host);
        let hello = GuestHello {
            protocol: mayfly_protocol::VERSION,
            agent: "0.1.0".to_owned(),
            kernel: "6.12".to_owned(),
        };
        let frame = frame::encode(&GuestMessage::Hello(hello.clone())).unwrap();
        guest.write_all(&frame).await.unwrap();
        assert_eq!(link.receive().await.unwrap(), Received::Hello(hello));
    }
}

//! Front ends that connect and disconnect, repeat commands, or have another version.

use super::wire::ShepherdReport;
use super::*;
use crate::event::{EventKind, Phase};
use crate::plan::MicrovmId;

fn event(phase: Phase) -> Event {
    Event::now(&MicrovmId::new().unwrap(), 0, EventKind::Phase(phase))
}

fn listener() -> (tempfile::TempDir, std::path::PathBuf, UnixListener) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("front");
    let listener = UnixListener::bind(&path).unwrap();
    (directory, path, listener)
}

/// The front end's side of a connection.
struct Peer {
    lines: Lines<OwnedReadHalf>,
    write: OwnedWriteHalf,
    acknowledged: Vec<u64>,
}

impl Peer {
    fn new(stream: UnixStream) -> Self {
        let (read, write) = stream.into_split();
        Self { lines: Lines::new(read), write, acknowledged: Vec::new() }
    }

    async fn connect(path: &std::path::Path) -> Self {
        let mut peer = Self::new(UnixStream::connect(path).await.unwrap());
        peer.greet().await;
        peer
    }

    async fn greet(&mut self) {
        self.send(&Message::Hello(&WireHello::ours(0))).await;
        match self.next().await {
            Some(ShepherdReport::Hello(hello)) => self.acknowledged.push(hello.acknowledged),
            other => panic!("no hello, but {other:?}"),
        }
    }

    async fn send(&mut self, message: &Message<'_>) {
        self.write.write_all(&wire::encode(message).unwrap()).await.unwrap();
    }

    async fn command(&mut self, number: u64, command: &ShepherdCommand) {
        self.send(&Message::Command { number, command }).await;
    }

    async fn next(&mut self) -> Option<ShepherdReport> {
        tokio::time::timeout(CLOSE_TIMEOUT, self.lines.next_report()).await.unwrap().ok().flatten()
    }

    /// Reads the next event. Records acknowledgements before it.
    async fn event(&mut self) -> Option<Event> {
        loop {
            match self.next().await? {
                ShepherdReport::Event(event) => return Some(*event),
                ShepherdReport::Acknowledged(answer) => self.acknowledged.push(answer.number),
                other => panic!("{other:?}"),
            }
        }
    }

    /// Reads the next acknowledgement. Fails on an event.
    async fn acknowledgement(&mut self) -> Acknowledgement {
        match self.next().await {
            Some(ShepherdReport::Acknowledged(answer)) => answer,
            other => panic!("no acknowledgement, but {other:?}"),
        }
    }
}

/// Returns a front end and the shepherd's side of its connection.
async fn open(listener: Option<UnixListener>) -> (Peer, FrontEnd) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let peers = PeerPolicy::parent_namespaces(theirs.as_fd()).unwrap();
    let mut peer = Peer::new(ours);
    let (greeted, ()) = tokio::join!(GreetedConnection::accept_first(theirs), peer.greet());
    let listener = listener.map(|socket| FrontListener { socket, peers });
    let front = FrontEnd::new(greeted.unwrap(), 1, listener).unwrap();
    (peer, front)
}

#[tokio::test]
async fn each_front_end_gets_all_events_once_and_in_order() {
    let (_directory, path, listener) = listener();
    let (mut first, mut front) = open(Some(listener)).await;
    let events = [Phase::Planned, Phase::Prepared, Phase::Booting].map(event);
    front.send_event(&events[0]);
    assert_eq!(first.event().await.as_ref(), Some(&events[0]));
    front.send_event(&events[1]);
    let mut second = Peer::connect(&path).await;
    assert_eq!(second.event().await.as_ref(), Some(&events[0]));
    assert_eq!(second.event().await.as_ref(), Some(&events[1]));
    front.send_event(&events[2]);
    let mut third = Peer::connect(&path).await;
    for event in &events {
        assert_eq!(third.event().await.as_ref(), Some(event));
    }
    // The second may have received it, too, before the third replaced it.
    while let Some(event) = second.event().await {
        assert_eq!(event, events[2]);
    }
    front.close().await;
    assert!(third.event().await.is_none(), "no event arrives twice");
}

#[tokio::test]
async fn a_lost_front_end_ends_only_an_attached_shepherd() {
    let (_directory, path, listener) = listener();
    let (first, mut front) = open(Some(listener)).await;
    drop(first);
    let mut second = Peer::connect(&path).await;
    second.command(2, &ShepherdCommand::Signal(15)).await;
    assert!(matches!(front.next_command().await, Ok(ShepherdCommand::Signal(15))));
    drop(second);
    let mut third = Peer::connect(&path).await;
    third.command(3, &ShepherdCommand::End).await;
    assert!(matches!(front.next_command().await, Ok(ShepherdCommand::End)));

    let (first, mut front) = open(None).await;
    drop(first);
    assert!(matches!(front.next_command().await, Err(FailureCause::Abandoned)));
}

#[tokio::test(start_paused = true)]
async fn a_front_end_that_does_not_read_blocks_nothing() {
    let (_directory, path, listener) = listener();
    let (deaf, mut front) = open(Some(listener)).await;
    let count = 20_000;
    for _ in 0..count {
        front.send_event(&event(Phase::Ready));
    }
    tokio::time::sleep(CLIENT_TIMEOUT * 2).await;
    let mut next = Peer::connect(&path).await;
    for _ in 0..count {
        next.event().await.unwrap();
    }
    drop(deaf);
    front.close().await;
}

#[tokio::test]
async fn a_command_is_carried_out_once_and_acknowledged_each_time() {
    let (_directory, path, listener) = listener();
    let (mut first, mut front) = open(Some(listener)).await;
    assert_eq!(first.acknowledgement().await.number, 1, "the command of the first connection");
    first.command(2, &ShepherdCommand::Signal(15)).await;
    assert!(matches!(front.next_command().await, Ok(ShepherdCommand::Signal(15))));
    assert_eq!(first.acknowledgement().await, Acknowledgement { number: 2, refused: None });
    // The acknowledgement was lost, and the command is repeated on this connection and the next.
    first.command(2, &ShepherdCommand::Signal(15)).await;
    first.command(3, &ShepherdCommand::Signal(2)).await;
    assert!(
        matches!(front.next_command().await, Ok(ShepherdCommand::Signal(2))),
        "the repetition is skipped"
    );
    assert_eq!(first.acknowledgement().await.number, 2);
    assert_eq!(first.acknowledgement().await.number, 3);
    let mut second = Peer::connect(&path).await;
    assert_eq!(second.acknowledged, [3], "the hello says what was received");
    second.command(3, &ShepherdCommand::Signal(2)).await;
    second.command(4, &ShepherdCommand::Signal(9)).await;
    assert!(matches!(front.next_command().await, Ok(ShepherdCommand::Signal(9))));
    assert_eq!(second.acknowledgement().await.number, 3);
    assert_eq!(second.acknowledgement().await.number, 4);
}

#[tokio::test]
async fn a_command_of_a_newer_version_is_refused_by_its_number_and_changes_nothing() {
    let (mut peer, mut front) = open(None).await;
    peer.acknowledgement().await;
    for line in [
        "{\"order\":{\"number\":2,\"order\":{\"freeze\":{\"for\":\"1h\"}}}}\n",
        "{\"order\":{\"number\":3,\"order\":\"thaw\",\"why\":\"for fun\"}}\n",
        "{\"weather\":\"fine\"}\n",
    ] {
        peer.write.write_all(line.as_bytes()).await.unwrap();
    }
    peer.command(4, &ShepherdCommand::Signal(1)).await;
    assert!(matches!(front.next_command().await, Ok(ShepherdCommand::Signal(1))));
    let answers =
        [peer.acknowledgement().await, peer.acknowledgement().await, peer.acknowledgement().await];
    assert_eq!(answers.each_ref().map(|answer| answer.number), [2, 3, 4]);
    assert_eq!(answers.map(|answer| answer.refused.is_some()), [true, true, false]);
}

#[tokio::test]
async fn a_connection_without_a_valid_hello_replaces_no_other() {
    let (_directory, path, listener) = listener();
    let (mut first, mut front) = open(Some(listener)).await;
    first.acknowledgement().await;
    let old_wire = b"\x00\x00\x00\x02\x04\x00";
    let future = format!("{}\n", r#"{"hello":{"version":99,"min_version":98}}"#);
    let mut strangers = Vec::new();
    for words in [&b""[..], old_wire, b"hello\n", b"{}\n", future.as_bytes()] {
        let mut stranger = UnixStream::connect(&path).await.unwrap();
        stranger.write_all(words).await.unwrap();
        strangers.push(stranger);
    }
    front.send_event(&event(Phase::Planned));
    assert_eq!(first.event().await.map(|event| event.kind), Some(EventKind::Phase(Phase::Planned)));
    first.command(2, &ShepherdCommand::Signal(1)).await;
    assert!(matches!(front.next_command().await, Ok(ShepherdCommand::Signal(1))));
    // Each of them gets the shepherd's hello.
    for stranger in strangers {
        let mut peer = Peer::new(stranger);
        assert!(
            matches!(peer.next().await, Some(ShepherdReport::Hello(hello)) if hello.check().is_ok())
        );
    }
}

#[tokio::test]
async fn a_front_end_that_reads_late_gets_the_last_acknowledgement() {
    let (mut peer, mut front) = open(None).await;
    let count = 10 * MAX_ACKNOWLEDGEMENTS as u64;
    for number in 2..count {
        peer.command(number, &ShepherdCommand::Signal(1)).await;
        assert!(front.next_command().await.is_ok());
    }
    let mut last = 0;
    while last < count - 1 {
        let number = peer.acknowledgement().await.number;
        assert!(number > last);
        last = number;
    }
}

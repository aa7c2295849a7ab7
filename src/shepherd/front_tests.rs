//! Front ends that come and go, repeat themselves, or are of another version.

use super::wire::Report;
use super::*;
use crate::shepherd::event::{Happened, Phase};
use crate::shepherd::plan::Id;

fn event(phase: Phase) -> Event {
    Event::now(&Id::new().unwrap(), 0, Happened::Phase(phase))
}

fn listener() -> (tempfile::TempDir, std::path::PathBuf, UnixListener) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("front");
    let listener = UnixListener::bind(&path).unwrap();
    (directory, path, listener)
}

/// A front end: its lines and where it writes.
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
        self.say(&Message::Hello(&Hello::ours(0))).await;
        match self.next().await {
            Some(Report::Hello(hello)) => self.acknowledged.push(hello.acknowledged),
            other => panic!("no hello, but {other:?}"),
        }
    }

    async fn say(&mut self, message: &Message<'_>) {
        self.write.write_all(&wire::encode(message).unwrap()).await.unwrap();
    }

    async fn order(&mut self, number: u64, order: &Order) {
        self.say(&Message::Order { number, order }).await;
    }

    async fn next(&mut self) -> Option<Report> {
        tokio::time::timeout(FAREWELL, self.lines.report()).await.unwrap().ok().flatten()
    }

    /// The next event. Acknowledgements before it are noted.
    async fn event(&mut self) -> Option<Event> {
        loop {
            match self.next().await? {
                Report::Event(event) => return Some(*event),
                Report::Acknowledged(answer) => self.acknowledged.push(answer.number),
                other => panic!("{other:?}"),
            }
        }
    }

    /// The next acknowledgement, with no event before it.
    async fn answer(&mut self) -> Acknowledgement {
        match self.next().await {
            Some(Report::Acknowledged(answer)) => answer,
            other => panic!("no acknowledgement, but {other:?}"),
        }
    }
}

/// A front end and what it started.
async fn open(listener: Option<UnixListener>) -> (Peer, Front) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let welcome = Welcome::above(theirs.as_fd()).unwrap();
    let mut peer = Peer::new(ours);
    let (greeted, ()) = tokio::join!(Greeted::first(theirs), peer.greet());
    let door = listener.map(|listener| Door { listener, welcome });
    let front = Front::open(greeted.unwrap(), 1, door).unwrap();
    (peer, front)
}

#[tokio::test]
async fn each_front_end_hears_everything_once_and_in_order() {
    let (_directory, path, listener) = listener();
    let (mut first, mut front) = open(Some(listener)).await;
    let events = [Phase::Planned, Phase::Prepared, Phase::Booting].map(event);
    front.tell(&events[0]);
    assert_eq!(first.event().await.as_ref(), Some(&events[0]));
    front.tell(&events[1]);
    let mut second = Peer::connect(&path).await;
    assert_eq!(second.event().await.as_ref(), Some(&events[0]));
    assert_eq!(second.event().await.as_ref(), Some(&events[1]));
    front.tell(&events[2]);
    let mut third = Peer::connect(&path).await;
    for event in &events {
        assert_eq!(third.event().await.as_ref(), Some(event));
    }
    // The second may have heard it, too, before the third took its place.
    while let Some(event) = second.event().await {
        assert_eq!(event, events[2]);
    }
    front.close().await;
    assert!(third.event().await.is_none(), "nothing comes twice");
}

#[tokio::test]
async fn the_end_of_a_front_end_is_that_of_an_attached_shepherd_only() {
    let (_directory, path, listener) = listener();
    let (first, mut front) = open(Some(listener)).await;
    drop(first);
    let mut second = Peer::connect(&path).await;
    second.order(2, &Order::Signal(15)).await;
    assert!(matches!(front.order().await, Ok(Order::Signal(15))));
    drop(second);
    let mut third = Peer::connect(&path).await;
    third.order(3, &Order::End).await;
    assert!(matches!(front.order().await, Ok(Order::End)));

    let (first, mut front) = open(None).await;
    drop(first);
    assert!(matches!(front.order().await, Err(Cause::Abandoned)));
}

#[tokio::test(start_paused = true)]
async fn a_front_end_that_does_not_listen_holds_up_nothing() {
    let (_directory, path, listener) = listener();
    let (deaf, mut front) = open(Some(listener)).await;
    let count = 20_000;
    for _ in 0..count {
        front.tell(&event(Phase::Ready));
    }
    tokio::time::sleep(HEARING * 2).await;
    let mut next = Peer::connect(&path).await;
    for _ in 0..count {
        next.event().await.unwrap();
    }
    drop(deaf);
    front.close().await;
}

#[tokio::test]
async fn an_order_is_carried_out_once_and_acknowledged_as_often_as_it_comes() {
    let (_directory, path, listener) = listener();
    let (mut first, mut front) = open(Some(listener)).await;
    assert_eq!(first.answer().await.number, 1, "the order that came with the first connection");
    first.order(2, &Order::Signal(15)).await;
    assert!(matches!(front.order().await, Ok(Order::Signal(15))));
    assert_eq!(first.answer().await, Acknowledgement { number: 2, refused: None });
    // The answer was lost, and the order comes again: over this connection, and over the next.
    first.order(2, &Order::Signal(15)).await;
    first.order(3, &Order::Signal(2)).await;
    assert!(matches!(front.order().await, Ok(Order::Signal(2))), "the repetition is skipped");
    assert_eq!(first.answer().await.number, 2);
    assert_eq!(first.answer().await.number, 3);
    let mut second = Peer::connect(&path).await;
    assert_eq!(second.acknowledged, [3], "the hello says what was received");
    second.order(3, &Order::Signal(2)).await;
    second.order(4, &Order::Signal(9)).await;
    assert!(matches!(front.order().await, Ok(Order::Signal(9))));
    assert_eq!(second.answer().await.number, 3);
    assert_eq!(second.answer().await.number, 4);
}

#[tokio::test]
async fn an_order_of_a_newer_version_is_refused_by_its_number_and_changes_nothing() {
    let (mut peer, mut front) = open(None).await;
    peer.answer().await;
    for line in [
        "{\"order\":{\"number\":2,\"order\":{\"freeze\":{\"for\":\"1h\"}}}}\n",
        "{\"order\":{\"number\":3,\"order\":\"thaw\",\"why\":\"for fun\"}}\n",
        "{\"weather\":\"fine\"}\n",
    ] {
        peer.write.write_all(line.as_bytes()).await.unwrap();
    }
    peer.order(4, &Order::Signal(1)).await;
    assert!(matches!(front.order().await, Ok(Order::Signal(1))));
    let answers = [peer.answer().await, peer.answer().await, peer.answer().await];
    assert_eq!(answers.each_ref().map(|answer| answer.number), [2, 3, 4]);
    assert_eq!(answers.map(|answer| answer.refused.is_some()), [true, true, false]);
}

#[tokio::test]
async fn who_says_no_hello_or_a_wrong_one_takes_nobodys_place() {
    let (_directory, path, listener) = listener();
    let (mut first, mut front) = open(Some(listener)).await;
    first.answer().await;
    let old_wire = b"\x00\x00\x00\x02\x04\x00";
    let future = format!("{}\n", r#"{"hello":{"version":99,"min_version":98}}"#);
    let mut strangers = Vec::new();
    for words in [&b""[..], old_wire, b"hello\n", b"{}\n", future.as_bytes()] {
        let mut stranger = UnixStream::connect(&path).await.unwrap();
        stranger.write_all(words).await.unwrap();
        strangers.push(stranger);
    }
    front.tell(&event(Phase::Planned));
    assert_eq!(
        first.event().await.map(|event| event.happened),
        Some(Happened::Phase(Phase::Planned))
    );
    first.order(2, &Order::Signal(1)).await;
    assert!(matches!(front.order().await, Ok(Order::Signal(1))));
    // Each of them learns whom it talks to.
    for stranger in strangers {
        let mut peer = Peer::new(stranger);
        assert!(matches!(peer.next().await, Some(Report::Hello(hello)) if hello.check().is_ok()));
    }
}

#[tokio::test]
async fn a_front_end_that_reads_late_misses_no_acknowledgement_that_counts() {
    let (mut peer, mut front) = open(None).await;
    let count = 10 * ANSWERS as u64;
    for number in 2..count {
        peer.order(number, &Order::Signal(1)).await;
        assert!(front.order().await.is_ok());
    }
    let mut last = 0;
    while last < count - 1 {
        let number = peer.answer().await.number;
        assert!(number > last);
        last = number;
    }
}

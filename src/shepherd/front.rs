//! The shepherd's side of the connection to its front end: orders in, events out.
//!
//! An attached shepherd has one connection, and ends with it. A detached one has a listener
//! beside: front ends come and go, the newest is the one that counts, and each is told everything
//! from the first event on. A front end that does not listen is let go, so that none can hold up
//! the shepherd.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use mayfly_protocol::frame;
use mayfly_protocol::message::Job;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::cause::Cause;
use super::event::Event;
use super::plan::Order;
use crate::channel::frames;

/// Orders that wait to be carried out.
const WAITING: usize = 16;

/// How long a front end may leave what it was told unread, once the socket's buffer is full.
const HEARING: Duration = Duration::from_secs(10);

/// How long the last events may take to reach a front end.
const FAREWELL: Duration = Duration::from_secs(15);

/// The pause after a connection that could not be accepted, as when descriptors run out.
const PAUSE: Duration = Duration::from_millis(100);

/// Every event so far, as frames. Bounded by what can happen to one microVM.
type Told = Vec<Arc<[u8]>>;

/// The front end, as the shepherd sees it.
pub(super) struct Front {
    orders: mpsc::Receiver<Order>,
    told: watch::Sender<Told>,
    terminate: Signal,
    // Orders that came before their time.
    early: VecDeque<Order>,
    reception: JoinSet<()>,
}

impl Front {
    /// Takes over the first connection, the listener for later ones if there is one, and the
    /// signal that ends a process in an orderly way.
    pub(super) fn open(first: UnixStream, listener: Option<UnixListener>) -> io::Result<Self> {
        let (sender, orders) = mpsc::channel(WAITING);
        let (told, hearing) = watch::channel(Told::new());
        let mut reception = JoinSet::new();
        reception.spawn(receive(first, listener, sender, hearing));
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self { orders, told, terminate, early: VecDeque::new(), reception })
    }

    /// The next order. Nothing is lost where the wait is given up.
    pub(super) async fn order(&mut self) -> Result<Order, Cause> {
        match self.early.pop_front() {
            Some(order) => Ok(order),
            None => self.receive().await,
        }
    }

    /// Waits for the wish, spoken or not, to end it all. Other orders are kept for later.
    pub(super) async fn ended(&mut self) -> Cause {
        loop {
            match self.receive().await {
                // Beyond this a front end gives orders that no job is there for.
                Ok(_) if self.early.len() >= WAITING => {}
                Ok(order) => self.early.push_back(order),
                Err(cause) => return cause,
            }
        }
    }

    async fn receive(&mut self) -> Result<Order, Cause> {
        tokio::select! {
            order = self.orders.recv() => match order {
                None => Err(Cause::Abandoned),
                Some(Order::End) => Err(Cause::Ended),
                Some(order) => Ok(order),
            },
            _ = self.terminate.recv() => Err(Cause::Ended),
        }
    }

    /// Waits for the job. What else comes is for a job that does not run yet, and goes nowhere.
    pub(super) async fn job(&mut self) -> Result<Job, Cause> {
        loop {
            if let Order::Start(job) = self.order().await? {
                return Ok(*job);
            }
        }
    }

    /// Tells what happened, to the front end that is there and to those that come later.
    pub(super) fn tell(&mut self, event: &Event) {
        if let Ok(frame) = frame::encode(event) {
            self.told.send_modify(|told| told.push(frame.into()));
        }
    }

    /// Nothing more will happen: waits until the front end has heard everything.
    pub(super) async fn close(self) {
        let Self { told, mut reception, .. } = self;
        drop(told);
        // One that does not listen finds it all in the record.
        let _ = tokio::time::timeout(FAREWELL, reception.join_next()).await;
    }
}

/// A connection to a front end: the task that reads orders and the one that writes events.
#[derive(Default)]
struct Visit {
    orders: JoinSet<()>,
    events: JoinSet<()>,
}

impl Visit {
    fn begin(
        stream: UnixStream,
        orders: &mpsc::Sender<Order>,
        told: &watch::Receiver<Told>,
    ) -> Self {
        let (read, write) = stream.into_split();
        let mut visit = Self::default();
        visit.orders.spawn(frames::forward(read, orders.clone()));
        visit.events.spawn(tell_all(write, told.clone()));
        visit
    }
}

/// Receives front ends until there is nothing more to tell and it has been told.
async fn receive(
    first: UnixStream,
    listener: Option<UnixListener>,
    orders: mpsc::Sender<Order>,
    mut told: watch::Receiver<Told>,
) {
    let mut visit = Visit::begin(first, &orders, &told);
    let mut orders = Some(orders);
    loop {
        tokio::select! {
            stream = accept(listener.as_ref()) => {
                // The newest is the one that counts: with the former its tasks end.
                visit = orders.as_ref().map(|orders| Visit::begin(stream, orders, &told))
                    .unwrap_or_default();
            }
            Some(_) = visit.orders.join_next() => match listener {
                Some(_) => visit = Visit::default(),
                // Nobody will ever give an order again; the shepherd sees it by this.
                None => orders = None,
            },
            Some(_) = visit.events.join_next() => if listener.is_some() {
                visit = Visit::default();
            },
            () = nothing_more(&mut told), if visit.events.is_empty() => return,
        }
    }
}

/// Writes every event from the first on, until there are no more to come or nobody reads them.
async fn tell_all(mut write: OwnedWriteHalf, mut told: watch::Receiver<Told>) {
    let mut index = 0;
    loop {
        let news = told.borrow_and_update()[index..].to_vec();
        for frame in &news {
            match tokio::time::timeout(HEARING, write.write_all(frame)).await {
                Ok(Ok(())) => index += 1,
                _ => return,
            }
        }
        if told.changed().await.is_err() {
            return;
        }
    }
}

async fn nothing_more(told: &mut watch::Receiver<Told>) {
    while told.changed().await.is_ok() {}
}

/// The next front end that may give orders; none ever where there is no listener.
async fn accept(listener: Option<&UnixListener>) -> UnixStream {
    let Some(listener) = listener else { return std::future::pending().await };
    loop {
        match listener.accept().await {
            Ok((stream, _)) if is_welcome(&stream) => return stream,
            Ok(_) => {}
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Whether a peer is a process of the same user that is none of this shepherd's own children: QEMU
/// has the same user, and the processes in this namespace are the only ones whose number is seen.
fn is_welcome(stream: &UnixStream) -> bool {
    let this = i32::try_from(std::process::id()).ok();
    stream.peer_cred().is_ok_and(|peer| {
        let outside = peer.pid().is_none_or(|pid| pid == 0 || Some(pid) == this);
        peer.uid() == nix::unistd::geteuid().as_raw() && outside
    })
}

#[cfg(test)]
mod tests {
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

    async fn heard(stream: &mut UnixStream) -> Event {
        tokio::time::timeout(FAREWELL, frames::read(stream)).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn each_front_end_hears_everything_once_and_in_order() {
        let (_directory, path, listener) = listener();
        let (mut first, theirs) = UnixStream::pair().unwrap();
        let mut front = Front::open(theirs, Some(listener)).unwrap();
        let events = [Phase::Planned, Phase::Prepared, Phase::Booting].map(event);
        front.tell(&events[0]);
        assert_eq!(heard(&mut first).await, events[0]);
        front.tell(&events[1]);
        let mut second = UnixStream::connect(&path).await.unwrap();
        assert_eq!(heard(&mut second).await, events[0]);
        assert_eq!(heard(&mut second).await, events[1]);
        front.tell(&events[2]);
        let mut third = UnixStream::connect(&path).await.unwrap();
        for event in &events {
            assert_eq!(heard(&mut third).await, *event);
        }
        // The second may have heard it, too, before the third took its place.
        while let Ok(event) = frames::read::<Event>(&mut second).await {
            assert_eq!(event, events[2]);
        }
        front.close().await;
        assert!(frames::read::<Event>(&mut third).await.is_err(), "nothing comes twice");
    }

    #[tokio::test]
    async fn the_end_of_a_front_end_is_that_of_an_attached_shepherd_only() {
        let (_directory, path, listener) = listener();
        let (first, theirs) = UnixStream::pair().unwrap();
        let mut front = Front::open(theirs, Some(listener)).unwrap();
        drop(first);
        let mut second = UnixStream::connect(&path).await.unwrap();
        second.write_all(&frame::encode(&Order::Signal(15)).unwrap()).await.unwrap();
        assert!(matches!(front.order().await, Ok(Order::Signal(15))));
        drop(second);
        let mut third = UnixStream::connect(&path).await.unwrap();
        third.write_all(&frame::encode(&Order::End).unwrap()).await.unwrap();
        assert!(matches!(front.order().await, Err(Cause::Ended)));

        let (first, theirs) = UnixStream::pair().unwrap();
        let mut front = Front::open(theirs, None).unwrap();
        drop(first);
        assert!(matches!(front.order().await, Err(Cause::Abandoned)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_front_end_that_does_not_listen_holds_up_nothing() {
        let (_directory, path, listener) = listener();
        let (deaf, theirs) = UnixStream::pair().unwrap();
        let mut front = Front::open(theirs, Some(listener)).unwrap();
        let count = 20_000;
        for _ in 0..count {
            front.tell(&event(Phase::Ready));
        }
        tokio::time::sleep(HEARING * 2).await;
        let mut next = UnixStream::connect(&path).await.unwrap();
        for _ in 0..count {
            heard(&mut next).await;
        }
        drop(deaf);
        front.close().await;
    }
}

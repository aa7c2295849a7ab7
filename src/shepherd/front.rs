//! The shepherd's side of the connection to its front end: orders in, events out.
//!
//! An attached shepherd has one connection, and ends with it. A detached one has a listener
//! beside: front ends come and go, the newest is the one that counts, and each is told everything
//! from the first event on. A front end that does not listen is let go, so that none can hold up
//! the shepherd.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use mayfly_protocol::message::Job;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::cause::Cause;
use super::event::Event;
use super::plan::Order;
use super::wire::{self, Acknowledgement, Hello, Lines, Message, Request};
use crate::isolation::peer::Welcome;

/// Orders that wait to be carried out.
const WAITING: usize = 16;

/// How long a front end may leave what it was told unread, once the socket's buffer is full, and
/// how long it may take to say hello.
const HEARING: Duration = Duration::from_secs(10);

/// How long the last events may take to reach a front end.
const FAREWELL: Duration = Duration::from_secs(15);

/// The pause after a connection that could not be accepted, as when descriptors run out.
const PAUSE: Duration = Duration::from_millis(100);

/// Front ends that may be about to say hello.
const GREETING: usize = 8;

/// Acknowledgements that are kept for a front end that is slow to read. Those before are implied by
/// those after.
const ANSWERS: usize = 64;

/// An order that was received, with its number; none where it can't be read.
type Received = (u64, Option<Order>);

/// What there is to tell.
#[derive(Default)]
struct Told {
    /// Every event so far, as lines. Bounded by what can happen to one microVM.
    events: Vec<Arc<[u8]>>,
    /// The last acknowledgements, as lines.
    answers: VecDeque<Arc<[u8]>>,
    /// How many acknowledgements there were.
    answered: usize,
    /// The number of the last order that was received.
    acknowledged: u64,
}

/// Where later front ends connect, and who may.
pub(super) struct Door {
    pub(super) listener: UnixListener,
    pub(super) welcome: Welcome,
}

/// The front end, as the shepherd sees it.
pub(super) struct Front {
    orders: mpsc::Receiver<Received>,
    told: watch::Sender<Told>,
    terminate: Signal,
    // Orders that came before their time.
    early: VecDeque<Order>,
    reception: JoinSet<()>,
}

/// A connection whose both sides have said hello.
pub(super) struct Greeted {
    lines: Lines<OwnedReadHalf>,
    write: OwnedWriteHalf,
    // Acknowledgements that our hello included.
    answered: usize,
}

impl Greeted {
    /// Says hello to the front end that started this shepherd, and hears its hello. None where the
    /// two do not understand each other.
    pub(super) async fn first(stream: UnixStream) -> Option<Self> {
        Self::exchange(stream, 0, 0).await
    }

    /// The same with a later one, which may not take long.
    async fn later(stream: UnixStream, acknowledged: u64, answered: usize) -> Option<Self> {
        let exchange = Self::exchange(stream, acknowledged, answered);
        tokio::time::timeout(HEARING, exchange).await.ok()?
    }

    async fn exchange(stream: UnixStream, acknowledged: u64, answered: usize) -> Option<Self> {
        let (read, mut write) = stream.into_split();
        let mut lines = Lines::new(read);
        let hello = wire::encode(&Message::Hello(&Hello::ours(acknowledged))).ok()?;
        write.write_all(&hello).await.ok()?;
        match lines.request().await {
            Ok(Some(Request::Hello(hello))) => hello.check().ok()?,
            _ => return None,
        }
        Some(Self { lines, write, answered })
    }

    /// The first order.
    pub(super) async fn order(&mut self) -> Option<(u64, Order)> {
        match self.lines.request().await {
            Ok(Some(Request::Order(number, order))) => Some((number, *order)),
            _ => None,
        }
    }
}

impl Front {
    /// Takes over the first connection and the number of its first order, the door for later
    /// connections if there is one, and the signal that ends a process in an orderly way.
    pub(super) fn open(first: Greeted, number: u64, door: Option<Door>) -> io::Result<Self> {
        let (sender, orders) = mpsc::channel(WAITING);
        let (told, hearing) = watch::channel(Told::default());
        let terminate = signal(SignalKind::terminate())?;
        let mut front =
            Self { orders, told, terminate, early: VecDeque::new(), reception: JoinSet::new() };
        front.acknowledge(number, None);
        front.reception.spawn(receive(first, door, sender, hearing));
        Ok(front)
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
                // No job runs yet that could be told.
                Ok(Order::Farewell(_) | Order::End) => return Cause::Ended,
                // Beyond this a front end gives orders that no job is there for.
                Ok(_) if self.early.len() >= WAITING => {}
                Ok(order) => self.early.push_back(order),
                Err(cause) => return cause,
            }
        }
    }

    async fn receive(&mut self) -> Result<Order, Cause> {
        loop {
            let received = tokio::select! {
                received = self.orders.recv() => received,
                _ = self.terminate.recv() => return Err(Cause::Ended),
            };
            let (number, order) = received.ok_or(Cause::Abandoned)?;
            let repeated = number <= self.told.borrow().acknowledged;
            let unknown = !repeated && order.is_none();
            self.acknowledge(number, unknown.then_some("this version does not know the order"));
            match order {
                // It was received before; only the answer was lost.
                _ if repeated => {}
                Some(order) => return Ok(order),
                None => {}
            }
        }
    }

    fn acknowledge(&mut self, number: u64, refused: Option<&str>) {
        let answer = Acknowledgement { number, refused: refused.map(str::to_owned) };
        let Ok(line) = wire::encode(&Message::Acknowledged(&answer)) else { return };
        self.told.send_modify(|told| {
            told.acknowledged = told.acknowledged.max(number);
            if told.answers.len() == ANSWERS {
                told.answers.pop_front();
            }
            told.answers.push_back(line.into());
            told.answered += 1;
        });
    }

    /// Waits for the job. What else comes is for a job that does not run yet, and goes nowhere.
    pub(super) async fn job(&mut self) -> Result<Job, Cause> {
        loop {
            match self.order().await? {
                Order::Start(job) => return Ok(*job),
                Order::Farewell(_) | Order::End => return Err(Cause::Ended),
                _ => {}
            }
        }
    }

    /// Tells what happened, to the front end that is there and to those that come later.
    pub(super) fn tell(&mut self, event: &Event) {
        if let Ok(line) = wire::encode(&Message::Event(event)) {
            self.told.send_modify(|told| told.events.push(line.into()));
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
        greeted: Greeted,
        orders: &mpsc::Sender<Received>,
        told: &watch::Receiver<Told>,
    ) -> Self {
        let mut visit = Self::default();
        visit.orders.spawn(forward(greeted.lines, orders.clone()));
        visit.events.spawn(tell_all(greeted.write, greeted.answered, told.clone()));
        visit
    }
}

/// Receives front ends until there is nothing more to tell and it has been told.
async fn receive(
    first: Greeted,
    door: Option<Door>,
    orders: mpsc::Sender<Received>,
    mut told: watch::Receiver<Told>,
) {
    let mut visit = Visit::begin(first, &orders, &told);
    let mut orders = Some(orders);
    // Those that have not said hello yet, and do not count before they have.
    let mut greetings = JoinSet::new();
    loop {
        tokio::select! {
            stream = accept(door.as_ref()), if greetings.len() < GREETING => {
                let (acknowledged, answered) = {
                    let told = told.borrow();
                    (told.acknowledged, told.answered)
                };
                greetings.spawn(Greeted::later(stream, acknowledged, answered));
            }
            Some(greeted) = greetings.join_next() => {
                if let (Ok(Some(greeted)), Some(orders)) = (greeted, &orders) {
                    // The newest is the one that counts: with the former its tasks end.
                    visit = Visit::begin(greeted, orders, &told);
                }
            }
            Some(_) = visit.orders.join_next() => match door {
                Some(_) => visit = Visit::default(),
                // Nobody will ever give an order again; the shepherd sees it by this.
                None => orders = None,
            },
            Some(_) = visit.events.join_next() => if door.is_some() {
                visit = Visit::default();
            },
            () = nothing_more(&mut told), if visit.events.is_empty() => return,
        }
    }
}

/// Reads orders until the connection ends or makes no sense, or until nobody takes them.
async fn forward(mut lines: Lines<OwnedReadHalf>, to: mpsc::Sender<Received>) {
    while let Ok(Some(request)) = lines.request().await {
        let received = match request {
            Request::Order(number, order) => (number, Some(*order)),
            Request::UnknownOrder(number) => (number, None),
            Request::Hello(_) | Request::Unknown => continue,
        };
        if to.send(received).await.is_err() {
            return;
        }
    }
}

/// Writes every event from the first on, and the acknowledgements after the first `answered`,
/// until there are no more to come or nobody reads them.
async fn tell_all(mut write: OwnedWriteHalf, answered: usize, mut told: watch::Receiver<Told>) {
    let (mut index, mut answered) = (0, answered);
    loop {
        let news: Vec<Arc<[u8]>> = {
            let told = told.borrow_and_update();
            let new = (told.answered - answered).min(told.answers.len());
            let answers = told.answers.iter().skip(told.answers.len() - new);
            let news = answers.chain(&told.events[index..]).cloned().collect();
            (index, answered) = (told.events.len(), told.answered);
            news
        };
        for line in &news {
            match tokio::time::timeout(HEARING, write.write_all(line)).await {
                Ok(Ok(())) => {}
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

/// The next front end that may give orders; none ever where there is no door.
async fn accept(door: Option<&Door>) -> UnixStream {
    let Some(door) = door else { return std::future::pending().await };
    loop {
        match door.listener.accept().await {
            Ok((stream, _)) if door.welcome.check(stream.as_fd()).is_ok() => return stream,
            Ok(_) => {}
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

#[cfg(test)]
#[path = "front_tests.rs"]
mod tests;

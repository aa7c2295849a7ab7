//! The shepherd's side of the connection to its front end: orders in, events out.

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream as Socket;

use mayfly_protocol::frame;
use mayfly_protocol::message::Job;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::cause::Cause;
use super::event::Event;
use super::plan::{Order, Plan};
use crate::channel::frames;

/// Orders that wait to be carried out.
const WAITING: usize = 16;

/// The front end, as the shepherd sees it.
pub(super) struct Front {
    orders: mpsc::Receiver<Order>,
    events: OwnedWriteHalf,
    terminate: Signal,
    // Orders that came before their time.
    early: VecDeque<Order>,
    // The reader of orders; ends with the connection.
    _reader: JoinSet<()>,
}

impl Front {
    /// Takes over the connection, and the signal that ends a process in an orderly way.
    pub(super) fn open(socket: Socket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let (read, events) = UnixStream::from_std(socket)?.into_split();
        let (sender, orders) = mpsc::channel(WAITING);
        let mut reader = JoinSet::new();
        reader.spawn(frames::forward(read, sender));
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self { orders, events, terminate, early: VecDeque::new(), _reader: reader })
    }

    /// The first order.
    pub(super) async fn plan(&mut self) -> Result<Plan, Cause> {
        match self.orders.recv().await {
            Some(Order::Prepare(plan)) => Ok(*plan),
            _ => Err(Cause::Abandoned),
        }
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

    /// Tells what happened. A front end that is gone is noticed where orders are read.
    pub(super) async fn tell(&mut self, event: &Event) {
        if let Ok(frame) = frame::encode(event) {
            let _ = self.events.write_all(&frame).await;
        }
    }
}

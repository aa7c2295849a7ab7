//! The shepherd's side of the connection to its front end: commands in, events out.
//!
//! An attached shepherd has one connection and ends with it. A detached one also has a listener:
//! front ends come and go, the newest connection replaces the one before, and each front end gets
//! all events from the first on. A front end that stops reading is disconnected, so that it can't
//! block the shepherd.

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

use super::cause::FailureCause;
use super::event::Event;
use super::plan::ShepherdCommand;
use super::wire::{self, Acknowledgement, Lines, Message, ShepherdRequest, WireHello};
use mayfly_isolation::peer::PeerPolicy;

/// Capacity of the queue of received commands.
const COMMAND_QUEUE: usize = 16;

/// Time limit for a front end to read a message once the socket's buffer is full, and to send its
/// hello.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);

/// Time limit for sending the last events to a front end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(15);

/// Delay after a failed `accept`, such as when descriptors run out.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Maximum number of connections that have not sent their hello yet.
const MAX_PENDING_HELLOS: usize = 8;

/// Acknowledgements kept for a front end that reads slowly. Later ones imply earlier ones.
const MAX_ACKNOWLEDGEMENTS: usize = 64;

/// A received command with its number; `None` if the command can't be parsed.
type ReceivedCommand = (u64, Option<ShepherdCommand>);

/// The messages for front ends.
#[derive(Default)]
struct Outbox {
    /// All events so far, as lines. Bounded by what can happen to one microVM.
    events: Vec<Arc<[u8]>>,
    /// The newest acknowledgements, as lines.
    acknowledgements: VecDeque<Arc<[u8]>>,
    /// Number of acknowledgements so far.
    acknowledgement_count: usize,
    /// Number of the last received command.
    acknowledged: u64,
}

/// The socket for later front ends, and who may connect to it.
pub(super) struct FrontListener {
    pub(super) socket: UnixListener,
    pub(super) peers: PeerPolicy,
}

/// The shepherd's view of its front end.
pub(super) struct FrontEnd {
    commands: mpsc::Receiver<ReceivedCommand>,
    outbox: watch::Sender<Outbox>,
    terminate: Signal,
    // Commands that arrived before they can be carried out.
    early: VecDeque<ShepherdCommand>,
    server: JoinSet<()>,
}

/// A connection on which both sides have sent their hello.
pub(super) struct GreetedConnection {
    lines: Lines<OwnedReadHalf>,
    write: OwnedWriteHalf,
    // Number of acknowledgements that our hello covers.
    acknowledgement_count: usize,
}

impl GreetedConnection {
    /// Exchanges hellos with the front end that started this shepherd. `None` if the versions do
    /// not match.
    pub(super) async fn accept_first(stream: UnixStream) -> Option<Self> {
        Self::exchange(stream, 0, 0).await
    }

    /// Exchanges hellos with a later front end, within a time limit.
    async fn accept_later(
        stream: UnixStream,
        acknowledged: u64,
        acknowledgement_count: usize,
    ) -> Option<Self> {
        let exchange = Self::exchange(stream, acknowledged, acknowledgement_count);
        tokio::time::timeout(CLIENT_TIMEOUT, exchange).await.ok()?
    }

    async fn exchange(
        stream: UnixStream,
        acknowledged: u64,
        acknowledgement_count: usize,
    ) -> Option<Self> {
        let (read, mut write) = stream.into_split();
        let mut lines = Lines::new(read);
        let hello = wire::encode(&Message::Hello(&WireHello::ours(acknowledged))).ok()?;
        write.write_all(&hello).await.ok()?;
        match lines.next_request().await {
            Ok(Some(ShepherdRequest::Hello(hello))) => hello.check().ok()?,
            _ => return None,
        }
        Some(Self { lines, write, acknowledgement_count })
    }

    /// Reads the first command.
    pub(super) async fn first_command(&mut self) -> Option<(u64, ShepherdCommand)> {
        match self.lines.next_request().await {
            Ok(Some(ShepherdRequest::Command(number, command))) => Some((number, *command)),
            _ => None,
        }
    }
}

impl FrontEnd {
    /// Takes over the first connection, the number of its first command, and the listener for later
    /// connections, if any. Installs the SIGTERM handler.
    pub(super) fn new(
        first: GreetedConnection,
        number: u64,
        listener: Option<FrontListener>,
    ) -> io::Result<Self> {
        let (sender, commands) = mpsc::channel(COMMAND_QUEUE);
        let (outbox, hearing) = watch::channel(Outbox::default());
        let terminate = signal(SignalKind::terminate())?;
        let mut front =
            Self { commands, outbox, terminate, early: VecDeque::new(), server: JoinSet::new() };
        front.acknowledge(number, None);
        front.server.spawn(serve(first, listener, sender, hearing));
        Ok(front)
    }

    /// Returns the next command. Cancel-safe.
    pub(super) async fn next_command(&mut self) -> Result<ShepherdCommand, FailureCause> {
        match self.early.pop_front() {
            Some(command) => Ok(command),
            None => self.receive().await,
        }
    }

    /// Waits for a request to end the microVM, a signal or a lost front end. Queues other commands.
    pub(super) async fn wait_for_end(&mut self) -> FailureCause {
        loop {
            match self.receive().await {
                // No job runs that could be interrupted.
                Ok(ShepherdCommand::Interrupt(_) | ShepherdCommand::End) => {
                    return FailureCause::Ended;
                }
                // More commands than this make no sense before a job runs; drop them.
                Ok(_) if self.early.len() >= COMMAND_QUEUE => {}
                Ok(command) => self.early.push_back(command),
                Err(cause) => return cause,
            }
        }
    }

    async fn receive(&mut self) -> Result<ShepherdCommand, FailureCause> {
        loop {
            let received = tokio::select! {
                received = self.commands.recv() => received,
                _ = self.terminate.recv() => return Err(FailureCause::Ended),
            };
            let (number, command) = received.ok_or(FailureCause::Abandoned)?;
            let repeated = number <= self.outbox.borrow().acknowledged;
            let unknown = !repeated && command.is_none();
            self.acknowledge(number, unknown.then_some("this version does not know the command"));
            match command {
                // Received before; only its acknowledgement was lost.
                _ if repeated => {}
                Some(command) => return Ok(command),
                None => {}
            }
        }
    }

    fn acknowledge(&mut self, number: u64, refused: Option<&str>) {
        let answer = Acknowledgement { number, refused: refused.map(str::to_owned) };
        let Ok(line) = wire::encode(&Message::Acknowledged(&answer)) else { return };
        self.outbox.send_modify(|outbox| {
            outbox.acknowledged = outbox.acknowledged.max(number);
            if outbox.acknowledgements.len() == MAX_ACKNOWLEDGEMENTS {
                outbox.acknowledgements.pop_front();
            }
            outbox.acknowledgements.push_back(line.into());
            outbox.acknowledgement_count += 1;
        });
    }

    /// Waits for the job. Drops commands that are for a running job.
    pub(super) async fn wait_for_job(&mut self) -> Result<Job, FailureCause> {
        loop {
            match self.next_command().await? {
                ShepherdCommand::Start(job) => return Ok(*job),
                ShepherdCommand::Interrupt(_) | ShepherdCommand::End => {
                    return Err(FailureCause::Ended);
                }
                _ => {}
            }
        }
    }

    /// Sends an event to the current front end and, from the queue, to later ones.
    pub(super) fn send_event(&mut self, event: &Event) {
        if let Ok(line) = wire::encode(&Message::Event(event)) {
            self.outbox.send_modify(|outbox| outbox.events.push(line.into()));
        }
    }

    /// Waits until the front end has received everything. No events follow.
    pub(super) async fn close(self) {
        let Self { outbox, mut server, .. } = self;
        drop(outbox);
        // A front end that does not read finds everything in the record.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, server.join_next()).await;
    }
}

/// The tasks of one connection: one reads commands, one writes events.
#[derive(Default)]
struct ConnectionTasks {
    commands: JoinSet<()>,
    events: JoinSet<()>,
}

impl ConnectionTasks {
    fn start(
        greeted: GreetedConnection,
        commands: &mpsc::Sender<ReceivedCommand>,
        outbox: &watch::Receiver<Outbox>,
    ) -> Self {
        let mut connection = Self::default();
        connection.commands.spawn(forward(greeted.lines, commands.clone()));
        connection.events.spawn(write_outbox(
            greeted.write,
            greeted.acknowledgement_count,
            outbox.clone(),
        ));
        connection
    }
}

/// Serves front ends until the outbox is closed and written.
async fn serve(
    first: GreetedConnection,
    listener: Option<FrontListener>,
    commands: mpsc::Sender<ReceivedCommand>,
    mut outbox: watch::Receiver<Outbox>,
) {
    let mut connection = ConnectionTasks::start(first, &commands, &outbox);
    let mut commands = Some(commands);
    // Connections that have not sent their hello yet; they do not count until then.
    let mut pending = JoinSet::new();
    loop {
        tokio::select! {
            stream = accept(listener.as_ref()), if pending.len() < MAX_PENDING_HELLOS => {
                let (acknowledged, acknowledgement_count) = {
                    let outbox = outbox.borrow();
                    (outbox.acknowledged, outbox.acknowledgement_count)
                };
                let greeted =
                    GreetedConnection::accept_later(stream, acknowledged, acknowledgement_count);
                pending.spawn(greeted);
            }
            Some(greeted) = pending.join_next() => {
                if let (Ok(Some(greeted)), Some(commands)) = (greeted, &commands) {
                    // The newest connection replaces the former, whose tasks end with this.
                    connection = ConnectionTasks::start(greeted, commands, &outbox);
                }
            }
            Some(_) = connection.commands.join_next() => match listener {
                Some(_) => connection = ConnectionTasks::default(),
                // No more commands can arrive; the closed channel tells the shepherd.
                None => commands = None,
            },
            Some(_) = connection.events.join_next() => if listener.is_some() {
                connection = ConnectionTasks::default();
            },
            () = wait_until_closed(&mut outbox), if connection.events.is_empty() => return,
        }
    }
}

/// Reads commands until the connection ends, is invalid, or the receiver is gone.
async fn forward(mut lines: Lines<OwnedReadHalf>, to: mpsc::Sender<ReceivedCommand>) {
    while let Ok(Some(request)) = lines.next_request().await {
        let received = match request {
            ShepherdRequest::Command(number, command) => (number, Some(*command)),
            ShepherdRequest::UnknownCommand(number) => (number, None),
            ShepherdRequest::Hello(_) | ShepherdRequest::Unknown => continue,
        };
        if to.send(received).await.is_err() {
            return;
        }
    }
}

/// Writes all events and the acknowledgements after the first `sent`, until the outbox is closed or
/// the front end stops reading.
async fn write_outbox(mut write: OwnedWriteHalf, sent: usize, mut outbox: watch::Receiver<Outbox>) {
    let (mut index, mut sent) = (0, sent);
    loop {
        let lines: Vec<Arc<[u8]>> = {
            let outbox = outbox.borrow_and_update();
            let new = (outbox.acknowledgement_count - sent).min(outbox.acknowledgements.len());
            let first = outbox.acknowledgements.len() - new;
            let acknowledgements = outbox.acknowledgements.iter().skip(first);
            let lines = acknowledgements.chain(&outbox.events[index..]).cloned().collect();
            (index, sent) = (outbox.events.len(), outbox.acknowledgement_count);
            lines
        };
        for line in &lines {
            match tokio::time::timeout(CLIENT_TIMEOUT, write.write_all(line)).await {
                Ok(Ok(())) => {}
                _ => return,
            }
        }
        if outbox.changed().await.is_err() {
            return;
        }
    }
}

async fn wait_until_closed(outbox: &mut watch::Receiver<Outbox>) {
    while outbox.changed().await.is_ok() {}
}

/// Accepts the next permitted front end. Never returns without a listener.
async fn accept(listener: Option<&FrontListener>) -> UnixStream {
    let Some(listener) = listener else { return std::future::pending().await };
    loop {
        match listener.socket.accept().await {
            Ok((stream, _)) if listener.peers.check(stream.as_fd()).is_ok() => return stream,
            Ok(_) => {}
            Err(_) => tokio::time::sleep(ACCEPT_RETRY_DELAY).await,
        }
    }
}

#[cfg(test)]
#[path = "front_end_tests.rs"]
mod tests;

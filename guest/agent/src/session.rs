//! Stage two: the session with the host, from `Hello` to the end of the connection.
//!
//! One thread reads and dispatches messages. It never waits for the job, so signals, credit, and
//! the shutdown request are always received. The job has [its own threads](crate::job).

use std::io::Read;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use mayfly_protocol::frame;
use mayfly_protocol::message::{GuestHello, GuestMessage, HostMessage, Job, Prepare};

use crate::channel::Sender;
use crate::error::{Context, StepError};
use crate::harden::Hardening;
use crate::job::{JobContext, RunningJob};
use crate::statistics;

/// The reason why a session ended.
#[derive(Debug)]
pub enum SessionEnd {
    /// The host requested a shutdown.
    Shutdown,
    /// The host closed the connection.
    HostDisconnected,
    /// The agent failed, and has told the host.
    Failed(StepError),
}

/// The operations of a session on the machine itself.
#[derive(Debug, Clone, Copy)]
pub struct MachineOperations {
    /// Handles `Prepare`.
    pub prepare: fn(&Prepare) -> Result<(), StepError>,
    /// Sets the clock, to nanoseconds since the Unix epoch.
    pub set_clock: fn(u64) -> Result<(), StepError>,
}

/// A session with the host.
///
/// Its end does not wait for the job's threads: the machine ends with it, and a hanging job must
/// not delay that.
pub struct Session {
    sender: Arc<Sender>,
    context: JobContext,
    operations: MachineOperations,
    /// Hardening that must finish before the job starts.
    hardening: Option<Hardening>,
    stage: Stage,
}

/// The stage of a session.
enum Stage {
    Greeted,
    Prepared(HeartbeatThread),
    Started { running: RunningJob, _heartbeat: HeartbeatThread },
}

impl Session {
    /// Returns a session that sends its messages through `sender`.
    pub fn new(sender: Sender, context: JobContext, operations: MachineOperations) -> Self {
        Self {
            sender: Arc::new(sender),
            context,
            operations,
            hardening: None,
            stage: Stage::Greeted,
        }
    }

    /// Makes the job wait until `hardening` has finished.
    #[must_use]
    pub fn after_hardening(mut self, hardening: Hardening) -> Self {
        self.hardening = Some(hardening);
        self
    }

    /// Sends `Hello` and handles the messages from `reader` until the session ends.
    pub fn serve(&mut self, mut reader: impl Read) -> SessionEnd {
        if self.sender.send(&GuestMessage::Hello(hello())).is_err() {
            return SessionEnd::HostDisconnected;
        }
        loop {
            let failure = match frame::read(&mut reader) {
                Ok(Some(HostMessage::Shutdown)) => return SessionEnd::Shutdown,
                Ok(Some(message)) => match self.handle(message) {
                    Ok(()) => continue,
                    Err(failure) => failure,
                },
                Ok(None) | Err(frame::FrameError::Io(_)) => return SessionEnd::HostDisconnected,
                Err(error) => StepError::new("handle a message of the host", error.to_string()),
            };
            let _disconnected = self.sender.send(&failure.to_message());
            return SessionEnd::Failed(failure);
        }
    }

    fn handle(&mut self, message: HostMessage) -> Result<(), StepError> {
        match (&mut self.stage, message) {
            (Stage::Greeted, HostMessage::Prepare(prepare)) => self.prepare(&prepare),
            (Stage::Prepared(_), HostMessage::Start(job)) => self.start(job),
            (Stage::Prepared(_) | Stage::Started { .. }, HostMessage::SetClock(now)) => {
                (self.operations.set_clock)(now)
            }
            (Stage::Started { running, .. }, message) => forward_to_job(message, running),
            (_, message) => Err(out_of_order(&message)),
        }
    }

    fn prepare(&mut self, prepare: &Prepare) -> Result<(), StepError> {
        (self.operations.prepare)(prepare)?;
        let mtu = prepare.network.as_ref().map(|network| network.mtu);
        self.context.services.offer(&self.context.groups, mtu)?;
        self.send(&GuestMessage::Prepared);
        let interval = Duration::from_millis(u64::from(prepare.heartbeat_interval.max(1)));
        self.stage = Stage::Prepared(HeartbeatThread::start(Arc::clone(&self.sender), interval)?);
        Ok(())
    }

    fn start(&mut self, job: Job) -> Result<(), StepError> {
        let hardening = self.hardening.take();
        let running = RunningJob::start(job, &self.context, &self.sender, hardening)?;
        self.stage = match std::mem::replace(&mut self.stage, Stage::Greeted) {
            Stage::Prepared(heartbeat) => Stage::Started { running, _heartbeat: heartbeat },
            other => other,
        };
        Ok(())
    }

    /// Sends a message. A failure means that the host has disconnected, which the next read
    /// detects.
    fn send(&self, message: &GuestMessage) {
        let _disconnected = self.sender.send(message);
    }
}

fn hello() -> GuestHello {
    let kernel = nix::sys::utsname::uname()
        .map(|names| names.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    GuestHello {
        protocol: mayfly_protocol::VERSION,
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        kernel,
    }
}

/// Passes a message to the job.
fn forward_to_job(message: HostMessage, running: &RunningJob) -> Result<(), StepError> {
    match message {
        HostMessage::Input { stream, bytes } => return running.push_input(stream, &bytes),
        HostMessage::InputEnd { stream } => return running.end_input(stream),
        HostMessage::Credit { stream, bytes } => return running.add_credit(stream, bytes),
        HostMessage::Signal(number) => running.signal(number),
        HostMessage::Resize(size) => running.resize(size),
        message => return Err(out_of_order(&message)),
    }
    Ok(())
}

fn out_of_order(message: &HostMessage) -> StepError {
    let name = match message {
        HostMessage::Prepare(_) => "Prepare",
        HostMessage::Start(_) => "Start",
        HostMessage::Input { .. } => "Input",
        HostMessage::InputEnd { .. } => "InputEnd",
        HostMessage::Credit { .. } => "Credit",
        HostMessage::Signal(_) => "Signal",
        HostMessage::Resize(_) => "Resize",
        HostMessage::Shutdown => "Shutdown",
        HostMessage::SetClock(_) => "SetClock",
    };
    StepError::new("handle a message of the host", format!("received {name} out of order"))
}

/// The heartbeat thread, which ends when this is dropped.
struct HeartbeatThread {
    /// Never sends; dropping it stops the thread.
    _stop: mpsc::Sender<()>,
}

impl HeartbeatThread {
    fn start(sender: Arc<Sender>, interval: Duration) -> Result<Self, StepError> {
        let (stop, stopped) = mpsc::channel::<()>();
        let beat = move || {
            while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                if sender.send(&GuestMessage::Heartbeat(statistics::read())).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("heart".into());
        thread.spawn(beat).context(|| "start the heartbeat thread")?;
        Ok(Self { _stop: stop })
    }
}

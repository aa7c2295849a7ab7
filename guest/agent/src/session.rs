//! Stage two: the conversation with the host, from `Hello` to the end of the connection.
//!
//! One thread reads and dispatches; it never waits for the job, so that signals, credit and the
//! request to shut down are always heard. The job has [threads of its own](crate::job).

use std::io::Read;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use mayfly_protocol::frame;
use mayfly_protocol::message::{GuestMessage, Hello, HostMessage, Job, Prepare};

use crate::channel::Sender;
use crate::error::{During, StepError};
use crate::harden::Hardening;
use crate::job::{Place, Running};
use crate::statistics;

/// Why a conversation ended.
#[derive(Debug)]
pub enum Outcome {
    /// The host asked for the machine's end.
    Shutdown,
    /// The host hung up.
    HostGone,
    /// The agent can't go on; the host was told.
    Failed(StepError),
}

/// What a conversation does to the machine itself.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// Carries out `Prepare`.
    pub prepare: fn(&Prepare) -> Result<(), StepError>,
    /// Sets the clock, to nanoseconds since the Unix epoch.
    pub set_clock: fn(u64) -> Result<(), StepError>,
}

/// A conversation.
///
/// At its end nobody waits for the job's threads: the machine ends with it, and a job that hangs
/// must not hold that up.
pub struct Session {
    sender: Arc<Sender>,
    place: Place,
    setup: Setup,
    /// What the job waits for.
    hardening: Option<Hardening>,
    stage: Stage,
}

/// How far the conversation is.
enum Stage {
    Greeted,
    Prepared(Heart),
    Started { running: Running, _heart: Heart },
}

impl Session {
    /// A conversation whose answers go through `sender`.
    pub fn new(sender: Sender, place: Place, setup: Setup) -> Self {
        Self { sender: Arc::new(sender), place, setup, hardening: None, stage: Stage::Greeted }
    }

    /// The same, whose job starts when this is done.
    #[must_use]
    pub fn waiting_for(mut self, hardening: Hardening) -> Self {
        self.hardening = Some(hardening);
        self
    }

    /// Says hello and does what the messages from `reader` ask, until there is a reason to end.
    pub fn serve(&mut self, mut reader: impl Read) -> Outcome {
        if self.sender.send(&GuestMessage::Hello(hello())).is_err() {
            return Outcome::HostGone;
        }
        loop {
            let failure = match frame::read(&mut reader) {
                Ok(Some(HostMessage::Shutdown)) => return Outcome::Shutdown,
                Ok(Some(message)) => match self.obey(message) {
                    Ok(()) => continue,
                    Err(failure) => failure,
                },
                Ok(None) | Err(frame::FrameError::Io(_)) => return Outcome::HostGone,
                Err(error) => StepError::new("understand the host", error.to_string()),
            };
            let _gone = self.sender.send(&failure.to_message());
            return Outcome::Failed(failure);
        }
    }

    fn obey(&mut self, message: HostMessage) -> Result<(), StepError> {
        match (&mut self.stage, message) {
            (Stage::Greeted, HostMessage::Prepare(prepare)) => self.get_ready(&prepare),
            (Stage::Prepared(_), HostMessage::Start(job)) => self.start(job),
            (Stage::Prepared(_) | Stage::Started { .. }, HostMessage::SetClock(now)) => {
                (self.setup.set_clock)(now)
            }
            (Stage::Started { running, .. }, message) => pass_on(message, running),
            (_, message) => Err(out_of_order(&message)),
        }
    }

    fn get_ready(&mut self, prepare: &Prepare) -> Result<(), StepError> {
        (self.setup.prepare)(prepare)?;
        let mtu = prepare.network.as_ref().map(|network| network.mtu);
        self.place.services.offer(&self.place.groups, mtu)?;
        self.say(&GuestMessage::Prepared);
        let interval = Duration::from_millis(u64::from(prepare.heartbeat_interval.max(1)));
        self.stage = Stage::Prepared(Heart::start(Arc::clone(&self.sender), interval)?);
        Ok(())
    }

    fn start(&mut self, job: Job) -> Result<(), StepError> {
        let hardening = self.hardening.take();
        let running = Running::start(job, &self.place, &self.sender, hardening)?;
        self.stage = match std::mem::replace(&mut self.stage, Stage::Greeted) {
            Stage::Prepared(heart) => Stage::Started { running, _heart: heart },
            other => other,
        };
        Ok(())
    }

    /// Sends what may fail only because the host is gone, which the next read finds, too.
    fn say(&self, message: &GuestMessage) {
        let _gone = self.sender.send(message);
    }
}

fn hello() -> Hello {
    let kernel = nix::sys::utsname::uname()
        .map(|names| names.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    Hello {
        protocol: mayfly_protocol::VERSION,
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        kernel,
    }
}

/// Hands what is for the job to it.
fn pass_on(message: HostMessage, running: &Running) -> Result<(), StepError> {
    match message {
        HostMessage::Input { stream, bytes } => return running.input(stream, &bytes),
        HostMessage::InputEnd { stream } => return running.input_end(stream),
        HostMessage::Credit { stream, bytes } => return running.credit(stream, bytes),
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
    StepError::new("understand the host", format!("{name} came out of order"))
}

/// What keeps the heartbeats going: their thread ends when this is dropped.
struct Heart {
    /// Nothing is ever sent.
    _stop: mpsc::Sender<()>,
}

impl Heart {
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
        thread.spawn(beat).during(|| "start the thread of heartbeats")?;
        Ok(Self { _stop: stop })
    }
}

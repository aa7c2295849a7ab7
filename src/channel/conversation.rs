//! What a guest may say, when, and how much: a state machine without I/O.

use std::collections::BTreeMap;

use mayfly_protocol::flow::{FlowError, MAX_CHUNK, ReceiveWindow};
use mayfly_protocol::frame::FrameError;
use mayfly_protocol::message::{
    GuestMessage, Hello, HostMessage, InputStream, Job, JobStatus, NotStarted, OutputStream,
    Statistics,
};

/// Characters of a text from the guest that are kept.
const TEXT: usize = 512;

/// How far a conversation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Connected; `Hello` is due.
    Connected,
    /// `Hello` came; `Prepare` may be sent.
    Greeted,
    /// `Prepare` was sent; `Prepared` is due.
    Preparing,
    /// Ready for a job.
    Prepared,
    /// The job was sent; `Started` is due, or that it did not start.
    Starting,
    /// The job runs.
    Running,
    /// The job is over.
    Over,
}

/// The guest broke the rules. What it is worth is one line in the record: the microVM ends.
#[derive(Debug, thiserror::Error)]
pub enum Violation {
    /// A frame that is none.
    #[error("the guest sent a bad frame")]
    Frame(#[source] FrameError),
    /// The agent speaks another version.
    #[error("the guest's agent speaks version {theirs} of the protocol, this program {ours}")]
    Version {
        /// The guest's version.
        theirs: u16,
        /// Ours.
        ours: u16,
    },
    /// A message that has no place now.
    #[error("the guest sent {message} while {stage:?}")]
    OutOfOrder {
        /// Name of the message.
        message: &'static str,
        /// Where the conversation was.
        stage: Stage,
    },
    /// A stream that was never opened or has ended.
    #[error("the guest sent {message} for {stream}, which is not open")]
    NotOpen {
        /// Name of the message.
        message: &'static str,
        /// Name of the stream.
        stream: String,
    },
    /// A window was exceeded.
    #[error("the guest broke the flow control of {stream}")]
    Flow {
        /// Name of the stream.
        stream: String,
        /// How.
        #[source]
        error: FlowError,
    },
    /// A chunk without bytes or with too many.
    #[error("the guest sent a chunk of {0} bytes")]
    Chunk(usize),
    /// The job ended, but some of its streams did not.
    #[error("the guest reported the job's end before the end of {0}")]
    Unended(String),
    /// It does not take what it is sent.
    #[error("the guest does not read its channel")]
    NotReading,
}

/// A message that has its place.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// The agent is up.
    Hello(Hello),
    /// The machine is ready for a job.
    Prepared,
    /// The job runs.
    Started,
    /// Bytes of an open output stream, within its window.
    Output(OutputStream, Vec<u8>),
    /// An output stream ended, early if there is an error.
    OutputEnd(OutputStream, Option<String>),
    /// Credit for an input stream of the job; whoever holds its window checks the amount.
    Credit(InputStream, u32),
    /// The agent lives.
    Heartbeat(Statistics),
    /// The job is over; every output stream has ended.
    Exited(JobStatus),
    /// The agent gives up.
    Failed {
        /// What it was doing.
        step: String,
        /// Why it failed.
        error: String,
    },
}

/// The state of one conversation.
#[derive(Debug)]
pub struct Conversation {
    stage: Stage,
    outputs: BTreeMap<OutputStream, ReceiveWindow>,
    inputs: Vec<InputStream>,
}

impl Default for Conversation {
    fn default() -> Self {
        Self { stage: Stage::Connected, outputs: BTreeMap::new(), inputs: Vec::new() }
    }
}

impl Conversation {
    /// Notes what the host is about to say.
    pub fn say(&mut self, message: &HostMessage) {
        match message {
            HostMessage::Prepare(_) => self.stage = Stage::Preparing,
            HostMessage::Start(job) => {
                self.stage = Stage::Starting;
                self.outputs =
                    outputs(job).map(|stream| (stream, ReceiveWindow::default())).collect();
                self.inputs = inputs(job).collect();
            }
            _ => {}
        }
    }

    /// Takes a message from the guest, if it has its place.
    pub fn hear(&mut self, message: GuestMessage) -> Result<Heard, Violation> {
        use Stage::{Connected, Greeted, Over, Prepared, Preparing, Running, Starting};
        let name = name(&message);
        match (self.stage, message) {
            (Connected, GuestMessage::Hello(hello)) => self.greet(&hello),
            (Preparing, GuestMessage::Prepared) => {
                self.stage = Prepared;
                Ok(Heard::Prepared)
            }
            (Starting, GuestMessage::Started) => {
                self.stage = Running;
                Ok(Heard::Started)
            }
            (Running, GuestMessage::Output { stream, bytes }) => {
                self.output(stream, bytes.into_vec())
            }
            (Starting | Running, GuestMessage::OutputEnd { stream, error }) => {
                match self.outputs.remove(&stream) {
                    Some(_) => Ok(Heard::OutputEnd(stream, error.as_deref().map(clean))),
                    None => {
                        Err(Violation::NotOpen { message: name, stream: format!("{stream:?}") })
                    }
                }
            }
            (Starting | Running, GuestMessage::Credit { stream, bytes }) => {
                if self.inputs.contains(&stream) {
                    Ok(Heard::Credit(stream, bytes))
                } else {
                    Err(Violation::NotOpen { message: name, stream: format!("{stream:?}") })
                }
            }
            (Starting, GuestMessage::Exited(JobStatus::NotStarted(why))) => {
                self.stage = Over;
                Ok(Heard::Exited(JobStatus::NotStarted(clean_reason(why))))
            }
            (Running, GuestMessage::Exited(status)) => self.exit(&status),
            (
                Preparing | Prepared | Starting | Running | Over,
                GuestMessage::Heartbeat(statistics),
            ) => Ok(Heard::Heartbeat(statistics)),
            (
                Connected | Greeted | Preparing | Prepared | Starting | Running,
                GuestMessage::Failed { step, error },
            ) => Ok(Heard::Failed { step: clean(&step), error: clean(&error) }),
            (stage, _) => Err(Violation::OutOfOrder { message: name, stage }),
        }
    }

    /// Notes that `bytes` of an output stream were passed on. Gives the credit to send, unless the
    /// stream has ended.
    pub fn pass_on(&mut self, stream: OutputStream, bytes: usize) -> Option<HostMessage> {
        let credit = self.outputs.get_mut(&stream)?.pass_on(bytes)?;
        Some(HostMessage::Credit { stream, bytes: credit })
    }

    fn greet(&mut self, hello: &Hello) -> Result<Heard, Violation> {
        let (theirs, ours) = (hello.protocol, mayfly_protocol::VERSION);
        if theirs != ours {
            return Err(Violation::Version { theirs, ours });
        }
        self.stage = Stage::Greeted;
        let (agent, kernel) = (clean(&hello.agent), clean(&hello.kernel));
        Ok(Heard::Hello(Hello { protocol: theirs, agent, kernel }))
    }

    fn output(&mut self, stream: OutputStream, bytes: Vec<u8>) -> Result<Heard, Violation> {
        let name = || format!("{stream:?}");
        let Some(window) = self.outputs.get_mut(&stream) else {
            return Err(Violation::NotOpen { message: "Output", stream: name() });
        };
        if bytes.is_empty() || bytes.len() > MAX_CHUNK {
            return Err(Violation::Chunk(bytes.len()));
        }
        window.receive(bytes.len()).map_err(|error| Violation::Flow { stream: name(), error })?;
        Ok(Heard::Output(stream, bytes))
    }

    fn exit(&mut self, status: &JobStatus) -> Result<Heard, Violation> {
        match (self.outputs.keys().next(), status) {
            (_, JobStatus::NotStarted(_)) => {
                Err(Violation::OutOfOrder { message: "NotStarted", stage: self.stage })
            }
            (Some(stream), _) => Err(Violation::Unended(format!("{stream:?}"))),
            (None, status) => {
                self.stage = Stage::Over;
                Ok(Heard::Exited(status.clone()))
            }
        }
    }
}

/// The output streams of a job.
pub fn outputs(job: &Job) -> impl Iterator<Item = OutputStream> {
    let copies = (0..).zip(&job.copy_out).map(|(index, _)| OutputStream::CopyOut(index));
    [OutputStream::Stdout, OutputStream::Stderr].into_iter().chain(copies)
}

/// The input streams of a job.
pub fn inputs(job: &Job) -> impl Iterator<Item = InputStream> {
    let copies = (0..).zip(&job.copy_in).map(|(index, _)| InputStream::CopyIn(index));
    job.stdin.then_some(InputStream::Stdin).into_iter().chain(copies)
}

fn name(message: &GuestMessage) -> &'static str {
    match message {
        GuestMessage::Hello(_) => "Hello",
        GuestMessage::Prepared => "Prepared",
        GuestMessage::Started => "Started",
        GuestMessage::Output { .. } => "Output",
        GuestMessage::OutputEnd { .. } => "OutputEnd",
        GuestMessage::Credit { .. } => "Credit",
        GuestMessage::Heartbeat(_) => "Heartbeat",
        GuestMessage::Exited(_) => "Exited",
        GuestMessage::Failed { .. } => "Failed",
    }
}

/// A text that may be shown: short, and without characters that move a cursor.
fn clean(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(TEXT).collect()
}

fn clean_reason(why: NotStarted) -> NotStarted {
    match why {
        NotStarted::CommandNotFound => NotStarted::CommandNotFound,
        NotStarted::CommandNotExecutable(text) => NotStarted::CommandNotExecutable(clean(&text)),
        NotStarted::UserNotFound(text) => NotStarted::UserNotFound(clean(&text)),
        NotStarted::DirectoryNotEntered(text) => NotStarted::DirectoryNotEntered(clean(&text)),
        NotStarted::CopyInFailed(index, text) => NotStarted::CopyInFailed(index, clean(&text)),
        NotStarted::Other(text) => NotStarted::Other(clean(&text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_protocol::flow::WINDOW;
    use mayfly_protocol::message::Prepare;
    use proptest::prelude::*;

    fn hello(protocol: u16) -> GuestMessage {
        GuestMessage::Hello(Hello { protocol, agent: "0.1".into(), kernel: "6.12".into() })
    }

    fn prepare() -> HostMessage {
        HostMessage::Prepare(Prepare {
            entropy: vec![].into(),
            wall_clock: 0,
            hostname: String::new(),
            network: None,
            heartbeat_interval: 1000,
        })
    }

    fn job() -> Job {
        Job {
            arguments: vec![b"true".to_vec().into()],
            environment: vec![],
            directory: None,
            user: None,
            terminal: None,
            stdin: true,
            copy_in: vec![],
            copy_out: vec![b"/out".to_vec().into()],
        }
    }

    fn output(stream: OutputStream, count: usize) -> GuestMessage {
        GuestMessage::Output { stream, bytes: vec![7; count].into() }
    }

    fn end(stream: OutputStream) -> GuestMessage {
        GuestMessage::OutputEnd { stream, error: None }
    }

    /// A conversation in which the job runs.
    fn running() -> Conversation {
        let mut conversation = Conversation::default();
        conversation.hear(hello(mayfly_protocol::VERSION)).unwrap();
        conversation.say(&prepare());
        conversation.hear(GuestMessage::Prepared).unwrap();
        conversation.say(&HostMessage::Start(job()));
        conversation.hear(GuestMessage::Started).unwrap();
        conversation
    }

    #[test]
    fn a_job_runs_from_hello_to_its_end() {
        let mut conversation = running();
        let heard = conversation.hear(output(OutputStream::Stdout, 3)).unwrap();
        assert_eq!(heard, Heard::Output(OutputStream::Stdout, vec![7; 3]));
        for stream in outputs(&job()) {
            conversation.hear(end(stream)).unwrap();
        }
        let heard = conversation.hear(GuestMessage::Exited(JobStatus::Code(7))).unwrap();
        assert_eq!(heard, Heard::Exited(JobStatus::Code(7)));
        assert!(conversation.hear(GuestMessage::Exited(JobStatus::Code(0))).is_err());
    }

    #[test]
    fn another_version_is_named() {
        let error = Conversation::default().hear(hello(99)).unwrap_err();
        assert!(matches!(error, Violation::Version { theirs: 99, .. }), "{error}");
    }

    #[test]
    fn nothing_is_heard_before_its_time() {
        for message in [
            GuestMessage::Prepared,
            GuestMessage::Started,
            output(OutputStream::Stdout, 1),
            end(OutputStream::Stdout),
            GuestMessage::Exited(JobStatus::Code(0)),
            GuestMessage::Heartbeat(Statistics::default()),
        ] {
            let error = Conversation::default().hear(message).unwrap_err();
            assert!(
                matches!(error, Violation::OutOfOrder { stage: Stage::Connected, .. }),
                "{error}"
            );
        }
        assert!(running().hear(hello(mayfly_protocol::VERSION)).is_err());
        assert!(running().hear(GuestMessage::Started).is_err());
    }

    #[test]
    fn the_end_of_the_job_comes_after_the_ends_of_its_streams() {
        let error = running().hear(GuestMessage::Exited(JobStatus::Code(0))).unwrap_err();
        assert!(matches!(error, Violation::Unended(_)), "{error}");
    }

    #[test]
    fn a_stream_is_bounded_and_ends_once() {
        let mut conversation = running();
        let chunks = WINDOW as usize / MAX_CHUNK;
        for _ in 0..chunks {
            conversation.hear(output(OutputStream::Stdout, MAX_CHUNK)).unwrap();
        }
        let error = conversation.hear(output(OutputStream::Stdout, 1)).unwrap_err();
        assert!(matches!(error, Violation::Flow { .. }), "{error}");
        conversation.hear(end(OutputStream::Stdout)).unwrap();
        for message in [end(OutputStream::Stdout), output(OutputStream::Stdout, 1)] {
            let error = conversation.hear(message).unwrap_err();
            assert!(matches!(error, Violation::NotOpen { .. }), "{error}");
        }
        assert!(running().hear(output(OutputStream::CopyOut(1), 1)).is_err());
        assert!(running().hear(output(OutputStream::Stdout, 0)).is_err());
        assert!(running().hear(output(OutputStream::Stdout, MAX_CHUNK + 1)).is_err());
    }

    #[test]
    fn what_a_guest_writes_can_be_shown() {
        let message = GuestMessage::Failed { step: "\x1b[2J".repeat(1000), error: "a\nb".into() };
        let Heard::Failed { step, error } = running().hear(message).unwrap() else {
            panic!("not a failure")
        };
        assert_eq!((step.len(), step.contains('\x1b'), error.as_str()), (TEXT, false, "ab"));
    }

    proptest! {
        /// Whatever comes in whatever order, the conversation answers or refuses, and never holds
        /// more than the windows allow.
        #[test]
        fn any_order_is_answered_or_refused(choices in prop::collection::vec(0_u8..10, 0..60)) {
            let mut conversation = running();
            let mut held = 0;
            for choice in choices {
                let message = match choice {
                    0 => hello(mayfly_protocol::VERSION),
                    1 => GuestMessage::Prepared,
                    2 => GuestMessage::Started,
                    3..=6 => output(OutputStream::Stderr, MAX_CHUNK),
                    7 => end(OutputStream::Stderr),
                    8 => GuestMessage::Credit { stream: InputStream::Stdin, bytes: 1 },
                    _ => GuestMessage::Exited(JobStatus::Code(0)),
                };
                match conversation.hear(message) {
                    Ok(Heard::Output(_, bytes)) => held += bytes.len(),
                    Ok(_) => {}
                    Err(_) => break,
                }
            }
            prop_assert!(held <= WINDOW as usize);
        }
    }
}

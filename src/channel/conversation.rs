//! The channel's protocol as a state machine without I/O: which messages a guest may send, when,
//! and how many bytes.

use std::collections::BTreeMap;
use std::fmt;

use mayfly_common::text::without_deceptive;
use mayfly_protocol::flow::{FlowError, MAX_CHUNK, ReceiveWindow};
use mayfly_protocol::frame::FrameError;
use mayfly_protocol::message::{
    GuestHello, GuestMessage, HostMessage, InputStream, Job, JobExit, MAX_PROGRAM_PATH,
    MAX_PROGRAMS, OutputStream, Program, StartFailure, Statistics,
};

/// Maximum length, in characters, of a text from the guest.
const MAX_TEXT: usize = 512;

/// The stage of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConversationStage {
    /// Connected; waiting for `Hello`.
    Connected,
    /// `Hello` arrived; `Prepare` may be sent.
    Greeted,
    /// `Prepare` was sent; waiting for `Prepared`.
    Preparing,
    /// Ready for a job.
    Prepared,
    /// The job was sent; waiting for `Started` or a failure to start.
    Starting,
    /// The job runs.
    Running,
    /// The job has ended.
    Over,
}

impl fmt::Display for ConversationStage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Connected => "before its hello",
            Self::Greeted => "before it was told to prepare",
            Self::Preparing => "while it prepared",
            Self::Prepared => "before it had a job",
            Self::Starting => "while its job started",
            Self::Running => "while its job ran",
            Self::Over => "after its job",
        })
    }
}

/// A violation of the protocol by the guest. It is recorded and the microVM ends.
#[derive(Debug, thiserror::Error)]
pub enum Violation {
    /// An invalid frame.
    #[error("the guest sent an invalid frame")]
    Frame(#[source] FrameError),
    /// The agent has another protocol version.
    #[error("the guest's agent has protocol version {theirs}, this program {ours}")]
    Version {
        /// The guest's version.
        theirs: u16,
        /// This program's version.
        ours: u16,
    },
    /// A message that is not allowed at this stage.
    #[error("the guest sent {message} {stage}")]
    OutOfOrder {
        /// Name of the message.
        message: &'static str,
        /// Stage of the conversation.
        stage: ConversationStage,
    },
    /// A message for a stream that was never opened or has ended.
    #[error("the guest sent {message} for {stream}, which is not open")]
    NotOpen {
        /// Name of the message.
        message: &'static str,
        /// Name of the stream.
        stream: String,
    },
    /// A window was exceeded.
    #[error("the guest violated the flow control of {stream}")]
    Flow {
        /// Name of the stream.
        stream: String,
        /// The flow control error.
        #[source]
        error: FlowError,
    },
    /// An empty or oversized chunk.
    #[error("the guest sent a chunk of {0} bytes")]
    Chunk(usize),
    /// The job's end was reported before the end of all of its streams.
    #[error("the guest reported the job's end before the end of {0}")]
    StreamsOpen(String),
    /// Too many programs or too long a path in one message.
    #[error("the guest reported {programs} programs at once, with a path of {path} bytes")]
    Programs {
        /// Programs in the message.
        programs: usize,
        /// Length of the longest path in bytes.
        path: usize,
    },
    /// The guest does not read what it is sent.
    #[error("the guest does not read its channel")]
    NotReading,
}

/// A message from the guest that conforms to the protocol.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// The agent is running.
    Hello(GuestHello),
    /// The machine is ready for a job.
    Prepared,
    /// The job runs.
    Started,
    /// Bytes of an open output stream, within its window.
    Output(OutputStream, Vec<u8>),
    /// An output stream ended. With an error if it ended early.
    OutputEnd(OutputStream, Option<String>),
    /// Credit for an input stream. The stream's pump checks the amount.
    Credit(InputStream, u32),
    /// A heartbeat with statistics.
    Heartbeat(Statistics),
    /// The job has ended, and so have all output streams.
    Exited(JobExit),
    /// The agent failed.
    Failed {
        /// What the agent was doing.
        step: String,
        /// Why it failed.
        error: String,
    },
    /// Programs that the job executed, and the number of those left out.
    Programs(Vec<Program>, u32),
}

/// The state of one conversation.
#[derive(Debug)]
pub struct Conversation {
    stage: ConversationStage,
    outputs: BTreeMap<OutputStream, ReceiveWindow>,
    inputs: Vec<InputStream>,
}

impl Default for Conversation {
    fn default() -> Self {
        Self { stage: ConversationStage::Connected, outputs: BTreeMap::new(), inputs: Vec::new() }
    }
}

impl Conversation {
    /// Records a message that is about to be sent to the guest.
    pub fn record_sent(&mut self, message: &HostMessage) {
        match message {
            HostMessage::Prepare(_) => self.stage = ConversationStage::Preparing,
            HostMessage::Start(job) => {
                self.stage = ConversationStage::Starting;
                self.outputs =
                    outputs(job).map(|stream| (stream, ReceiveWindow::default())).collect();
                self.inputs = inputs(job).collect();
            }
            _ => {}
        }
    }

    /// Checks a message from the guest.
    pub fn receive(&mut self, message: GuestMessage) -> Result<Received, Violation> {
        use ConversationStage::{Connected, Greeted, Over, Prepared, Preparing, Running, Starting};
        let name = name(&message);
        match (self.stage, message) {
            (Connected, GuestMessage::Hello(hello)) => self.accept_hello(&hello),
            (Preparing, GuestMessage::Prepared) => {
                self.stage = Prepared;
                Ok(Received::Prepared)
            }
            (Starting, GuestMessage::Started) => {
                self.stage = Running;
                Ok(Received::Started)
            }
            (Running, GuestMessage::Output { stream, bytes }) => {
                self.output(stream, bytes.into_vec())
            }
            (Starting | Running, GuestMessage::OutputEnd { stream, error }) => {
                match self.outputs.remove(&stream) {
                    Some(_) => Ok(Received::OutputEnd(stream, error.as_deref().map(sanitize))),
                    None => Err(Violation::NotOpen { message: name, stream: stream.to_string() }),
                }
            }
            (Starting | Running, GuestMessage::Credit { stream, bytes }) => {
                if self.inputs.contains(&stream) {
                    Ok(Received::Credit(stream, bytes))
                } else {
                    Err(Violation::NotOpen { message: name, stream: stream.to_string() })
                }
            }
            (Starting, GuestMessage::Exited(JobExit::NotStarted(why))) => {
                self.stage = Over;
                Ok(Received::Exited(JobExit::NotStarted(sanitize_reason(why))))
            }
            (Running, GuestMessage::Exited(status)) => self.exit(&status),
            (
                Preparing | Prepared | Starting | Running | Over,
                GuestMessage::Heartbeat(statistics),
            ) => Ok(Received::Heartbeat(statistics)),
            (
                Connected | Greeted | Preparing | Prepared | Starting | Running,
                GuestMessage::Failed { step, error },
            ) => Ok(Received::Failed { step: sanitize(&step), error: sanitize(&error) }),
            (Starting | Running, GuestMessage::Programs { programs, left_out }) => {
                check_programs(&programs)?;
                Ok(Received::Programs(programs, left_out))
            }
            (stage, _) => Err(Violation::OutOfOrder { message: name, stage }),
        }
    }

    /// Records that `bytes` of an output stream were delivered. Returns the credit to send, unless
    /// the stream has ended.
    pub fn credit_output(&mut self, stream: OutputStream, bytes: usize) -> Option<HostMessage> {
        let credit = self.outputs.get_mut(&stream)?.pass_on(bytes)?;
        Some(HostMessage::Credit { stream, bytes: credit })
    }

    fn accept_hello(&mut self, hello: &GuestHello) -> Result<Received, Violation> {
        let (theirs, ours) = (hello.protocol, mayfly_protocol::VERSION);
        if theirs != ours {
            return Err(Violation::Version { theirs, ours });
        }
        self.stage = ConversationStage::Greeted;
        let (agent, kernel) = (sanitize(&hello.agent), sanitize(&hello.kernel));
        Ok(Received::Hello(GuestHello { protocol: theirs, agent, kernel }))
    }

    fn output(&mut self, stream: OutputStream, bytes: Vec<u8>) -> Result<Received, Violation> {
        let name = || stream.to_string();
        let Some(window) = self.outputs.get_mut(&stream) else {
            return Err(Violation::NotOpen { message: "Output", stream: name() });
        };
        if bytes.is_empty() || bytes.len() > MAX_CHUNK {
            return Err(Violation::Chunk(bytes.len()));
        }
        window.receive(bytes.len()).map_err(|error| Violation::Flow { stream: name(), error })?;
        Ok(Received::Output(stream, bytes))
    }

    fn exit(&mut self, status: &JobExit) -> Result<Received, Violation> {
        match (self.outputs.keys().next(), status) {
            (_, JobExit::NotStarted(_)) => {
                Err(Violation::OutOfOrder { message: "NotStarted", stage: self.stage })
            }
            (Some(stream), _) => Err(Violation::StreamsOpen(stream.to_string())),
            (None, status) => {
                self.stage = ConversationStage::Over;
                Ok(Received::Exited(status.clone()))
            }
        }
    }
}

fn check_programs(programs: &[Program]) -> Result<(), Violation> {
    let path = programs.iter().map(|program| program.path.len()).max().unwrap_or_default();
    if programs.len() > MAX_PROGRAMS || path > MAX_PROGRAM_PATH {
        return Err(Violation::Programs { programs: programs.len(), path });
    }
    Ok(())
}

/// Returns the output streams of a job.
pub fn outputs(job: &Job) -> impl Iterator<Item = OutputStream> {
    let copies = (0..).zip(&job.copy_out).map(|(index, _)| OutputStream::CopyOut(index));
    [OutputStream::Stdout, OutputStream::Stderr].into_iter().chain(copies)
}

/// Returns the input streams of a job.
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
        GuestMessage::Programs { .. } => "Programs",
    }
}

/// Shortens a text and removes control characters, so that it is safe to display.
fn sanitize(text: &str) -> String {
    without_deceptive(text, MAX_TEXT)
}

fn sanitize_reason(why: StartFailure) -> StartFailure {
    match why {
        StartFailure::CommandNotFound => StartFailure::CommandNotFound,
        StartFailure::CommandNotExecutable(text) => {
            StartFailure::CommandNotExecutable(sanitize(&text))
        }
        StartFailure::UserNotFound(text) => StartFailure::UserNotFound(sanitize(&text)),
        StartFailure::DirectoryNotEntered(text) => {
            StartFailure::DirectoryNotEntered(sanitize(&text))
        }
        StartFailure::CopyInFailed(index, text) => {
            StartFailure::CopyInFailed(index, sanitize(&text))
        }
        StartFailure::Other(text) => StartFailure::Other(sanitize(&text)),
    }
}

#[cfg(test)]
mod tests;

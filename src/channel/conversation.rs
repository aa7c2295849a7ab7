//! What a guest may say, when, and how much: a state machine without I/O.

use std::collections::BTreeMap;
use std::fmt;

use mayfly_protocol::flow::{FlowError, MAX_CHUNK, ReceiveWindow};
use mayfly_protocol::frame::FrameError;
use mayfly_protocol::message::{
    GuestMessage, Hello, HostMessage, InputStream, Job, JobStatus, MAX_PROGRAM_PATH, MAX_PROGRAMS,
    NotStarted, OutputStream, Program, Statistics,
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

impl fmt::Display for Stage {
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

/// What people call a stream from the guest.
fn output_name(stream: OutputStream) -> String {
    match stream {
        OutputStream::Stdout => "stdout".to_owned(),
        OutputStream::Stderr => "stderr".to_owned(),
        OutputStream::CopyOut(index) => format!("copied tree {index}"),
    }
}

/// What people call a stream to the guest.
pub fn input_name(stream: InputStream) -> String {
    match stream {
        InputStream::Stdin => "stdin".to_owned(),
        InputStream::CopyIn(index) => format!("tree {index} to copy"),
    }
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
    #[error("the guest sent {message} {stage}")]
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
    /// More programs, or a longer path of one, than a message may tell of.
    #[error("the guest told of {programs} programs at once, with a path of {path} bytes")]
    Programs {
        /// Programs in the message.
        programs: usize,
        /// The longest of their paths.
        path: usize,
    },
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
    /// The job has executed programs, and more that are not told.
    Programs(Vec<Program>, u32),
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
                    None => Err(Violation::NotOpen { message: name, stream: output_name(stream) }),
                }
            }
            (Starting | Running, GuestMessage::Credit { stream, bytes }) => {
                if self.inputs.contains(&stream) {
                    Ok(Heard::Credit(stream, bytes))
                } else {
                    Err(Violation::NotOpen { message: name, stream: input_name(stream) })
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
            (Starting | Running, GuestMessage::Programs { programs, left_out }) => {
                check_programs(&programs)?;
                Ok(Heard::Programs(programs, left_out))
            }
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
        let name = || output_name(stream);
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
            (Some(stream), _) => Err(Violation::Unended(output_name(*stream))),
            (None, status) => {
                self.stage = Stage::Over;
                Ok(Heard::Exited(status.clone()))
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
        GuestMessage::Programs { .. } => "Programs",
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
mod tests;

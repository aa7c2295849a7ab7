//! The protocol between a front end and its shepherd: lines of JSON, versioned by a hello.
//!
//! The two processes may have different versions: an upgraded daemon attaches to older shepherds,
//! and an older daemon starts a program that was replaced. So each message names its kind, unknown
//! fields and kinds are skipped, and both sides check the other's [`WireHello`] first.
//! `docs/reference/shepherd-protocol.md` is the contract.

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};

use super::event::Event;
use super::plan::ShepherdCommand;
use mayfly_common::text::without_deceptive;

/// Protocol version of this program. Raised by a change that an older peer can't skip.
pub(super) const VERSION: u32 = 1;
/// The oldest protocol version that this program understands.
pub(super) const MIN_VERSION: u32 = 1;

/// Maximum length of a line in bytes, including the newline. A job's message to the guest has at
/// most 1 MiB (`mayfly_protocol::frame::MAX_FRAME`); JSON needs up to four characters per byte.
pub(super) const MAX_LINE: usize = 8 << 20;

/// An error of reading or writing a message.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The connection failed.
    #[error("the connection failed")]
    Io(#[from] std::io::Error),
    /// The line or message is longer than [`MAX_LINE`].
    #[error("message longer than {MAX_LINE} bytes")]
    TooLong,
    /// The line is not a valid message.
    #[error("malformed message")]
    Malformed(#[source] serde_json::Error),
    /// The message can't be written as JSON (a path that is not UTF-8).
    #[error("can't encode the message as JSON")]
    Unserializable(#[source] serde_json::Error),
}

/// The first message in each direction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WireHello {
    /// Protocol version of the sender.
    pub version: u32,
    /// The oldest version that the sender understands.
    pub min_version: u32,
    /// Version of the sender's program, for people.
    #[serde(default)]
    pub program: String,
    /// From a shepherd: the number of the last command that it received, or 0.
    #[serde(default)]
    pub acknowledged: u64,
}

/// The two sides have no protocol version in common.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "protocol versions do not match: the peer (program version {program}) supports {min} to \
     {theirs}, this program supports {MIN_VERSION} to {VERSION}"
)]
pub struct VersionError {
    /// Version of the peer's program.
    pub program: String,
    /// Protocol version of the peer.
    pub theirs: u32,
    /// The oldest protocol version that the peer understands.
    pub min: u32,
}

impl WireHello {
    /// Returns the hello of this program.
    pub(super) fn ours(acknowledged: u64) -> Self {
        Self {
            version: VERSION,
            min_version: MIN_VERSION,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            acknowledged,
        }
    }

    /// Checks that the two sides have a version in common.
    pub(super) fn check(&self) -> Result<(), VersionError> {
        if self.version >= MIN_VERSION && self.min_version <= VERSION {
            return Ok(());
        }
        let program = without_deceptive(&self.program, 64);
        Err(VersionError { program, theirs: self.version, min: self.min_version })
    }
}

/// A shepherd's response to a command: it received this command and all with smaller numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledgement {
    /// Number of the command.
    pub number: u64,
    /// Why the command will not be carried out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// A message to a shepherd.
#[derive(Debug)]
pub(super) enum ShepherdRequest {
    /// The first message.
    Hello(WireHello),
    /// A command with its number. Numbers increase; a number that is not above the last received
    /// one is a repetition.
    Command(u64, Box<ShepherdCommand>),
    /// A command of an unknown kind, or with fields that this version can't read.
    UnknownCommand(u64),
    /// A message of an unknown kind.
    Unknown,
}

/// A message from a shepherd.
#[derive(Debug)]
pub(super) enum ShepherdReport {
    /// The first message.
    Hello(WireHello),
    /// A command was received.
    Acknowledged(Acknowledgement),
    /// The next event. Every connection gets all events from the first on.
    Event(Box<Event>),
    /// A message of an unknown kind.
    Unknown,
}

/// A message, as it is serialized.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Message<'a> {
    Hello(&'a WireHello),
    #[serde(rename = "order")]
    Command {
        number: u64,
        #[serde(rename = "order")]
        command: &'a ShepherdCommand,
    },
    Acknowledged(&'a Acknowledgement),
    Event(&'a Event),
}

/// Encodes a message as a line, including the newline.
pub(super) fn encode(message: &Message<'_>) -> Result<Vec<u8>, WireError> {
    let mut line = serde_json::to_vec(message).map_err(WireError::Unserializable)?;
    line.push(b'\n');
    if line.len() > MAX_LINE { Err(WireError::TooLong) } else { Ok(line) }
}

/// Parses a line that was sent to a shepherd.
pub(super) fn parse_request(line: &[u8]) -> Result<ShepherdRequest, WireError> {
    #[derive(Deserialize)]
    struct Numbered {
        number: u64,
        order: Box<ShepherdCommand>,
    }
    #[derive(Deserialize)]
    struct Line {
        hello: Option<WireHello>,
        order: Option<Numbered>,
    }
    // A command that can't be parsed still has a number.
    #[derive(Deserialize)]
    struct OnlyNumber {
        number: u64,
    }
    #[derive(Deserialize)]
    struct NumberedUnknown {
        order: OnlyNumber,
    }
    Ok(match serde_json::from_slice::<Line>(line) {
        Ok(Line { hello: Some(hello), .. }) => ShepherdRequest::Hello(hello),
        Ok(Line { order: Some(order), .. }) => ShepherdRequest::Command(order.number, order.order),
        Ok(Line { .. }) => ShepherdRequest::Unknown,
        Err(error) => match serde_json::from_slice::<NumberedUnknown>(line) {
            Ok(unknown) => ShepherdRequest::UnknownCommand(unknown.order.number),
            Err(_) => is_object(line, error).map(|()| ShepherdRequest::Unknown)?,
        },
    })
}

/// Parses a line that was sent by a shepherd.
pub(super) fn parse_report(line: &[u8]) -> Result<ShepherdReport, WireError> {
    #[derive(Deserialize)]
    struct Line {
        hello: Option<WireHello>,
        acknowledged: Option<Acknowledgement>,
        event: Option<Box<Event>>,
    }
    Ok(match serde_json::from_slice::<Line>(line) {
        Ok(Line { hello: Some(hello), .. }) => ShepherdReport::Hello(hello),
        Ok(Line { acknowledged: Some(acknowledged), .. }) => {
            ShepherdReport::Acknowledged(acknowledged)
        }
        Ok(Line { event: Some(event), .. }) => ShepherdReport::Event(event),
        Ok(Line { .. }) => ShepherdReport::Unknown,
        Err(error) => is_object(line, error).map(|()| ShepherdReport::Unknown)?,
    })
}

/// Accepts an unknown line if it is a JSON object. Anything else ends the connection.
fn is_object(line: &[u8], error: serde_json::Error) -> Result<(), WireError> {
    #[derive(Deserialize)]
    struct Object {}
    match serde_json::from_slice::<Object>(line) {
        Ok(Object {}) => Ok(()),
        Err(_) => Err(WireError::Malformed(error)),
    }
}

/// Reads the lines of a connection, each up to [`MAX_LINE`].
pub(super) struct Lines<R> {
    from: BufReader<R>,
    line: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from: BufReader::new(from), line: Vec::new() }
    }

    /// Reads the next line; `None` at the end of the connection. Not cancel-safe: a partial line is
    /// lost.
    pub(super) async fn next_line(&mut self) -> Result<Option<&[u8]>, WireError> {
        self.line.clear();
        let limit = MAX_LINE as u64;
        (&mut self.from).take(limit).read_until(b'\n', &mut self.line).await?;
        match self.line.split_last() {
            None => Ok(None),
            Some((b'\n', line)) => Ok(Some(line)),
            Some(_) if self.line.len() >= MAX_LINE => Err(WireError::TooLong),
            Some(_) => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
        }
    }

    pub(super) async fn next_request(&mut self) -> Result<Option<ShepherdRequest>, WireError> {
        self.next_line().await?.map(parse_request).transpose()
    }

    pub(super) async fn next_report(&mut self) -> Result<Option<ShepherdReport>, WireError> {
        self.next_line().await?.map(parse_report).transpose()
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;

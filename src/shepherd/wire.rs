//! The wire between a front end and its shepherd: lines of JSON, versioned by a hello.
//!
//! The two processes may be of different versions: a daemon that was upgraded attaches to
//! shepherds that were not, and an older daemon starts a program that was replaced. So a message
//! says what it is, fields and kinds that are not known are skipped, and both sides check the
//! other's [`Hello`] before anything else. `docs/reference/shepherd-protocol.md` is the contract.

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};

use super::event::Event;
use super::plan::Order;

/// The version of the protocol that this program speaks. A change that an older peer can't skip
/// raises it.
pub const VERSION: u32 = 1;
/// The oldest version that this program still understands.
pub const MIN_VERSION: u32 = 1;

/// The longest line, in bytes, with its end. A job's message to the guest has at most 1 MiB
/// (`mayfly_protocol::frame::MAX_FRAME`); its bytes are numbers here, of four characters at most.
pub const MAX_LINE: usize = 8 << 20;

/// Why a line could not become a message, or a message could not become a line.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The connection failed.
    #[error("the connection broke off")]
    Io(#[from] std::io::Error),
    /// The line, or the message to be sent, is longer than [`MAX_LINE`].
    #[error("a message of more than {MAX_LINE} bytes")]
    TooLong,
    /// The line is no message.
    #[error("a line that is no message")]
    Malformed(#[source] serde_json::Error),
    /// The message can't be written as JSON (a path that is not UTF-8).
    #[error("a message that can't be written as JSON")]
    Unwritable(#[source] serde_json::Error),
}

/// The first message in each direction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The version of the protocol that the sender speaks.
    pub version: u32,
    /// The oldest version that the sender understands.
    pub min_version: u32,
    /// The version of the sender's program, for people.
    #[serde(default)]
    pub program: String,
    /// From a shepherd: the number of the last order that it received; 0 before the first.
    #[serde(default)]
    pub acknowledged: u64,
}

/// The two sides have no version in common.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the other side ({program}) speaks version {theirs} of the protocol and understands {min} and \
     later, this program speaks {VERSION} and understands {MIN_VERSION} and later"
)]
pub struct VersionError {
    /// The version of the other side's program.
    pub program: String,
    /// The version that it speaks.
    pub theirs: u32,
    /// The oldest version that it understands.
    pub min: u32,
}

impl Hello {
    /// This program's.
    pub fn ours(acknowledged: u64) -> Self {
        Self {
            version: VERSION,
            min_version: MIN_VERSION,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            acknowledged,
        }
    }

    /// Whether the two sides understand each other.
    pub fn check(&self) -> Result<(), VersionError> {
        if self.version >= MIN_VERSION && self.min_version <= VERSION {
            return Ok(());
        }
        let program = self.program.chars().filter(|each| !each.is_control()).take(64).collect();
        Err(VersionError { program, theirs: self.version, min: self.min_version })
    }
}

/// What a shepherd answers to an order: it was received, as were all with a smaller number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledgement {
    /// The order's number.
    pub number: u64,
    /// Why it will not be carried out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// A message to a shepherd.
#[derive(Debug)]
pub enum Request {
    /// The first.
    Hello(Hello),
    /// An order with its number. Numbers rise; one that is not above the last received is a
    /// repetition.
    Order(u64, Box<Order>),
    /// An order of a kind that this version does not know, or whose fields it can't read.
    UnknownOrder(u64),
    /// A message of a kind that this version does not know.
    Unknown,
}

/// A message from a shepherd.
#[derive(Debug)]
pub enum Report {
    /// The first.
    Hello(Hello),
    /// An order was received.
    Acknowledged(Acknowledgement),
    /// The next event. Every connection is told all of them, from the first on.
    Event(Box<Event>),
    /// A message of a kind that this version does not know.
    Unknown,
}

/// A message, as it is written.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Message<'a> {
    Hello(&'a Hello),
    Order { number: u64, order: &'a Order },
    Acknowledged(&'a Acknowledgement),
    Event(&'a Event),
}

/// The line, its end included, that carries a message.
pub(super) fn encode(message: &Message<'_>) -> Result<Vec<u8>, WireError> {
    let mut line = serde_json::to_vec(message).map_err(WireError::Unwritable)?;
    line.push(b'\n');
    if line.len() > MAX_LINE { Err(WireError::TooLong) } else { Ok(line) }
}

/// The message to a shepherd that a line is.
pub fn request(line: &[u8]) -> Result<Request, WireError> {
    #[derive(Deserialize)]
    struct Numbered {
        number: u64,
        order: Box<Order>,
    }
    #[derive(Deserialize)]
    struct Line {
        hello: Option<Hello>,
        order: Option<Numbered>,
    }
    // An order that can't be read still has a number.
    #[derive(Deserialize)]
    struct OnlyNumber {
        number: u64,
    }
    #[derive(Deserialize)]
    struct Unreadable {
        order: OnlyNumber,
    }
    Ok(match serde_json::from_slice::<Line>(line) {
        Ok(Line { hello: Some(hello), .. }) => Request::Hello(hello),
        Ok(Line { order: Some(order), .. }) => Request::Order(order.number, order.order),
        Ok(Line { .. }) => Request::Unknown,
        Err(error) => match serde_json::from_slice::<Unreadable>(line) {
            Ok(unreadable) => Request::UnknownOrder(unreadable.order.number),
            Err(_) => is_object(line, error).map(|()| Request::Unknown)?,
        },
    })
}

/// The message from a shepherd that a line is.
pub fn report(line: &[u8]) -> Result<Report, WireError> {
    #[derive(Deserialize)]
    struct Line {
        hello: Option<Hello>,
        acknowledged: Option<Acknowledgement>,
        event: Option<Box<Event>>,
    }
    Ok(match serde_json::from_slice::<Line>(line) {
        Ok(Line { hello: Some(hello), .. }) => Report::Hello(hello),
        Ok(Line { acknowledged: Some(answer), .. }) => Report::Acknowledged(answer),
        Ok(Line { event: Some(event), .. }) => Report::Event(event),
        Ok(Line { .. }) => Report::Unknown,
        Err(error) => is_object(line, error).map(|()| Report::Unknown)?,
    })
}

/// A line of an unknown shape is skipped if it is JSON's, and the connection's end if it is not.
fn is_object(line: &[u8], error: serde_json::Error) -> Result<(), WireError> {
    #[derive(Deserialize)]
    struct Object {}
    match serde_json::from_slice::<Object>(line) {
        Ok(Object {}) => Ok(()),
        Err(_) => Err(WireError::Malformed(error)),
    }
}

/// The lines of a connection, each bounded.
pub(super) struct Lines<R> {
    from: BufReader<R>,
    line: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from: BufReader::new(from), line: Vec::new() }
    }

    /// The next line; none where the connection ended between two. What was read is lost where the
    /// wait is given up.
    pub(super) async fn next(&mut self) -> Result<Option<&[u8]>, WireError> {
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

    pub(super) async fn request(&mut self) -> Result<Option<Request>, WireError> {
        self.next().await?.map(request).transpose()
    }

    pub(super) async fn report(&mut self) -> Result<Option<Report>, WireError> {
        self.next().await?.map(report).transpose()
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;

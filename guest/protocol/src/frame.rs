//! Frames: a four-byte big-endian length, then that many bytes of one postcard-encoded message.
//!
//! Decoding is strict: a length of zero or above [`MAX_FRAME`], trailing bytes after the message,
//! and a truncated message are errors.

use std::io::{Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest message, in bytes, without the length header.
pub const MAX_FRAME: usize = 1 << 20;

/// The size of the length header, in bytes.
pub const HEADER: usize = 4;

/// A message could not be encoded or decoded.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The header announces a length of zero.
    #[error("empty frame")]
    Empty,
    /// The announced length or the encoded message is above [`MAX_FRAME`].
    #[error("frame of {0} bytes exceeds the limit of {MAX_FRAME}")]
    TooLong(usize),
    /// The bytes are not a message.
    #[error("malformed message")]
    Malformed(#[source] postcard::Error),
    /// Bytes follow the message in the same frame.
    #[error("{0} trailing bytes after the message")]
    Trailing(usize),
    /// Reading or writing the connection failed.
    #[error("the channel failed")]
    Io(#[from] std::io::Error),
}

/// Returns the length that a header announces, if it is within the limits.
pub fn parse_header(header: [u8; HEADER]) -> Result<usize, FrameError> {
    match u32::from_be_bytes(header) as usize {
        0 => Err(FrameError::Empty),
        length if length > MAX_FRAME => Err(FrameError::TooLong(length)),
        length => Ok(length),
    }
}

/// Encodes `message` as a frame, including its header.
pub fn encode<M: Serialize>(message: &M) -> Result<Vec<u8>, FrameError> {
    let mut frame = postcard::to_extend(message, vec![0; HEADER]).map_err(FrameError::Malformed)?;
    let length = frame.len() - HEADER;
    if length > MAX_FRAME {
        return Err(FrameError::TooLong(length));
    }
    // `MAX_FRAME` fits into 32 bits.
    #[allow(clippy::cast_possible_truncation)]
    frame[..HEADER].copy_from_slice(&(length as u32).to_be_bytes());
    Ok(frame)
}

/// Decodes the message after a header.
pub fn decode<M: DeserializeOwned>(body: &[u8]) -> Result<M, FrameError> {
    let (message, rest) = postcard::take_from_bytes(body).map_err(FrameError::Malformed)?;
    if rest.is_empty() { Ok(message) } else { Err(FrameError::Trailing(rest.len())) }
}

/// Writes one message. Blocks until the transport has accepted all of it.
pub fn write<M: Serialize>(mut to: impl Write, message: &M) -> Result<(), FrameError> {
    to.write_all(&encode(message)?)?;
    to.flush()?;
    Ok(())
}

/// Reads one message. Blocks. Returns `None` if the connection ended between two frames.
pub fn read<M: DeserializeOwned>(mut from: impl Read) -> Result<Option<M>, FrameError> {
    let mut header = [0; HEADER];
    let mut filled = 0;
    while filled < HEADER {
        match from.read(&mut header[filled..]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut body = vec![0; parse_header(header)?];
    from.read_exact(&mut body)?;
    decode(&body).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{GuestMessage, HostMessage, OutputStream};
    use proptest::prelude::*;

    #[test]
    fn a_message_survives_a_round_trip() {
        let sent =
            GuestMessage::Output { stream: OutputStream::Stderr, bytes: vec![0, 255].into() };
        let frame = encode(&sent).unwrap();
        let received: GuestMessage = read(frame.as_slice()).unwrap().unwrap();
        assert_eq!(received, sent);
    }

    #[test]
    fn an_end_between_frames_is_valid_and_within_one_is_an_error() {
        assert!(read::<GuestMessage>([].as_slice()).unwrap().is_none());
        let frame = encode(&GuestMessage::Prepared).unwrap();
        for cut in 1..frame.len() {
            let error = read::<GuestMessage>(&frame[..cut]).unwrap_err();
            assert!(matches!(error, FrameError::Io(_)), "cut at {cut}: {error}");
        }
    }

    #[test]
    fn invalid_lengths_are_rejected_before_anything_is_allocated() {
        assert!(matches!(parse_header([0; 4]), Err(FrameError::Empty)));
        assert!(matches!(parse_header([0xff; 4]), Err(FrameError::TooLong(0xffff_ffff))));
        assert_eq!(parse_header([0, 0x10, 0, 0]).unwrap(), MAX_FRAME);
        assert!(parse_header([0, 0x10, 0, 1]).is_err());
    }

    #[test]
    fn trailing_bytes_are_rejected() {
        let mut frame = encode(&HostMessage::Shutdown).unwrap();
        frame.push(0);
        let error = decode::<HostMessage>(&frame[HEADER..]).unwrap_err();
        assert!(matches!(error, FrameError::Trailing(1)));
    }

    #[test]
    fn a_message_above_the_limit_is_not_sent() {
        let bytes = vec![0; MAX_FRAME].into();
        let error = encode(&GuestMessage::Output { stream: OutputStream::Stdout, bytes });
        assert!(matches!(error, Err(FrameError::TooLong(_))));
    }

    proptest! {
        /// Any bytes from a guest decode to a message or an error, never a panic.
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            if let Ok(message) = decode::<GuestMessage>(&bytes) {
                // A decoded message can be encoded again.
                prop_assert!(encode(&message).is_ok());
            }
        }
    }
}

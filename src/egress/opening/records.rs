//! Unencrypted TLS records (RFC 8446, section 5.1), and the end of a `ClientHello` in them.

/// Content types of records.
pub(super) const CHANGE_CIPHER_SPEC: u8 = 20;
pub(super) const ALERT: u8 = 21;
pub(super) const HANDSHAKE: u8 = 22;
pub(super) const APPLICATION_DATA: u8 = 23;
pub(super) const HEARTBEAT: u8 = 24;

/// The first byte of the version in each record, after the content type.
pub(super) const MAJOR_VERSION: u8 = 3;

/// Length of a record's header, and of a handshake message's: its type and length.
const HEADER: usize = 5;
const MESSAGE_HEADER: usize = 4;

/// Maximum payload of a record (RFC 8446, section 5.2).
const MAX_PAYLOAD: usize = (1 << 14) + 256;

/// Why bytes are not valid records, or the hello is not alone in them.
pub(super) type RecordViolation = &'static str;

/// A complete record.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) kind: u8,
    pub(super) payload: &'a [u8],
    /// The record with its header.
    pub(super) whole: &'a [u8],
}

/// Splits off the first record of `bytes`. Returns `None` if it is incomplete.
pub(super) fn split(bytes: &[u8]) -> Result<Option<(Record<'_>, &[u8])>, RecordViolation> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
    if length > MAX_PAYLOAD {
        return Err("a record is too long");
    }
    let Some((payload, rest)) = rest.split_at_checked(length) else { return Ok(None) };
    let whole = &bytes[..HEADER + length];
    Ok(Some((Record { kind: header[0], payload, whole }, rest)))
}

/// Returns the length of the records of the first handshake message. The message must end with its
/// record: anything after it in the same record would be forwarded unread.
pub(super) fn end_of_message(mut bytes: &[u8]) -> Result<usize, RecordViolation> {
    let whole = bytes.len();
    let mut header = Vec::with_capacity(MESSAGE_HEADER);
    let mut seen = 0;
    while let Some((record, rest)) = split(bytes)? {
        if record.kind != HANDSHAKE {
            return Err("another record type within the message");
        }
        let missing = MESSAGE_HEADER - header.len();
        header.extend(record.payload.iter().take(missing));
        seen += record.payload.len();
        bytes = rest;
        if let [_, high, middle, low] = header[..] {
            let length = u32::from_be_bytes([0, high, middle, low]) as usize + MESSAGE_HEADER;
            match seen.cmp(&length) {
                std::cmp::Ordering::Less => {}
                std::cmp::Ordering::Equal => return Ok(whole - rest.len()),
                std::cmp::Ordering::Greater => {
                    return Err("other bytes follow it in its TLS record");
                }
            }
        }
    }
    Err("its records are incomplete")
}

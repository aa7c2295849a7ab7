//! TLS records in the clear (RFC 8446, section 5.1), and where a `ClientHello` ends in them.

/// Content types of records.
pub(super) const CHANGE_CIPHER_SPEC: u8 = 20;
pub(super) const ALERT: u8 = 21;
pub(super) const HANDSHAKE: u8 = 22;
pub(super) const APPLICATION_DATA: u8 = 23;

/// Bytes of a record's header, and of a handshake message's: its type and length.
const HEADER: usize = 5;
const MESSAGE_HEADER: usize = 4;

/// The longest payload of a record (RFC 8446, section 5.2).
const MAX_PAYLOAD: usize = (1 << 14) + 256;

/// Why bytes are no records, or no hello alone in them.
pub(super) type Violation = &'static str;

/// A whole record.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) kind: u8,
    pub(super) payload: &'a [u8],
    /// With its header.
    pub(super) whole: &'a [u8],
}

/// Takes a record off the front of `bytes`. `None` where it isn't whole yet.
pub(super) fn split(bytes: &[u8]) -> Result<Option<(Record<'_>, &[u8])>, Violation> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
    if length > MAX_PAYLOAD {
        return Err("a record is too long");
    }
    let Some((payload, rest)) = rest.split_at_checked(length) else { return Ok(None) };
    let whole = &bytes[..HEADER + length];
    Ok(Some((Record { kind: header[0], payload, whole }, rest)))
}

/// How many bytes the records of the first handshake message take. It must end with its record:
/// what stands behind it in the same record would pass with it, unread.
pub(super) fn end_of_message(mut bytes: &[u8]) -> Result<usize, Violation> {
    let whole = bytes.len();
    let mut header = Vec::with_capacity(MESSAGE_HEADER);
    let mut seen = 0;
    while let Some((record, rest)) = split(bytes)? {
        if record.kind != HANDSHAKE {
            return Err("another record comes before its end");
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
                std::cmp::Ordering::Greater => return Err("more comes in its record"),
            }
        }
    }
    Err("its records are not whole")
}

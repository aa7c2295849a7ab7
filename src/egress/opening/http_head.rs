//! Recognises the head of an HTTP/1 request and its Host, without being strict: for connections
//! that are only watched.

use super::Opening;

/// Methods that begin a request; another one makes the bytes something else than HTTP.
const METHODS: [&str; 9] =
    ["GET", "POST", "PUT", "HEAD", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"];

/// The longest head that is looked at; what servers commonly take.
const MAX_HEAD: usize = 8 << 10;

/// What the bytes so far are. `None` where it can't be told yet.
pub(super) fn look(seen: &[u8]) -> Option<Opening> {
    let could_be_a_method = METHODS.iter().any(|method| {
        let begin = [method.as_bytes(), b" "].concat();
        let common = seen.len().min(begin.len());
        seen[..common] == begin[..common]
    });
    if !could_be_a_method {
        return Some(Opening::Other);
    }
    let head = &seen[..seen.len().min(MAX_HEAD)];
    let Some(end) = head.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
        return (seen.len() > MAX_HEAD).then_some(Opening::Other);
    };
    let head = String::from_utf8_lossy(&seen[..end]);
    let host = head.lines().skip(1).find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("host").then(|| value.trim().to_owned())
    });
    Some(Opening::Http(host))
}

//! Reads the server name out of a `ClientHello`, by rustls: a strict parser that refuses what
//! could be read in two ways (two names, two of one extension, bytes left over), however the
//! message is cut into records and segments.

use rustls::server::Acceptor;

use super::Opening;

/// A `ClientHello` that is coming in.
pub(super) struct ClientHello(Acceptor);

impl ClientHello {
    pub(super) fn new() -> Self {
        Self(Acceptor::default())
    }

    /// Takes the next bytes. `None` where the message isn't whole yet.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> Option<Opening> {
        while !bytes.is_empty() {
            // It reads from memory, so it fails only where it has more than it will ever take.
            match self.0.read_tls(&mut bytes) {
                Ok(0) | Err(_) => return Some(Opening::BadTls("it is too long".into())),
                Ok(_) => {}
            }
            match self.0.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    let name = accepted.client_hello().server_name().map(str::to_owned);
                    return Some(Opening::Tls(name));
                }
                Err((error, _)) => return Some(Opening::BadTls(error.to_string())),
            }
        }
        None
    }
}

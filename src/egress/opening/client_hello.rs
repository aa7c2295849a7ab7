//! Reads the server name from a `ClientHello` with rustls: a strict parser that rejects ambiguous
//! messages (two names, duplicate extensions, trailing bytes), however the message is split into
//! records and segments.

use rustls::server::Acceptor;

use super::ClientOpening;

/// A `ClientHello` that is being received.
pub(super) struct ClientHello(Acceptor);

impl ClientHello {
    pub(super) fn new() -> Self {
        Self(Acceptor::default())
    }

    /// Adds the next bytes. Returns `None` until the message is complete.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> Option<ClientOpening> {
        while !bytes.is_empty() {
            // It reads from memory, so it fails only if its buffer is full.
            match self.0.read_tls(&mut bytes) {
                Ok(0) | Err(_) => return Some(ClientOpening::BadTls("it is too long".into())),
                Ok(_) => {}
            }
            match self.0.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    let name = accepted.client_hello().server_name().map(str::to_owned);
                    return Some(ClientOpening::Tls(name));
                }
                Err((error, _)) => return Some(ClientOpening::BadTls(error.to_string())),
            }
        }
        None
    }
}

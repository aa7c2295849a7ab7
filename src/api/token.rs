//! The bearer token of the API over TCP.

use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

use super::types::{Problem, ProblemKind};

/// What the codes that are compared are made of; any text does.
const SUBJECT: &[u8] = b"mayfly api";

#[derive(Clone)]
pub(super) struct Token(SecretString);

impl Token {
    pub(super) fn new(token: SecretString) -> Self {
        Self(token)
    }

    /// Another secret that follows from this one, and from which this one does not follow.
    pub(super) fn derive(&self, purpose: &[u8]) -> String {
        let code = Hmac::<Sha256>::new_from_slice(self.0.expose_secret().as_bytes());
        // Keys of any length do.
        let code = code.map(|mac| mac.chain_update(purpose).finalize().into_bytes());
        code.map_or_else(|_| String::new(), |code| data_encoding::HEXLOWER.encode(&code))
    }

    /// Compares codes made with the tokens as keys: how long that takes says nothing about how
    /// much of the token is right.
    pub(super) fn is(&self, given: &[u8]) -> bool {
        let code =
            |key: &[u8]| Hmac::<Sha256>::new_from_slice(key).map(|mac| mac.chain_update(SUBJECT));
        let (Ok(own), Ok(given)) = (code(self.0.expose_secret().as_bytes()), code(given)) else {
            return false;
        };
        own.verify_slice(&given.finalize().into_bytes()).is_ok()
    }
}

pub(super) async fn check(State(token): State<Token>, request: Request, next: Next) -> Response {
    let given = request.headers().get(header::AUTHORIZATION);
    let given = given.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    if given.is_some_and(|given| token.is(given)) {
        return next.run(request).await;
    }
    let problem = Problem::new(ProblemKind::Unauthorized, "this takes the token of the API")
        .hint("Send it as `Authorization: Bearer …`.");
    ([(header::WWW_AUTHENTICATE, "Bearer")], problem).into_response()
}

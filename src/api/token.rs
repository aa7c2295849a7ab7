//! The bearer token of the API over TCP.

use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

use super::types::{ApiError, ApiErrorKind};

/// The message of the compared HMACs; any text works.
const SUBJECT: &[u8] = b"mayfly api";

/// A bearer token.
#[derive(Clone)]
pub(super) struct Token(SecretString);

impl Token {
    pub(super) fn new(token: SecretString) -> Self {
        Self(token)
    }

    /// Derives another secret from this one. It does not reveal this one.
    pub(super) fn derive(&self, purpose: &[u8]) -> String {
        let code = Hmac::<Sha256>::new_from_slice(self.0.expose_secret().as_bytes());
        // HMAC takes keys of any length.
        let code = code.map(|mac| mac.chain_update(purpose).finalize().into_bytes());
        code.map_or_else(|_| String::new(), |code| data_encoding::HEXLOWER.encode(&code))
    }

    /// Returns whether `given` is the token. Compares HMACs with the tokens as keys, so that the
    /// time taken says nothing about how much of the token is right.
    pub(super) fn matches(&self, given: &[u8]) -> bool {
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
    if given.is_some_and(|given| token.matches(given)) {
        return next.run(request).await;
    }
    let error = ApiError::new(ApiErrorKind::Unauthorized, "the API token is missing or wrong")
        .hint("Send it as `Authorization: Bearer …`.");
    ([(header::WWW_AUTHENTICATE, "Bearer")], error).into_response()
}

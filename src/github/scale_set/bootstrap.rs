//! From the REST API's credentials to the address and the admin token of the scale sets' service.

use std::time::{Duration, SystemTime};

use data_encoding::BASE64URL_NOPAD;
use hyper::Method;
use hyper::header::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::json;

use crate::github::client::Client as RestClient;
use crate::github::error::CallError;
use crate::github::target::ApiBase;
use crate::github::transport::secret_header;
use crate::github::wire::{Ask, read};

/// How long before its end an admin token (about 20 min) is replaced.
const RENEWED_BEFORE: Duration = Duration::from_secs(60);
/// How long an admin token is used whose end can't be read.
const ASSUMED_LIFETIME: Duration = Duration::from_secs(5 * 60);
/// A new registration token is refused until it has reached every server: waits between tries.
const REPLICATION_WAITS: [Duration; 3] =
    [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];

/// Where the service is, and what it is called with.
#[derive(Clone)]
pub(super) struct Connection {
    /// The tenant's address; no slash at its end.
    pub(super) tenant: String,
    pub(super) admin: HeaderValue,
    /// By GitHub's clock.
    pub(super) renew_at: SystemTime,
}

#[derive(Deserialize)]
struct RegistrationToken {
    token: SecretString,
}

#[derive(Deserialize)]
struct Registration {
    url: String,
    token: SecretString,
}

/// Gets a connection.
pub(super) async fn connect(rest: &RestClient) -> Result<Connection, CallError> {
    let path = format!("{}/actions/runners/registration-token", rest.target().path());
    let ask = Ask { method: Method::POST, ..Ask::get(path).needs(rest.runner_right()) };
    let token: RegistrationToken = rest.read(&ask).await?;
    let header = secret_header(&format!("RemoteAuth {}", token.token.expose_secret()));
    let register = Ask::post(
        "/actions/runner-registration",
        json!({ "url": rest.target().to_string(), "runner_event": "register" }),
    );
    let malformed =
        |what: &'static str| CallError::Ambiguous { call: register.name(), source: what.into() };
    let header = header.ok_or_else(|| malformed("the registration token is no header's value"))?;
    let mut waits = REPLICATION_WAITS.iter();
    let answer = loop {
        match rest.0.wire.ask(&register, &header).await {
            Err(
                error @ (CallError::Unauthorized { .. } | CallError::Refused { status: 403, .. }),
            ) => {
                let Some(wait) = waits.next() else { return Err(error) };
                tokio::time::sleep(*wait).await;
            }
            end => break end?,
        }
    };
    let registration: Registration = read(&answer, &register.name())?;
    let tenant: ApiBase =
        registration.url.parse().map_err(|_| malformed("the service's address can't be used"))?;
    let admin = registration.token.expose_secret();
    let renew_at = match expiry(admin) {
        Some(end) => end - RENEWED_BEFORE,
        None => rest.0.wire.time() + ASSUMED_LIFETIME,
    };
    let admin = secret_header(&format!("Bearer {admin}"))
        .ok_or_else(|| malformed("the admin token is no header's value"))?;
    Ok(Connection { tenant: tenant.as_str().to_owned(), admin, renew_at })
}

/// When a JWT ends, read without verifying it: the service will.
fn expiry(token: &str) -> Option<SystemTime> {
    #[derive(Deserialize)]
    struct Claims {
        exp: u64,
    }
    let claims = BASE64URL_NOPAD.decode(token.split('.').nth(1)?.as_bytes()).ok()?;
    let claims: Claims = serde_json::from_slice(&claims).ok()?;
    SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_secs(claims.exp))
        .filter(|end| *end > SystemTime::UNIX_EPOCH + RENEWED_BEFORE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_token_is_read_and_rubbish_is_not() {
        let token = format!("e30.{}.x", BASE64URL_NOPAD.encode(br#"{"exp":1800000000}"#));
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        assert_eq!(expiry(&token), Some(end));
        for token in ["", "a.b.c", "opaque", "e30.e30.x", "e30.eyJleHAiOjF9.x"] {
            assert_eq!(expiry(token), None, "{token}");
        }
    }
}

//! Exchanges the REST API's credentials for the scale set service's URL and admin token.

use std::time::{Duration, SystemTime};

use data_encoding::BASE64URL_NOPAD;
use hyper::Method;
use hyper::header::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::json;

use crate::client::GitHubClient;
use crate::error::CallError;
use crate::transport::secret_header;
use crate::wire::{ApiCall, read};
use mayfly_config::github::ApiBase;

/// How long before its expiry an admin token (about 20 min) is renewed.
const RENEWED_BEFORE: Duration = Duration::from_secs(60);
/// An admin token's assumed lifetime if its expiry can't be parsed.
const ASSUMED_LIFETIME: Duration = Duration::from_secs(5 * 60);
/// The waits between attempts: a new registration token is refused until every server has it.
const REPLICATION_WAITS: [Duration; 3] =
    [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];

/// The service's URL and credentials.
#[derive(Clone)]
pub(super) struct Connection {
    /// The tenant's URL; no trailing slash.
    pub(super) tenant: String,
    pub(super) admin: HeaderValue,
    /// On GitHub's clock.
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

/// Obtains a connection.
pub(super) async fn connect(rest: &GitHubClient) -> Result<Connection, CallError> {
    let path = format!("{}/actions/runners/registration-token", rest.target().path());
    let call =
        ApiCall { method: Method::POST, ..ApiCall::get(path).needs(rest.runner_permission()) };
    let token: RegistrationToken = rest.read(&call).await?;
    let header = secret_header(&format!("RemoteAuth {}", token.token.expose_secret()));
    let register = ApiCall::post(
        "/actions/runner-registration",
        json!({ "url": rest.target().to_string(), "runner_event": "register" }),
    );
    let malformed =
        |what: &'static str| CallError::Ambiguous { call: register.name(), source: what.into() };
    let header =
        header.ok_or_else(|| malformed("the registration token is not a valid header value"))?;
    let mut waits = REPLICATION_WAITS.iter();
    let response = loop {
        match rest.0.wire.call(&register, &header).await {
            Err(
                error @ (CallError::Unauthorized { .. } | CallError::Refused { status: 403, .. }),
            ) => {
                let Some(wait) = waits.next() else { return Err(error) };
                tokio::time::sleep(*wait).await;
            }
            result => break result?,
        }
    };
    let registration: Registration = read(&response, &register.name())?;
    let tenant: ApiBase =
        registration.url.parse().map_err(|_| malformed("the service's URL is not valid"))?;
    let admin = registration.token.expose_secret();
    let renew_at = match expiry(admin) {
        Some(end) => end - RENEWED_BEFORE,
        None => rest.0.wire.now() + ASSUMED_LIFETIME,
    };
    let admin = secret_header(&format!("Bearer {admin}"))
        .ok_or_else(|| malformed("the admin token is not a valid header value"))?;
    Ok(Connection { tenant: tenant.as_str().to_owned(), admin, renew_at })
}

/// Returns when a JWT expires. Does not verify it: the service does.
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
    fn the_expiry_of_a_token_is_parsed_and_garbage_is_not() {
        let token = format!("e30.{}.x", BASE64URL_NOPAD.encode(br#"{"exp":1800000000}"#));
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        assert_eq!(expiry(&token), Some(end));
        for token in ["", "a.b.c", "opaque", "e30.e30.x", "e30.eyJleHAiOjF9.x"] {
            assert_eq!(expiry(token), None, "{token}");
        }
    }
}

//! Access to the pages.

use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use secrecy::SecretString;
use serde::Deserialize;

use crate::token::Token;
use crate::types::{ApiError, ApiErrorKind};

/// The cookie of a browser that has presented the token.
const COOKIE: &str = "mayfly_status";

/// Who may access the pages.
#[derive(Clone)]
pub enum Access {
    /// Clients whose `Host` header names this host. This stops DNS rebinding: a foreign web page
    /// that resolves its name to this host's address would send that name.
    Host,
    /// Clients with the token.
    Token(Keys),
    /// Anyone who reaches the address.
    Anyone,
}

/// The token, and the cookie that a browser keeps instead of it.
#[derive(Clone)]
pub struct Keys {
    token: Token,
    cookie: Token,
    set_cookie: SecretString,
}

impl Access {
    /// Requires a token.
    pub fn token(token: SecretString) -> Self {
        let token = Token::new(token);
        let value = token.derive(b"mayfly status cookie");
        let set_cookie = format!("{COOKIE}={value}; Path=/; HttpOnly; SameSite=Strict").into();
        Self::Token(Keys { token, cookie: Token::new(value.into()), set_cookie })
    }
}

/// The query `?token=…`.
#[derive(Debug, Default, Deserialize)]
struct Given {
    token: Option<SecretString>,
}

pub(super) async fn check(State(access): State<Access>, request: Request, next: Next) -> Response {
    match access {
        Access::Anyone => next.run(request).await,
        Access::Host if is_local_host(request.headers()) => next.run(request).await,
        Access::Host => ApiError::new(
            ApiErrorKind::Unauthorized,
            "the Host header names neither an IP address nor localhost",
        )
        .hint(
            "Use http://127.0.0.1 or http://localhost. For other names, set \
                     status.token_file or status.allow_unauthenticated.",
        )
        .into_response(),
        Access::Token(keys) => keys.check(request, next).await,
    }
}

/// Returns whether the `Host` header is an IP address or `localhost`, not a name that an attacker may
/// have pointed at this host (DNS rebinding).
fn is_local_host(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else {
        return false;
    };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.parse::<std::net::IpAddr>().is_ok() || name.eq_ignore_ascii_case("localhost")
}

impl Keys {
    async fn check(&self, request: Request, next: Next) -> Response {
        let headers = request.headers();
        let bearer = headers.get(header::AUTHORIZATION);
        let bearer = bearer.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        if bearer.is_some_and(|given| self.token.matches(given))
            || cookies(headers).any(|given| self.cookie.matches(given.as_bytes()))
        {
            return next.run(request).await;
        }
        let given = Query::<Given>::try_from_uri(request.uri()).ok();
        let given = given.and_then(|Query(given)| given.token);
        let has_token = given.is_some_and(|given| {
            use secrecy::ExposeSecret;
            self.token.matches(given.expose_secret().as_bytes())
        });
        if !has_token {
            let error =
                ApiError::new(ApiErrorKind::Unauthorized, "the status token is missing or wrong")
                    .hint(
                        "Send it as `Authorization: Bearer …`, or open the page with `?token=…`.",
                    );
            return ([(header::WWW_AUTHENTICATE, "Bearer")], error).into_response();
        }
        let is_browser = headers
            .get(header::ACCEPT)
            .and_then(|accept| accept.to_str().ok())
            .is_some_and(|accept| accept.contains("text/html"));
        if is_browser {
            self.redirect_with_cookie(request.uri().path())
        } else {
            next.run(request).await
        }
    }

    /// Redirects a browser to the same page with a cookie instead of the token, which would stay in
    /// its history and in every link.
    fn redirect_with_cookie(&self, path: &str) -> Response {
        use secrecy::ExposeSecret;
        // A path with two leading slashes would name another host.
        let path = format!("/{}", path.trim_start_matches('/'));
        let headers = [
            (header::LOCATION, path.as_str()),
            (header::SET_COOKIE, self.set_cookie.expose_secret()),
        ];
        (StatusCode::SEE_OTHER, headers).into_response()
    }
}

fn cookies(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(header::COOKIE)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_localhost_are_local() {
        for (host, expected) in [
            ("127.0.0.1:9180", true),
            ("127.0.0.1", true),
            ("[::1]:9180", true),
            ("localhost:9180", true),
            ("LocalHost", true),
            ("evil.example:9180", false),
            ("127.0.0.1.evil.example", false),
            ("localhost.evil.example:9180", false),
            ("[evil.example]:9180", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            assert_eq!(is_local_host(&headers), expected, "{host}");
        }
        assert!(!is_local_host(&HeaderMap::new()));
    }

    #[test]
    fn the_cookie_is_found_among_others() {
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, "a=b; mayfly_status=one".parse().unwrap());
        headers.append(header::COOKIE, "mayfly_status_x=no; mayfly_status=two".parse().unwrap());
        assert_eq!(cookies(&headers).collect::<Vec<_>>(), ["one", "two"]);
    }
}

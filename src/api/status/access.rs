//! Who may look at the pages.

use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use secrecy::SecretString;
use serde::Deserialize;

use crate::api::token::Token;
use crate::api::types::{Problem, ProblemKind};

/// The cookie by which a browser that has shown the token is known again.
const COOKIE: &str = "mayfly_status";

/// Who may look.
#[derive(Clone)]
pub enum Access {
    /// Who is on this host, and says so: a page of somebody else's that was made to resolve to this
    /// host's address would be asked for by another name.
    Host,
    /// Who knows the token.
    Token(Keys),
    /// Who reaches the address.
    Anyone,
}

/// What is compared: the token, and what the browser keeps instead of it.
#[derive(Clone)]
pub struct Keys {
    token: Token,
    cookie: Token,
    set_cookie: SecretString,
}

impl Access {
    /// Who knows the token.
    pub fn token(token: SecretString) -> Self {
        let token = Token::new(token);
        let value = token.derive(b"mayfly status cookie");
        let set_cookie = format!("{COOKIE}={value}; Path=/; HttpOnly; SameSite=Strict").into();
        Self::Token(Keys { token, cookie: Token::new(value.into()), set_cookie })
    }
}

/// `?token=…`.
#[derive(Debug, Default, Deserialize)]
struct Given {
    token: Option<SecretString>,
}

pub(super) async fn check(State(access): State<Access>, request: Request, next: Next) -> Response {
    match access {
        Access::Anyone => next.run(request).await,
        Access::Host if is_of_this_host(request.headers()) => next.run(request).await,
        Access::Host => {
            Problem::new(ProblemKind::Unauthorized, "this page is asked for by a foreign name")
                .hint(
                    "Use http://127.0.0.1 or http://localhost. For other names set \
                     status.token_file or status.allow_unauthenticated.",
                )
                .into_response()
        }
        Access::Token(keys) => keys.check(request, next).await,
    }
}

/// Whether the request is for an address or for `localhost`, and not for a name that somebody else
/// may have made one of this host's (DNS rebinding).
fn is_of_this_host(headers: &HeaderMap) -> bool {
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
        if bearer.is_some_and(|given| self.token.is(given))
            || cookies(headers).any(|given| self.cookie.is(given.as_bytes()))
        {
            return next.run(request).await;
        }
        let given = Query::<Given>::try_from_uri(request.uri()).ok();
        let given = given.and_then(|Query(given)| given.token);
        let knows = given.is_some_and(|given| {
            use secrecy::ExposeSecret;
            self.token.is(given.expose_secret().as_bytes())
        });
        if !knows {
            let problem = Problem::new(ProblemKind::Unauthorized, "this takes the status token")
                .hint("Send it as `Authorization: Bearer …`, or open the page with `?token=…`.");
            return ([(header::WWW_AUTHENTICATE, "Bearer")], problem).into_response();
        }
        let is_browser = headers
            .get(header::ACCEPT)
            .and_then(|accept| accept.to_str().ok())
            .is_some_and(|accept| accept.contains("text/html"));
        if is_browser { self.remember(request.uri().path()) } else { next.run(request).await }
    }

    /// Sends a browser to the same page without the token, which would stay in its history and in
    /// every link, and gives it a cookie instead.
    fn remember(&self, path: &str) -> Response {
        use secrecy::ExposeSecret;
        // A path of two slashes would be taken for another host.
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
    fn only_addresses_and_localhost_are_this_host() {
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
            assert_eq!(is_of_this_host(&headers), expected, "{host}");
        }
        assert!(!is_of_this_host(&HeaderMap::new()));
    }

    #[test]
    fn the_cookie_is_found_among_others() {
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, "a=b; mayfly_status=one".parse().unwrap());
        headers.append(header::COOKIE, "mayfly_status_x=no; mayfly_status=two".parse().unwrap());
        assert_eq!(cookies(&headers).collect::<Vec<_>>(), ["one", "two"]);
    }
}

//! What a request is for and what of it is passed on: pure functions of heads.

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, StatusCode, Uri};

use crate::egress::host::Host;
use crate::egress::verdict::Cause;

/// The port of `http://` URLs.
pub(super) const HTTP_PORT: u16 = 80;

/// Headers that are between a client and a proxy (RFC 9110, section 7.6.1, and their forerunners).
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
];

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) host: Host,
    pub(super) port: u16,
    pub(super) path: PathAndQuery,
}

impl Target {
    /// Where a connection goes, before anything was asked of it.
    pub(super) fn of(host: Host, port: u16) -> Self {
        Self { host, port, path: PathAndQuery::from_static("/") }
    }

    /// The URL without its query, which may hold secrets.
    pub(super) fn url(&self) -> String {
        let Self { host, port, path } = self;
        match *port {
            HTTP_PORT => format!("http://{host}{}", path.path()),
            port => format!("http://{host}:{port}{}", path.path()),
        }
    }

    /// The value of the `Host` header.
    pub(super) fn authority(&self) -> String {
        match self.port {
            HTTP_PORT => self.host.to_string(),
            port => format!("{}:{port}", self.host),
        }
    }
}

/// Where a request to the forward proxy goes: its URL is absolute.
pub(super) fn proxied(method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Target, Cause> {
    let request = |text: &str| Err(Cause::Request(text.into()));
    if method == Method::CONNECT {
        return request("CONNECT must come first on its connection");
    }
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return request("a proxy wants the whole URL");
    };
    if scheme != "http" {
        return request("only http:// URLs; anything else goes by CONNECT");
    }
    let (host, port) =
        Host::parse_with_port(authority.as_str(), Some(HTTP_PORT)).map_err(Cause::Host)?;
    let path = uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    let target = Target { host, port, path };
    check_host(headers, &target)?;
    Ok(target)
}

/// Where a request on a connection to `host` goes: there, whatever else it says.
pub(super) fn direct(
    uri: &Uri,
    headers: &HeaderMap,
    host: &Host,
    port: u16,
) -> Result<Target, Cause> {
    if let Some(authority) = uri.authority() {
        let named = Host::parse_with_port(authority.as_str(), Some(HTTP_PORT));
        if uri.scheme_str() != Some("http") || named.ok() != Some((host.clone(), port)) {
            return Err(Cause::HostMismatch(authority.to_string()));
        }
    }
    let path = uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    let target = Target { host: host.clone(), port, path };
    check_host(headers, &target)?;
    Ok(target)
}

/// The Host header must be for the very target. HTTP/1.0 may do without.
fn check_host(headers: &HeaderMap, target: &Target) -> Result<(), Cause> {
    let Some(value) = headers.get(header::HOST) else { return Ok(()) };
    is_for(&String::from_utf8_lossy(value.as_bytes()), &target.host, target.port, HTTP_PORT)
}

/// Whether a Host header is for a host and port.
pub(super) fn is_for(said: &str, host: &Host, port: u16, default_port: u16) -> Result<(), Cause> {
    match Host::parse_with_port(said, Some(default_port)) {
        Ok((named, number)) if named == *host && number == port => Ok(()),
        _ => Err(Cause::HostMismatch(said.to_owned())),
    }
}

/// Takes out what is not passed on, those headers included that `Connection` names.
pub(super) fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::try_from(name.trim()).ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    // Hyper frames each message anew.
    headers.remove(header::TRANSFER_ENCODING);
    headers.remove(header::EXPECT);
}

/// The status that tells a cause to a client of HTTP.
pub(super) fn status_of(cause: &Cause) -> StatusCode {
    match cause {
        Cause::Request(_) | Cause::Host(_) | Cause::HostMismatch(_) => StatusCode::BAD_REQUEST,
        Cause::ClientDeadline => StatusCode::REQUEST_TIMEOUT,
        Cause::ConnectDeadline => StatusCode::GATEWAY_TIMEOUT,
        Cause::TooManyConnections => StatusCode::SERVICE_UNAVAILABLE,
        cause if cause.is_failure() => StatusCode::BAD_GATEWAY,
        _ => StatusCode::FORBIDDEN,
    }
}

/// The header with the cause's word, for programs.
pub(super) fn cause_header(cause: &Cause) -> (HeaderName, HeaderValue) {
    (HeaderName::from_static("x-mayfly-cause"), HeaderValue::from_static(cause.code()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        fields.iter().map(field).collect()
    }

    fn ask(url: &'static str, host: &'static str) -> Result<String, Cause> {
        let uri = Uri::from_static(url);
        proxied(&Method::GET, &uri, &headers(&[("host", host)])).map(|target| target.url())
    }

    #[test]
    fn a_proxy_takes_absolute_urls_whose_host_is_the_same() {
        assert_eq!(ask("http://A.example/x?y=z", "a.example").unwrap(), "http://a.example/x");
        assert_eq!(ask("http://a.example:80", "a.example").unwrap(), "http://a.example/");
        assert_eq!(
            ask("http://a.example:8080/", "a.example:8080").unwrap(),
            "http://a.example:8080/"
        );
        for (url, host) in [
            ("http://a.example/", "b.example"),
            ("http://a.example/", "a.example:8080"),
            ("http://a.example:8080/", "a.example"),
            ("http://a.example/", ""),
        ] {
            assert_eq!(ask(url, host), Err(Cause::HostMismatch(host.into())), "{url} {host}");
        }
        for url in ["http://user@a.example/", "http://a.example:99999/", "http://0x7f.1/"] {
            assert!(matches!(ask(url, "a.example"), Err(Cause::Host(_))), "{url}");
        }
        for url in ["/x", "https://a.example/", "ftp://a.example/", "a.example:443"] {
            assert!(matches!(ask(url, "a.example"), Err(Cause::Request(_))), "{url}");
        }
    }

    #[test]
    fn a_direct_request_is_for_the_host_of_its_connection() {
        let host = Host::parse("a.example").unwrap();
        let ask = |url: &'static str, said: &'static str| {
            direct(&Uri::from_static(url), &headers(&[("host", said)]), &host, 80)
                .map(|target| target.url())
        };
        assert_eq!(ask("/x?y", "A.EXAMPLE").unwrap(), "http://a.example/x");
        assert_eq!(ask("http://a.example/x", "a.example:80").unwrap(), "http://a.example/x");
        for (url, said) in [
            ("/x", "b.example"),
            ("http://b.example/x", "a.example"),
            ("https://a.example/x", "a.example"),
            ("http://a.example:81/x", "a.example"),
        ] {
            assert!(matches!(ask(url, said), Err(Cause::HostMismatch(_))), "{url} {said}");
        }
    }

    #[test]
    fn headers_between_client_and_proxy_stay_there() {
        let mut all = headers(&[
            ("connection", "close, X-Private"),
            ("x-private", "1"),
            ("proxy-authorization", "Basic x"),
            ("proxy-connection", "keep-alive"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("transfer-encoding", "chunked"),
            ("accept", "*/*"),
        ]);
        strip(&mut all);
        assert_eq!(all, headers(&[("accept", "*/*")]));
    }
}

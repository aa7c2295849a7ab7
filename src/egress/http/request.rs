//! Request targets and header fields: pure functions of request heads.

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, StatusCode, Uri};

use crate::host::Host;
use crate::verdict::RefusalCause;

/// The port of `http://` URLs.
pub(super) const HTTP_PORT: u16 = 80;

/// Hop-by-hop headers (RFC 9110, section 7.6.1, and its predecessors).
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

/// The destination of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) host: Host,
    pub(super) port: u16,
    pub(super) path: PathAndQuery,
}

impl Target {
    /// Creates the target of a connection without a request.
    pub(super) fn new(host: Host, port: u16) -> Self {
        Self { host, port, path: PathAndQuery::from_static("/") }
    }

    /// Returns the URL without its query, which may contain secrets.
    pub(super) fn url(&self) -> String {
        let Self { host, port, path } = self;
        match *port {
            HTTP_PORT => format!("http://{host}{}", path.path()),
            port => format!("http://{host}:{port}{}", path.path()),
        }
    }

    /// Returns the value of the `Host` header.
    pub(super) fn authority(&self) -> String {
        match self.port {
            HTTP_PORT => self.host.to_string(),
            port => format!("{}:{port}", self.host),
        }
    }
}

/// Returns the target of a request to the forward proxy: its URL is absolute.
pub(super) fn proxy_target(
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<Target, RefusalCause> {
    let request = |text: &str| Err(RefusalCause::Request(text.into()));
    if method == Method::CONNECT {
        return request("CONNECT must be the first request on its connection");
    }
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return request("a request to the proxy needs an absolute URL");
    };
    if scheme != "http" {
        return request("the proxy supports only http:// URLs; use CONNECT for others");
    }
    let (host, port) =
        Host::parse_with_port(authority.as_str(), Some(HTTP_PORT)).map_err(RefusalCause::Host)?;
    let path = uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    let target = Target { host, port, path };
    check_host(headers, &target)?;
    Ok(target)
}

/// Returns the target of a request on a connection to `host`, which its URL and Host must not
/// contradict.
pub(super) fn direct_target(
    uri: &Uri,
    headers: &HeaderMap,
    host: &Host,
    port: u16,
) -> Result<Target, RefusalCause> {
    if let Some(authority) = uri.authority() {
        let named = Host::parse_with_port(authority.as_str(), Some(HTTP_PORT));
        if uri.scheme_str() != Some("http") || named.ok() != Some((host.clone(), port)) {
            return Err(RefusalCause::HostMismatch(authority.to_string()));
        }
    }
    let path = uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    let target = Target { host: host.clone(), port, path };
    check_host(headers, &target)?;
    Ok(target)
}

/// Checks that the Host header matches the target. HTTP/1.0 may omit it.
fn check_host(headers: &HeaderMap, target: &Target) -> Result<(), RefusalCause> {
    let Some(value) = headers.get(header::HOST) else { return Ok(()) };
    check_host_value(
        &String::from_utf8_lossy(value.as_bytes()),
        &target.host,
        target.port,
        HTTP_PORT,
    )
}

/// Checks that a Host value matches a host and port.
pub(super) fn check_host_value(
    value: &str,
    host: &Host,
    port: u16,
    default_port: u16,
) -> Result<(), RefusalCause> {
    match Host::parse_with_port(value, Some(default_port)) {
        Ok((named, number)) if named == *host && number == port => Ok(()),
        _ => Err(RefusalCause::HostMismatch(value.to_owned())),
    }
}

/// Removes hop-by-hop headers, including those that `Connection` names.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
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
    // Hyper frames each message itself.
    headers.remove(header::TRANSFER_ENCODING);
    headers.remove(header::EXPECT);
}

/// Returns the HTTP status for a cause.
pub(super) fn status_of(cause: &RefusalCause) -> StatusCode {
    match cause {
        RefusalCause::Request(_) | RefusalCause::Host(_) | RefusalCause::HostMismatch(_) => {
            StatusCode::BAD_REQUEST
        }
        RefusalCause::ClientDeadline => StatusCode::REQUEST_TIMEOUT,
        RefusalCause::ConnectDeadline => StatusCode::GATEWAY_TIMEOUT,
        RefusalCause::TooManyConnections => StatusCode::SERVICE_UNAVAILABLE,
        cause if cause.is_failure() => StatusCode::BAD_GATEWAY,
        _ => StatusCode::FORBIDDEN,
    }
}

/// Returns the header with the cause's code, for programs.
pub(super) fn cause_header(cause: &RefusalCause) -> (HeaderName, HeaderValue) {
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

    fn ask(url: &'static str, host: &'static str) -> Result<String, RefusalCause> {
        let uri = Uri::from_static(url);
        proxy_target(&Method::GET, &uri, &headers(&[("host", host)])).map(|target| target.url())
    }

    #[test]
    fn a_proxy_accepts_absolute_urls_that_match_the_host() {
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
            assert_eq!(
                ask(url, host),
                Err(RefusalCause::HostMismatch(host.into())),
                "{url} {host}"
            );
        }
        for url in ["http://user@a.example/", "http://a.example:99999/", "http://0x7f.1/"] {
            assert!(matches!(ask(url, "a.example"), Err(RefusalCause::Host(_))), "{url}");
        }
        for url in ["/x", "https://a.example/", "ftp://a.example/", "a.example:443"] {
            assert!(matches!(ask(url, "a.example"), Err(RefusalCause::Request(_))), "{url}");
        }
    }

    #[test]
    fn a_direct_request_must_match_the_host_of_its_connection() {
        let host = Host::parse("a.example").unwrap();
        let ask = |url: &'static str, value: &'static str| {
            direct_target(&Uri::from_static(url), &headers(&[("host", value)]), &host, 80)
                .map(|target| target.url())
        };
        assert_eq!(ask("/x?y", "A.EXAMPLE").unwrap(), "http://a.example/x");
        assert_eq!(ask("http://a.example/x", "a.example:80").unwrap(), "http://a.example/x");
        for (url, value) in [
            ("/x", "b.example"),
            ("http://b.example/x", "a.example"),
            ("https://a.example/x", "a.example"),
            ("http://a.example:81/x", "a.example"),
        ] {
            assert!(matches!(ask(url, value), Err(RefusalCause::HostMismatch(_))), "{url} {value}");
        }
    }

    #[test]
    fn hop_by_hop_headers_are_not_forwarded() {
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
        strip_hop_by_hop(&mut all);
        assert_eq!(all, headers(&[("accept", "*/*")]));
    }
}

//! HTTPS from this host, with the system's certificates and the proxies of the environment.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_service::Service;

/// The error of a failed connection attempt.
type ConnectError = Box<dyn std::error::Error + Send + Sync>;

/// The proxy configuration. It applies to `https` addresses only.
#[derive(Debug, Clone)]
pub struct Proxies(Arc<Matcher>);

impl Proxies {
    /// Reads `https_proxy`, `all_proxy` and `no_proxy` (lower or upper case) like curl.
    pub fn from_environment() -> Self {
        Self(Arc::new(Matcher::from_env()))
    }

    /// Uses a proxy for everything but the hosts in `no_proxy` (names, suffixes, addresses,
    /// networks).
    pub fn new(https_proxy: &str, no_proxy: &str) -> Self {
        Self(Arc::new(Matcher::builder().https(https_proxy).no(no_proxy).build()))
    }

    /// Uses no proxy.
    pub fn none() -> Self {
        Self(Arc::new(Matcher::builder().build()))
    }
}

/// Creates a connector for `https://` and `http://` addresses. Each connection attempt has
/// `deadline`.
///
/// # Errors
///
/// The system's certificates can't be loaded.
pub fn connector(proxies: &Proxies, deadline: Duration) -> io::Result<HttpsConnector<Connector>> {
    let mut direct = HttpConnector::new();
    direct.enforce_http(false);
    direct.set_connect_timeout(Some(deadline));
    direct.set_nodelay(true);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(HttpsConnectorBuilder::new()
        .with_provider_and_native_roots(provider)?
        .https_or_http()
        .enable_http1()
        .wrap_connector(Connector { direct, proxies: proxies.clone() }))
}

/// A connector that connects directly or through the configured proxy.
#[derive(Clone)]
pub struct Connector {
    direct: HttpConnector,
    proxies: Proxies,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        self.direct.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, address: Uri) -> Self::Future {
        let secure = address.scheme_str() == Some("https");
        let Some(proxy) = self.proxies.0.intercept(&address).filter(|_| secure) else {
            let connecting = self.direct.call(address);
            return Box::pin(async move { Ok(connecting.await?) });
        };
        if proxy.uri().scheme_str() != Some("http") {
            let kind = proxy.uri().scheme_str().unwrap_or("none").to_owned();
            return Box::pin(async move {
                Err(format!("unsupported proxy scheme {kind}: only http:// proxies are supported")
                    .into())
            });
        }
        let mut tunnel = Tunnel::new(proxy.uri().clone(), self.direct.clone());
        if let Some(authorization) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(authorization.clone());
        }
        let connecting = tunnel.call(address);
        Box::pin(async move { Ok(connecting.await?) })
    }
}

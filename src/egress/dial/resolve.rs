//! Name resolution on the host.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;

use crate::host::HostName;

/// The future of a lookup: addresses, or an error.
pub type Lookup<'a> = Pin<Box<dyn Future<Output = Result<Vec<IpAddr>, ResolveError>> + Send + 'a>>;

/// Why a lookup returned no addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResolveError {
    /// The name does not exist.
    NotFound,
    /// The lookup failed; the text says why.
    Failed(String),
}

/// A resolver of names.
pub trait Resolve: Send + Sync {
    /// Returns the addresses of a name, in order of preference.
    fn resolve<'a>(&'a self, name: &'a HostName) -> Lookup<'a>;
}

/// The resolver of the host's configuration (`/etc/resolv.conf`, `/etc/hosts`).
pub struct SystemResolver(TokioResolver);

/// The host's resolver configuration is invalid.
#[derive(Debug, thiserror::Error)]
#[error("can't load the host's resolver configuration")]
pub struct SystemResolverError(#[source] hickory_resolver::net::NetError);

impl SystemResolver {
    /// Reads the host's configuration. Use the resolver on one runtime only.
    pub fn new() -> Result<Self, SystemResolverError> {
        let mut builder = TokioResolver::builder_tokio().map_err(SystemResolverError)?;
        builder.options_mut().ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
        Ok(Self(builder.build().map_err(SystemResolverError)?))
    }
}

impl Resolve for SystemResolver {
    fn resolve<'a>(&'a self, name: &'a HostName) -> Lookup<'a> {
        Box::pin(async move {
            // The trailing dot excludes the host's search domains, which would change the name.
            let found = self.0.lookup_ip(format!("{name}.")).await;
            found.map(|found| found.iter().collect()).map_err(|error| {
                if error.is_nx_domain() {
                    ResolveError::NotFound
                } else {
                    ResolveError::Failed(error.to_string())
                }
            })
        })
    }
}

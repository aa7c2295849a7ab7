//! From names to addresses, on the host.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;

use crate::egress::host::HostName;

/// What a lookup will say: addresses, or why there are none.
pub type Lookup<'a> = Pin<Box<dyn Future<Output = Result<Vec<IpAddr>, Unresolved>> + Send + 'a>>;

/// Why a lookup has no addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unresolved {
    /// The name does not exist.
    Missing,
    /// Nobody could say; the text says why.
    Failed(String),
}

/// Something that knows the addresses of names.
pub trait Resolve: Send + Sync {
    /// The addresses of a name, those to try first in front.
    fn resolve<'a>(&'a self, name: &'a HostName) -> Lookup<'a>;
}

/// The resolver that the host's own configuration describes (`/etc/resolv.conf`, `/etc/hosts`).
pub struct SystemResolver(TokioResolver);

/// The host's resolver configuration can't be used.
#[derive(Debug, thiserror::Error)]
#[error("can't use the resolver configuration of the host")]
pub struct SystemResolverError(#[source] hickory_resolver::net::NetError);

impl SystemResolver {
    /// Reads the host's configuration. What it returns is to be used on one runtime only.
    pub fn new() -> Result<Self, SystemResolverError> {
        let mut builder = TokioResolver::builder_tokio().map_err(SystemResolverError)?;
        builder.options_mut().ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
        Ok(Self(builder.build().map_err(SystemResolverError)?))
    }
}

impl Resolve for SystemResolver {
    fn resolve<'a>(&'a self, name: &'a HostName) -> Lookup<'a> {
        Box::pin(async move {
            // The dot keeps the host's search domains out: they would make it another name.
            let found = self.0.lookup_ip(format!("{name}.")).await;
            found.map(|found| found.iter().collect()).map_err(|error| {
                if error.is_nx_domain() {
                    Unresolved::Missing
                } else {
                    Unresolved::Failed(error.to_string())
                }
            })
        })
    }
}

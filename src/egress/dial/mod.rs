//! Outbound connections: to a checked address of a name, or through a parent proxy.
//!
//! A name is resolved once; if any of its addresses is forbidden, none is dialed. The dialed
//! addresses are those that were checked.

mod connect;
mod parent;
mod resolve;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tokio::net::TcpStream;
use tokio::time::timeout;

pub use parent::CredentialsError;
pub use resolve::{Lookup, Resolve, ResolveError, SystemResolver, SystemResolverError};

use super::address::AddressCheck;
use super::host::{Host, HostName};
use super::policy::{ParentProxy, Policy};
use super::record::Peer;
use super::verdict::RefusalCause;

/// Timeout of the host's resolver for a name that goes to the parent.
const PARENT_CHECK: Duration = Duration::from_secs(1);

/// Timeout of a guest's lookup; resolvers retry after five seconds.
const LOOKUP: Duration = Duration::from_secs(4);

/// Makes the outbound connections of one microVM.
pub struct Dialer {
    policy: Arc<Policy>,
    addresses: AddressCheck,
    resolver: Arc<dyn Resolve>,
    authorization: Option<SecretString>,
    deadline: Duration,
}

/// An outbound connection.
#[derive(Debug)]
pub struct DialedConnection {
    /// The connection.
    pub stream: TcpStream,
    /// The peer.
    pub peer: Peer,
}

/// The next hop for plain HTTP requests.
#[derive(Debug)]
pub enum HttpRoute {
    /// A connection to the origin: requests contain a path.
    Origin(DialedConnection),
    /// A connection to the parent: requests contain a complete URL.
    Parent {
        /// The connection.
        dialed: DialedConnection,
        /// The `Proxy-Authorization` value to send.
        authorization: Option<SecretString>,
    },
}

impl HttpRoute {
    /// The connection.
    pub fn dialed(&self) -> &DialedConnection {
        match self {
            Self::Origin(dialed) | Self::Parent { dialed, .. } => dialed,
        }
    }
}

impl Dialer {
    /// Creates a dialer and reads the parent's credentials, if any. `deadline` limits each
    /// connection, from the lookup to the response.
    pub fn new(
        policy: Arc<Policy>,
        addresses: AddressCheck,
        resolver: Arc<dyn Resolve>,
        deadline: Duration,
    ) -> Result<Self, CredentialsError> {
        let file = policy.parent.as_ref().and_then(|parent| parent.credentials.as_deref());
        let authorization = file.map(parent::read_credentials).transpose()?;
        Ok(Self { policy, addresses, resolver, authorization, deadline })
    }

    /// Connects to a destination that the policy allows.
    pub async fn dial(
        &self,
        host: &Host,
        port: u16,
        allow_private: bool,
    ) -> Result<DialedConnection, RefusalCause> {
        self.with_deadline(async {
            match self.parent_for(host, port)? {
                Some(parent) => {
                    self.check_for_parent(host, allow_private).await?;
                    let mut dialed = self.dial_parent(parent).await?;
                    let authorization = self.authorization.as_ref();
                    parent::open_tunnel(&mut dialed.stream, host, port, authorization).await?;
                    Ok(dialed)
                }
                None => self.dial_directly(host, port, allow_private).await,
            }
        })
        .await
    }

    /// Connects to the next hop for plain HTTP requests. Proxies rarely grant tunnels to port 80,
    /// so a parent receives the requests themselves.
    pub async fn dial_http(
        &self,
        host: &Host,
        port: u16,
        allow_private: bool,
    ) -> Result<HttpRoute, RefusalCause> {
        self.with_deadline(async {
            match self.parent_for(host, port)? {
                Some(parent) => {
                    self.check_for_parent(host, allow_private).await?;
                    Ok(HttpRoute::Parent {
                        dialed: self.dial_parent(parent).await?,
                        authorization: self.authorization.clone(),
                    })
                }
                None => self.dial_directly(host, port, allow_private).await.map(HttpRoute::Origin),
            }
        })
        .await
    }

    async fn with_deadline<T>(
        &self,
        dialing: impl Future<Output = Result<T, RefusalCause>>,
    ) -> Result<T, RefusalCause> {
        timeout(self.deadline, dialing).await.unwrap_or(Err(RefusalCause::ConnectDeadline))
    }

    /// Returns the parent, unless the operator overrides the name's address. An address that the
    /// guest named is checked here: the parent may reach networks that the guest may not.
    fn parent_for(&self, host: &Host, port: u16) -> Result<Option<&ParentProxy>, RefusalCause> {
        match host {
            Host::Name(name) if self.policy.resolve_override(name, port).is_some() => Ok(None),
            Host::Name(_) => Ok(self.policy.parent.as_ref()),
            Host::Address(address) => {
                // A literal has no rule: the policy decided whether it may be private.
                self.addresses.check(*address, true).map_err(RefusalCause::Address)?;
                Ok(self.policy.parent.as_ref())
            }
        }
    }

    /// Checks the addresses that this host knows for a name before the parent gets it. A host
    /// behind a proxy often resolves no public names: if the resolver fails or times out, the
    /// parent decides.
    async fn check_for_parent(&self, host: &Host, allow_private: bool) -> Result<(), RefusalCause> {
        let Host::Name(name) = host else { return Ok(()) };
        let Ok(Ok(addresses)) = timeout(PARENT_CHECK, self.resolver.resolve(name)).await else {
            return Ok(());
        };
        self.check_all(&addresses, allow_private)
    }

    fn check_all(&self, addresses: &[IpAddr], allow_private: bool) -> Result<(), RefusalCause> {
        addresses.iter().try_for_each(|address| {
            self.addresses.check(*address, allow_private).map_err(RefusalCause::Address)
        })
    }

    /// Checks that an allowed name resolves to permitted addresses, as far as this host can tell.
    /// Succeeds if a parent resolves, or the operator overrides the address.
    pub async fn look_up(&self, name: &HostName, allow_private: bool) -> Result<(), RefusalCause> {
        if self.policy.parent.is_some() || self.policy.has_override(name) {
            return Ok(());
        }
        let addresses = timeout(LOOKUP, self.resolve(name)).await.unwrap_or_else(|_| {
            Err(RefusalCause::Resolve("the resolver did not answer in time".into()))
        })?;
        self.check_all(&addresses, allow_private)
    }

    async fn dial_directly(
        &self,
        host: &Host,
        port: u16,
        allow_private: bool,
    ) -> Result<DialedConnection, RefusalCause> {
        let addresses = match host {
            Host::Address(address) => vec![*address],
            Host::Name(name) => match self.policy.resolve_override(name, port) {
                // Set by the operator: exempt from the check.
                Some(address) => return connect_to(&[address]).await,
                None => self.resolve(name).await?,
            },
        };
        self.check_all(&addresses, allow_private)?;
        connect_to(&with_port(&addresses, port)).await
    }

    async fn dial_parent(&self, parent: &ParentProxy) -> Result<DialedConnection, RefusalCause> {
        let addresses = match &parent.host {
            Host::Address(address) => vec![*address],
            Host::Name(name) => {
                self.resolve(name).await.map_err(|cause| as_parent_failure(&cause))?
            }
        };
        let addresses = with_port(&addresses, parent.port);
        let dialed = connect_to(&addresses).await.map_err(|cause| as_parent_failure(&cause))?;
        Ok(DialedConnection { peer: Peer::Parent(parent.host.to_string()), ..dialed })
    }

    async fn resolve(&self, name: &HostName) -> Result<Vec<IpAddr>, RefusalCause> {
        let addresses = self.resolver.resolve(name).await.map_err(|error| match error {
            ResolveError::NotFound => RefusalCause::NoSuchName,
            ResolveError::Failed(why) => RefusalCause::Resolve(why),
        })?;
        if addresses.is_empty() {
            return Err(RefusalCause::Resolve("the name has no address".into()));
        }
        Ok(addresses)
    }
}

/// Converts a failure of the connection to the parent.
fn as_parent_failure(cause: &RefusalCause) -> RefusalCause {
    RefusalCause::Parent(cause.to_string())
}

fn with_port(addresses: &[IpAddr], port: u16) -> Vec<SocketAddr> {
    addresses.iter().map(|address| SocketAddr::new(*address, port)).collect()
}

async fn connect_to(addresses: &[SocketAddr]) -> Result<DialedConnection, RefusalCause> {
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::ConnectionRefused => RefusalCause::ConnectRefused,
        _ => RefusalCause::Connect(error.to_string()),
    };
    let (stream, address) = connect::connect_any(addresses).await.map_err(failed)?;
    Ok(DialedConnection { stream, peer: Peer::Direct(address) })
}

#[cfg(test)]
#[path = "dial_tests.rs"]
mod tests;

//! Connections to the outside: to a checked address of a name, or through a parent proxy.
//!
//! A name is resolved once; where any of its addresses may not be dialled, none is, and those that
//! are dialled are those that were checked.

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
pub use resolve::{Lookup, Resolve, SystemResolver, SystemResolverError, Unresolved};

use super::address::AddressCheck;
use super::host::{Host, HostName};
use super::policy::{Parent, Policy};
use super::record::Peer;
use super::verdict::Cause;

/// How long the host's resolver has to say what it knows of a name that goes to the parent.
const PARENT_CHECK: Duration = Duration::from_secs(1);

/// How long a guest's lookup may take; resolvers ask again after five seconds.
const LOOKUP: Duration = Duration::from_secs(4);

/// Makes connections to the outside for one microVM.
pub struct Dialer {
    policy: Arc<Policy>,
    addresses: AddressCheck,
    resolver: Arc<dyn Resolve>,
    authorization: Option<SecretString>,
    deadline: Duration,
}

/// A connection to the outside.
#[derive(Debug)]
pub struct Dialled {
    /// The connection.
    pub stream: TcpStream,
    /// Whom it goes to.
    pub peer: Peer,
}

/// How plain HTTP requests reach their origin.
#[derive(Debug)]
pub enum HttpRoute {
    /// The connection is to the origin: requests name a path.
    Origin(Dialled),
    /// The connection is to the parent: requests name a whole URL.
    Parent {
        /// The connection.
        dialled: Dialled,
        /// The `Proxy-Authorization` to send along.
        authorization: Option<SecretString>,
    },
}

impl HttpRoute {
    /// The connection.
    pub fn dialled(&self) -> &Dialled {
        match self {
            Self::Origin(dialled) | Self::Parent { dialled, .. } => dialled,
        }
    }
}

impl Dialer {
    /// Reads the parent's credentials, where there are some. `deadline` is for each connection, from
    /// the lookup to the answer.
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
    ) -> Result<Dialled, Cause> {
        self.in_time(async {
            match self.parent_for(host, port)? {
                Some(parent) => {
                    self.check_for_parent(host, allow_private).await?;
                    let mut dialled = self.dial_parent(parent).await?;
                    let authorization = self.authorization.as_ref();
                    parent::open_tunnel(&mut dialled.stream, host, port, authorization).await?;
                    Ok(dialled)
                }
                None => self.dial_directly(host, port, allow_private).await,
            }
        })
        .await
    }

    /// Connects to where plain HTTP requests for a destination go. Proxies rarely grant tunnels to
    /// port 80, so a parent gets the requests themselves.
    pub async fn dial_http(
        &self,
        host: &Host,
        port: u16,
        allow_private: bool,
    ) -> Result<HttpRoute, Cause> {
        self.in_time(async {
            match self.parent_for(host, port)? {
                Some(parent) => {
                    self.check_for_parent(host, allow_private).await?;
                    Ok(HttpRoute::Parent {
                        dialled: self.dial_parent(parent).await?,
                        authorization: self.authorization.clone(),
                    })
                }
                None => self.dial_directly(host, port, allow_private).await.map(HttpRoute::Origin),
            }
        })
        .await
    }

    async fn in_time<T>(
        &self,
        dialling: impl Future<Output = Result<T, Cause>>,
    ) -> Result<T, Cause> {
        timeout(self.deadline, dialling).await.unwrap_or(Err(Cause::ConnectDeadline))
    }

    /// The parent, unless the operator said where the name is. An address that the guest named is
    /// checked here: the parent is closer to the host's network than the guest may be.
    fn parent_for(&self, host: &Host, port: u16) -> Result<Option<&Parent>, Cause> {
        match host {
            Host::Name(name) if self.policy.resolve_override(name, port).is_some() => Ok(None),
            Host::Name(_) => Ok(self.policy.parent.as_ref()),
            Host::Address(address) => {
                // A literal has no rule: whether it may be private was decided by the policy.
                self.addresses.check(*address, true).map_err(Cause::Address)?;
                Ok(self.policy.parent.as_ref())
            }
        }
    }

    /// Checks what this host knows of a name before the parent gets it. A host behind a proxy often
    /// knows no public name: what it can't say in time is left to the parent.
    async fn check_for_parent(&self, host: &Host, allow_private: bool) -> Result<(), Cause> {
        let Host::Name(name) = host else { return Ok(()) };
        let Ok(Ok(addresses)) = timeout(PARENT_CHECK, self.resolver.resolve(name)).await else {
            return Ok(());
        };
        self.check_all(&addresses, allow_private)
    }

    fn check_all(&self, addresses: &[IpAddr], allow_private: bool) -> Result<(), Cause> {
        addresses.iter().try_for_each(|address| {
            self.addresses.check(*address, allow_private).map_err(Cause::Address)
        })
    }

    /// Whether a name that may be looked up leads anywhere, as far as this host can say: the cause
    /// where it doesn't. Where a parent resolves, or the operator said where the name is, it does.
    pub async fn look_up(&self, name: &HostName, allow_private: bool) -> Result<(), Cause> {
        if self.policy.parent.is_some() || self.policy.has_override(name) {
            return Ok(());
        }
        let addresses = timeout(LOOKUP, self.resolve(name)).await.unwrap_or_else(|_| {
            Err(Cause::Resolve("the resolver did not answer in time".into()))
        })?;
        self.check_all(&addresses, allow_private)
    }

    async fn dial_directly(
        &self,
        host: &Host,
        port: u16,
        allow_private: bool,
    ) -> Result<Dialled, Cause> {
        let addresses = match host {
            Host::Address(address) => vec![*address],
            Host::Name(name) => match self.policy.resolve_override(name, port) {
                // The operator's word: not subject to the check.
                Some(address) => return connect_to(&[address]).await,
                None => self.resolve(name).await?,
            },
        };
        self.check_all(&addresses, allow_private)?;
        connect_to(&with_port(&addresses, port)).await
    }

    async fn dial_parent(&self, parent: &Parent) -> Result<Dialled, Cause> {
        let addresses = match &parent.host {
            Host::Address(address) => vec![*address],
            Host::Name(name) => self.resolve(name).await.map_err(|cause| as_parents(&cause))?,
        };
        let addresses = with_port(&addresses, parent.port);
        let dialled = connect_to(&addresses).await.map_err(|cause| as_parents(&cause))?;
        Ok(Dialled { peer: Peer::Parent(parent.host.to_string()), ..dialled })
    }

    async fn resolve(&self, name: &HostName) -> Result<Vec<IpAddr>, Cause> {
        let addresses = self.resolver.resolve(name).await.map_err(|error| match error {
            Unresolved::Missing => Cause::NoSuchName,
            Unresolved::Failed(why) => Cause::Resolve(why),
        })?;
        if addresses.is_empty() {
            return Err(Cause::Resolve("it has no address".into()));
        }
        Ok(addresses)
    }
}

/// A failure on the way to the parent is the parent's.
fn as_parents(cause: &Cause) -> Cause {
    Cause::Parent(cause.to_string())
}

fn with_port(addresses: &[IpAddr], port: u16) -> Vec<SocketAddr> {
    addresses.iter().map(|address| SocketAddr::new(*address, port)).collect()
}

async fn connect_to(addresses: &[SocketAddr]) -> Result<Dialled, Cause> {
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::ConnectionRefused => Cause::ConnectRefused,
        _ => Cause::Connect(error.to_string()),
    };
    let (stream, address) = connect::connect_any(addresses).await.map_err(failed)?;
    Ok(Dialled { stream, peer: Peer::Direct(address) })
}

#[cfg(test)]
#[path = "dial_tests.rs"]
mod tests;

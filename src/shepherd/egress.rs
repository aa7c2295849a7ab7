//! The gate of this microVM's network: made of the plan's policy, served beside everything else.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;

use mayfly_protocol::message::{Bytes, NO_PROXY};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::plan::Plan;
use crate::egress::address::{AddressCheck, of_this_host};
use crate::egress::dial::{CredentialsError, Lookup, Resolve, SystemResolver, Unresolved};
use crate::egress::host::HostName;
use crate::egress::policy::{Mode, Policy};
use crate::egress::record::{Identity, Rate, RecordError, Recorder, Report};
use crate::egress::{Gate, Limits, ListenError, Listeners, PROXY_PORT, Settings};
use crate::failure::{Code, Failure, chain};
use crate::network;

/// Rows of the report that go into the record of the microVM; all are in the egress record.
const ROWS: usize = 512;

/// How often what was reached is told before the end, and how many rows of it: what a guest can make
/// of the microVM's record has a bound.
const TELLINGS: u32 = 32;
const ROWS_BEFORE_THE_END: usize = 64;

/// Egress could not be made, or its sockets failed. Nothing leaves the microVM then.
#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    /// A listener was refused.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The parent proxy's credentials can't be read.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The record can't be begun.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The host's own addresses, which are never to be reached, are not known.
    #[error("can't list the addresses of this host")]
    Addresses(#[source] io::Error),
    /// A socket failed while it was served.
    #[error("the microVM's sockets can't be served")]
    Served(#[source] io::Error),
}

impl Failure for EgressError {
    fn code(&self) -> Code {
        match self {
            Self::Listen(error) => error.code(),
            Self::Credentials(error) => error.code(),
            Self::Record(error) => error.code(),
            Self::Addresses(_) | Self::Served(_) => Code::MachineFailed,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Listen(error) => error.hint(),
            Self::Credentials(error) => error.hint(),
            _ => None,
        }
    }
}

/// The gate, being served.
pub(super) struct Egress {
    recorder: Recorder,
    cancel: CancellationToken,
    gate: JoinSet<io::Result<()>>,
    /// Rows that were begun when it was last told, and how often it may still be.
    told: u64,
    tellings: u32,
}

impl Egress {
    /// Begins to serve the namespace's listeners.
    pub(super) fn serve(plan: &Plan, listeners: Listeners) -> Result<Self, EgressError> {
        let own = of_this_host().map_err(|error| EgressError::Addresses(error.into()))?;
        let identity = Identity {
            microvm: plan.id.to_string(),
            policy: plan.egress.name.clone(),
            guest: network::GUEST,
        };
        let recorder = Recorder::create(&plan.egress_record, identity, Rate::default())?;
        let settings = Settings {
            policy: Arc::new(plan.egress.clone()),
            resolver: resolver(),
            addresses: AddressCheck::new(own),
            limits: Limits::default(),
            gateway: network::GATEWAY,
        };
        let gate = Gate::new(settings, recorder.clone())?;
        let (cancel, mut tasks) = (CancellationToken::new(), JoinSet::new());
        tasks.spawn(gate.serve(listeners, cancel.clone()));
        Ok(Self { recorder, cancel, gate: tasks, told: 0, tellings: TELLINGS })
    }

    /// What there was so far, where there is a row that was not told.
    pub(super) fn news(&mut self) -> Option<Report> {
        let rows = self.recorder.begun();
        if rows == self.told {
            return None;
        }
        self.tellings = self.tellings.checked_sub(1)?;
        self.told = rows;
        Some(self.recorder.report_in(ROWS_BEFORE_THE_END))
    }

    /// Ends every connection; tells what there was of them.
    pub(super) async fn close(mut self) -> Report {
        self.cancel.cancel();
        while self.gate.join_next().await.is_some() {}
        self.recorder.report_in(ROWS)
    }
}

/// The listeners in the microVM's namespace; to be called inside it.
pub(super) fn listen(policy: &Policy, gateway: Ipv4Addr) -> Result<Listeners, EgressError> {
    Ok(crate::egress::listen(policy, gateway)?)
}

/// Waits for the gate, if there is one, to fail. Nothing is lost where the wait is given up.
pub(super) async fn failed(egress: &mut Option<Egress>) -> EgressError {
    let Some(egress) = egress else { return std::future::pending().await };
    match egress.gate.join_next().await {
        Some(Ok(Err(error))) => EgressError::Served(error),
        Some(Err(error)) => EgressError::Served(error.into()),
        // It has been told to end, or has ended and said so before.
        Some(Ok(Ok(()))) | None => std::future::pending().await,
    }
}

/// The variables by which programs in the guest find the forward proxy; none where it refuses
/// everything anyway.
pub(super) fn variables(plan: &Plan) -> Vec<(Bytes, Bytes)> {
    if plan.egress.mode == Mode::None {
        return Vec::new();
    }
    let proxy = format!("http://{}:{PROXY_PORT}", network::GATEWAY);
    let direct = inside(&plan.id.to_string());
    let values = [("http_proxy", &proxy), ("https_proxy", &proxy), ("no_proxy", &direct)];
    // Programs disagree about the case.
    let both = |(name, value): (&str, &String)| {
        [name.to_owned(), name.to_uppercase()]
            .map(|name| (name.into_bytes().into(), value.clone().into_bytes().into()))
    };
    values.into_iter().flat_map(both).collect()
}

/// What programs in the guest reach without the proxy: loopback, the guest itself, networks of
/// containers. Clients that know no ranges get the addresses that containers have first. The agent
/// adds the names in the guest's own `/etc/hosts`. A private address outside goes the way of any
/// connection, so nothing passes the policy by being named here.
fn inside(hostname: &str) -> String {
    const RANGES: [&str; 4] = ["127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"];
    const DOCKER: [&str; 4] = ["172.17.0", "172.18.0", "172.19.0", "172.20.0"];
    let mut direct: Vec<String> = NO_PROXY.split(',').map(str::to_owned).collect();
    // Some clients keep the brackets of an address, some want the dot before a suffix; the last one is
    // where the agent puts the guest's own name, for those that know no ranges.
    let own = ["[::1]", ".localhost", "ip6-localhost", "0.0.0.0", "127.0.1.1"];
    direct.extend(own.map(str::to_owned));
    direct.extend([hostname.to_owned(), format!("{hostname}.local"), network::GUEST.to_string()]);
    direct.extend(RANGES.map(str::to_owned));
    for network in DOCKER {
        direct.extend((1..=9).map(|host| format!("{network}.{host}")));
    }
    direct.join(",")
}

/// The host's resolver. Where its configuration is no good, every lookup fails and says so.
fn resolver() -> Arc<dyn Resolve> {
    match SystemResolver::new() {
        Ok(resolver) => Arc::new(resolver),
        Err(error) => Arc::new(NoResolver(chain(&error))),
    }
}

struct NoResolver(String);

impl Resolve for NoResolver {
    fn resolve<'a>(&'a self, _name: &'a HostName) -> Lookup<'a> {
        Box::pin(async { Err(Unresolved::Failed(self.0.clone())) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_inside_is_reached_without_the_proxy() {
        let direct = inside("m-1");
        assert!(direct.starts_with(NO_PROXY));
        let entries: Vec<_> = direct.split(',').collect();
        for entry in [
            "localhost",
            ".localhost",
            "127.0.0.1",
            "127.0.0.0/8",
            "127.0.1.1",
            "::1",
            "[::1]",
            "m-1",
            "172.31.0.2",
            "172.16.0.0/12",
            "172.17.0.1",
            "172.18.0.2",
        ] {
            assert!(entries.contains(&entry), "{entry}: {direct}");
        }
        assert!(!direct.contains(' ') && !direct.contains('*'), "{direct}");
    }
}

//! The egress gate of one microVM, configured from its plan.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;

use mayfly_protocol::message::{Bytes, NO_PROXY};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::plan::MicrovmPlan;
use mayfly_egress::address::{AddressCheck, host_addresses};
use mayfly_egress::dial::{CredentialsError, Lookup, Resolve, ResolveError, SystemResolver};
use mayfly_egress::host::HostName;
use mayfly_egress::policy::{Policy, PolicyMode};
use mayfly_egress::record::{
    EgressRecorder, EgressReport, RecordError, RecordIdentity, RecordLimits,
};
use mayfly_egress::{Gate, GateLimits, GateSettings, ListenError, Listeners, PROXY_PORT};
use mayfly_failure::{Code, Failure, chain};

/// Maximum number of rows of the final report. The egress record has all of them.
const FINAL_ROWS: usize = 512;

/// Maximum number of interim reports, and of their rows. This bounds what a guest can add to the
/// microVM's record.
const MAX_INTERIM_REPORTS: u32 = 32;
const INTERIM_ROWS: usize = 64;

/// An error of setting up or serving egress. Nothing leaves the microVM then.
#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    /// A listener could not be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The parent proxy's credentials can't be read.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The record can't be created.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The host's own addresses, which are always refused, can't be listed.
    #[error("can't list the addresses of this host")]
    Addresses(#[source] io::Error),
    /// A socket failed.
    #[error("a socket of the egress gate failed")]
    Serve(#[source] io::Error),
}

impl Failure for EgressError {
    fn code(&self) -> Code {
        match self {
            Self::Listen(error) => error.code(),
            Self::Credentials(error) => error.code(),
            Self::Record(error) => error.code(),
            Self::Addresses(_) | Self::Serve(_) => Code::MachineFailed,
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

/// The running gate.
pub(super) struct Egress {
    recorder: EgressRecorder,
    cancel: CancellationToken,
    gate: JoinSet<io::Result<()>>,
    /// Rows at the time of the last report.
    reported_rows: u64,
    interim_reports_left: u32,
}

impl Egress {
    /// Starts to serve the namespace's listeners.
    pub(super) fn serve(plan: &MicrovmPlan, listeners: Listeners) -> Result<Self, EgressError> {
        let own = host_addresses().map_err(|error| EgressError::Addresses(error.into()))?;
        let identity = RecordIdentity {
            microvm: plan.id.to_string(),
            policy: plan.egress.name.clone(),
            guest: mayfly_network::GUEST,
        };
        let recorder =
            EgressRecorder::create(&plan.egress_record, identity, RecordLimits::default())?;
        let settings = GateSettings {
            policy: Arc::new(plan.egress.clone()),
            resolver: resolver(),
            addresses: AddressCheck::new(own),
            limits: GateLimits::default(),
            gateway: mayfly_network::GATEWAY,
        };
        let gate = Gate::new(settings, recorder.clone())?;
        let (cancel, mut tasks) = (CancellationToken::new(), JoinSet::new());
        tasks.spawn(gate.serve(listeners, cancel.clone()));
        Ok(Self {
            recorder,
            cancel,
            gate: tasks,
            reported_rows: 0,
            interim_reports_left: MAX_INTERIM_REPORTS,
        })
    }

    /// Returns an interim report if there are new rows.
    pub(super) fn new_report(&mut self) -> Option<EgressReport> {
        let rows = self.recorder.rows_started();
        if rows == self.reported_rows {
            return None;
        }
        self.interim_reports_left = self.interim_reports_left.checked_sub(1)?;
        self.reported_rows = rows;
        Some(self.recorder.report_with_limit(INTERIM_ROWS))
    }

    /// Ends all connections and returns the final report.
    pub(super) async fn close(mut self) -> EgressReport {
        self.cancel.cancel();
        while self.gate.join_next().await.is_some() {}
        self.recorder.report_with_limit(FINAL_ROWS)
    }
}

/// Opens the gate's listeners. Must be called inside the microVM's namespace.
pub(super) fn listen(policy: &Policy, gateway: Ipv4Addr) -> Result<Listeners, EgressError> {
    Ok(mayfly_egress::listen(policy, gateway)?)
}

/// Waits until the gate, if there is one, fails. Cancel-safe.
pub(super) async fn wait_for_failure(egress: &mut Option<Egress>) -> EgressError {
    let Some(egress) = egress else { return std::future::pending().await };
    match egress.gate.join_next().await {
        Some(Ok(Err(error))) => EgressError::Serve(error),
        Some(Err(error)) => EgressError::Serve(error.into()),
        // It ended on request, or its error was returned before.
        Some(Ok(Ok(()))) | None => std::future::pending().await,
    }
}

/// Returns the variables with which programs in the guest find the forward proxy. Empty if the
/// policy refuses everything.
pub(super) fn proxy_variables(plan: &MicrovmPlan) -> Vec<(Bytes, Bytes)> {
    if plan.egress.mode == PolicyMode::None {
        return Vec::new();
    }
    let proxy = format!("http://{}:{PROXY_PORT}", mayfly_network::GATEWAY);
    let direct = proxy_exceptions(&plan.id.to_string());
    let values = [("http_proxy", &proxy), ("https_proxy", &proxy), ("no_proxy", &direct)];
    // Some programs read lower case, some upper case.
    let both = |(name, value): (&str, &String)| {
        [name.to_owned(), name.to_uppercase()]
            .map(|name| (name.into_bytes().into(), value.clone().into_bytes().into()))
    };
    values.into_iter().flat_map(both).collect()
}

/// Returns the value of `no_proxy`: loopback, the guest itself, and container networks. For clients
/// that do not support ranges it lists the first addresses of container networks. The agent adds
/// the names in the guest's `/etc/hosts`. The policy still applies to private addresses outside the
/// guest, so this list lets nothing pass.
fn proxy_exceptions(hostname: &str) -> String {
    const RANGES: [&str; 4] = ["127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"];
    const DOCKER: [&str; 4] = ["172.17.0", "172.18.0", "172.19.0", "172.20.0"];
    let mut direct: Vec<String> = NO_PROXY.split(',').map(str::to_owned).collect();
    // Some clients keep the brackets of an address, some need the dot before a suffix. The agent
    // maps the guest's own name to the last address, for clients that do not support ranges.
    let own = ["[::1]", ".localhost", "ip6-localhost", "0.0.0.0", "127.0.1.1"];
    direct.extend(own.map(str::to_owned));
    direct.extend([
        hostname.to_owned(),
        format!("{hostname}.local"),
        mayfly_network::GUEST.to_string(),
    ]);
    direct.extend(RANGES.map(str::to_owned));
    for network in DOCKER {
        direct.extend((1..=9).map(|host| format!("{network}.{host}")));
    }
    direct.join(",")
}

/// Returns the host's resolver. If its configuration is invalid, every lookup fails with the error.
fn resolver() -> Arc<dyn Resolve> {
    match SystemResolver::new() {
        Ok(resolver) => Arc::new(resolver),
        Err(error) => Arc::new(NoResolver(chain(&error))),
    }
}

struct NoResolver(String);

impl Resolve for NoResolver {
    fn resolve<'a>(&'a self, _name: &'a HostName) -> Lookup<'a> {
        Box::pin(async { Err(ResolveError::Failed(self.0.clone())) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_destinations_are_reached_without_the_proxy() {
        let direct = proxy_exceptions("m-1");
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

//! Inspects and forwards the first bytes of an allowed connection, or all of them where a `deny`
//! rule applies to each request.

use std::io;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::connection::{BufferedOpening, ConnectionPlan, read_opening, read_some};
use super::host::{Host, HostName};
use super::http::{HttpObserver, SpokenProtocol};
use super::opening::{ClientOpening, OpeningReader, SecondHello};
use super::policy::{ExpectedProtocol, Inspection};
use super::record::Flow;
use super::state::GateState;
use super::tunnel::{TunnelError, count_bytes, write_all};
use super::verdict::{RefusalCause, Verdict};

/// Inspects and forwards a guest's first bytes.
pub(super) struct OpeningFilter<'a> {
    pub(super) shared: &'a GateState,
    pub(super) guest: &'a TcpStream,
    pub(super) destination: &'a TcpStream,
    pub(super) plan: &'a ConnectionPlan,
    pub(super) flow: &'a mut Flow,
}

impl OpeningFilter<'_> {
    /// Forwards a checked hello, and checks a second one, too. The bytes after the first are held
    /// back until it is known whether the server requests another.
    pub(super) async fn forward_hello(
        &mut self,
        hello: BufferedOpening,
        mut retry_requested: watch::Receiver<Option<bool>>,
    ) -> Result<(), TunnelError> {
        self.forward(&hello.checked).await?;
        // Until the server responds, its client sends nothing but early data, which is held back.
        let is_retry = retry_requested
            .wait_for(Option::is_some)
            .await
            .map(|requested| *requested == Some(true));
        // The sender is dropped only if the connection is closed.
        if !matches!(is_retry, Ok(true)) {
            return self.forward(&hello.following).await;
        }
        let mut second = SecondHello::default();
        let mut next = hello.following;
        let deadline = Instant::now() + self.shared.limits.opening;
        loop {
            if let Some(opening) = second.feed(&next) {
                self.check_hello(&opening)?;
                return self.forward(&second.into_parts()).await;
            }
            let read = timeout_at(deadline, read_some(self.guest)).await;
            next = read.map_err(|_| RefusalCause::ClientDeadline)?.map_err(guest_error)?;
            if next.is_empty() {
                return Ok(());
            }
        }
    }

    /// Checks a `ClientHello`: against the connection's name if it must match, else against the
    /// `deny` rules for the name that it contains.
    fn check_hello(&mut self, opening: &ClientOpening) -> Result<(), RefusalCause> {
        match (self.plan.inspection, opening) {
            (Inspection::Enforce(_), _) => opening.check(ExpectedProtocol::Tls, &self.plan.host),
            (_, ClientOpening::BadTls(why)) => Err(RefusalCause::ClientHello(why.clone())),
            (_, ClientOpening::Tls(_)) => self.check_opening(opening, None),
            (_, ClientOpening::Other) => Err(RefusalCause::NotTls),
        }
    }

    /// Holds the first bytes back until they are known to be another protocol, or TLS for the name.
    /// A client may wait for the destination's greeting as long as it likes; once it has started a
    /// `ClientHello` it must complete it in time.
    pub(super) async fn hold_until_checked(
        &mut self,
        retry_requested: watch::Receiver<Option<bool>>,
    ) -> Result<(), TunnelError> {
        self.guest.readable().await.map_err(guest_error)?;
        let (opening, hello) = match read_opening(self.shared, self.guest, &[]).await {
            Ok(found) => found,
            // It sent nothing: the other direction may still be active.
            Err(RefusalCause::ClientGone) => return Ok(()),
            Err(cause) => return Err(cause.into()),
        };
        opening.check(ExpectedProtocol::TlsForNameOrOther, &self.plan.host)?;
        self.record_server_name(&opening);
        match opening {
            ClientOpening::Tls(_) => self.forward_hello(hello, retry_requested).await,
            _ => self.forward(&hello.checked).await,
        }
    }

    /// Forwards bytes on a port with `deny` rules: no hello and no request may name a denied host.
    /// Ambiguous HTTP is not forwarded.
    pub(super) async fn forward_unless_denied(
        &mut self,
        retry_requested: watch::Receiver<Option<bool>>,
    ) -> Result<(), TunnelError> {
        let first = read_some(self.guest).await.map_err(guest_error)?;
        if first.is_empty() {
            return Ok(());
        }
        let (opening, hello) = read_opening(self.shared, self.guest, &first).await?;
        if opening == ClientOpening::Other {
            return self.forward_unless_http(hello.checked, retry_requested).await;
        }
        self.check_hello(&opening)?;
        self.forward_hello(hello, retry_requested).await
    }

    /// Forwards bytes that are not TLS: HTTP after each request was checked, another protocol once
    /// it can't be HTTP. `server_opening` changes when the server has sent something.
    async fn forward_unless_http(
        &mut self,
        first: Vec<u8>,
        mut server_opening: watch::Receiver<Option<bool>>,
    ) -> Result<(), TunnelError> {
        let mut observer = HttpObserver::default();
        let mut next = first;
        let deadline = Instant::now() + self.shared.limits.opening;
        loop {
            for name in observer.feed(&next)? {
                self.flow.set_server_name(&name);
                self.check_denied(name)?;
            }
            self.forward(&observer.take_released()).await?;
            next = match observer.protocol() {
                Some(SpokenProtocol::Other) => return Ok(()),
                Some(SpokenProtocol::OtherSoFar) => tokio::select! {
                    // No server answers half a request line.
                    _ = server_opening.changed() => return Ok(()),
                    read = read_some(self.guest) => read.map_err(guest_error)?,
                },
                Some(SpokenProtocol::Http) => read_some(self.guest).await.map_err(guest_error)?,
                None => {
                    let read = timeout_at(deadline, read_some(self.guest)).await;
                    read.map_err(|_| RefusalCause::ClientDeadline)?.map_err(guest_error)?
                }
            };
            if next.is_empty() {
                return Ok(());
            }
        }
    }

    /// Forwards the first bytes as they arrive, and checks them for the record and against `deny`
    /// rules.
    pub(super) async fn observe(
        &mut self,
        expected: Option<ExpectedProtocol>,
    ) -> Result<(), TunnelError> {
        let (mut reader, mut observer) = (OpeningReader::new(), HttpObserver::default());
        let mut is_tls = true;
        loop {
            let bytes = read_some(self.guest).await.map_err(guest_error)?;
            if bytes.is_empty() {
                return Ok(());
            }
            let opening = if is_tls { reader.feed(&bytes) } else { None };
            // The first two bytes decide it; the first may have been read before.
            let is_other = opening == Some(ClientOpening::Other);
            is_tls &= !is_other;
            let is_known = if is_tls {
                opening.map(|opening| self.check_opening(&opening, expected)).transpose()?.is_some()
            } else {
                let seen = std::mem::take(&mut reader).into_parts().0;
                observer
                    .feed_first(if is_other { &seen } else { &bytes })
                    .map(|first| self.check_first_request(first, expected))
                    .is_some()
            };
            self.forward(&bytes).await?;
            if is_known {
                return Ok(());
            }
        }
    }

    /// Records the names in a first request, if it is HTTP, and marks what `enforce` would refuse.
    fn check_first_request(
        &mut self,
        first: Result<Vec<HostName>, RefusalCause>,
        expected: Option<ExpectedProtocol>,
    ) {
        for name in first.iter().flatten() {
            self.flow.set_server_name(name);
        }
        let named = self.plan.host.name();
        let is_other = |name: &&HostName| named != Some(*name);
        let cause = match (expected, first) {
            (Some(ExpectedProtocol::Tls), _) => RefusalCause::NotTls,
            (Some(ExpectedProtocol::Http), Err(cause)) => cause,
            (Some(ExpectedProtocol::Http), Ok(names)) => match names.iter().find(is_other) {
                Some(other) => RefusalCause::HostMismatch(other.to_string()),
                None => return,
            },
            (Some(ExpectedProtocol::TlsForNameOrOther) | None, _) => return,
        };
        if named.is_some() {
            self.flow.record_verdict(&Verdict::WouldRefuse(cause));
        }
    }

    fn check_opening(
        &mut self,
        opening: &ClientOpening,
        expected: Option<ExpectedProtocol>,
    ) -> Result<(), RefusalCause> {
        self.record_server_name(opening);
        if let Some(expected) = expected
            && self.plan.host.name().is_some()
            && let Err(cause) = opening.check(expected, &self.plan.host)
        {
            self.flow.record_verdict(&Verdict::WouldRefuse(cause));
        }
        opening.server_name().map_or(Ok(()), |name| self.check_denied(name))
    }

    /// Checks the name that the client uses against the `deny` rules: where rules decide only in
    /// part by name, it counts as well as the address of the connection.
    fn check_denied(&self, name: HostName) -> Result<(), RefusalCause> {
        match self.shared.policy.decide(&Host::Name(name), self.plan.port).verdict {
            Verdict::Refused(cause @ RefusalCause::Denied(_)) => Err(cause),
            _ => Ok(()),
        }
    }

    fn record_server_name(&mut self, opening: &ClientOpening) {
        if let Some(name) = opening.server_name() {
            self.flow.set_server_name(&name);
        }
    }

    async fn forward(&mut self, bytes: &[u8]) -> Result<(), TunnelError> {
        let all = self.flow.bytes();
        count_bytes(&all.up, bytes.len(), &all, self.plan.max_bytes)?;
        self.plan.wait_for_rate(bytes.len()).await;
        let written = write_all(self.destination, bytes).await;
        written.map_err(|source| TunnelError::Io { side: "destination", source })
    }
}

fn guest_error(source: io::Error) -> TunnelError {
    TunnelError::Io { side: "guest", source }
}

//! One allowed connection: inspects its first bytes as the policy requires and relays the rest.

use std::future::ready;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::dial::DialedConnection;
use super::host::{Host, HostName};
use super::http::{HttpObserver, SpokenProtocol};
use super::opening::{ClientOpening, OpeningReader, RetryDetector, SecondHello};
use super::policy::{ExpectedProtocol, Inspection, PolicyDecision};
use super::rate_limiter::RateLimiter;
use super::record::{ByteCounters, Flow, Subject};
use super::state::GateState;
use super::tunnel::{Relay, TunnelError, write_all};
use super::verdict::{RefusalCause, Verdict};

/// The first byte of TLS: the content type of handshake records.
const TLS: u8 = 22;

/// Read size while inspecting the first bytes.
const CHUNK: usize = 4 << 10;

/// A connection with the policy's decision.
pub(super) struct ConnectionPlan {
    pub(super) host: Host,
    pub(super) port: u16,
    pub(super) subject: Subject,
    pub(super) verdict: Verdict,
    pub(super) rule: Option<String>,
    pub(super) allow_private: bool,
    pub(super) inspection: Inspection,
    pub(super) max_bytes: Option<u64>,
    pub(super) rate_limiter: Option<Arc<RateLimiter>>,
}

impl ConnectionPlan {
    pub(super) fn new(
        shared: &GateState,
        (host, port): (Host, u16),
        subject: Subject,
        decision: PolicyDecision<'_>,
    ) -> Self {
        let PolicyDecision { verdict, rule, allow_private, inspection, max_bytes } = decision;
        let rate_limiter = rule.and_then(|rule| shared.rate_limiters.get(&rule.origin)).cloned();
        let rule = rule.map(ToString::to_string);
        Self {
            host,
            port,
            subject,
            verdict,
            rule,
            allow_private,
            inspection,
            max_bytes,
            rate_limiter,
        }
    }

    /// Starts the record of the connection.
    pub(super) fn start_flow(&self, shared: &GateState) -> Flow {
        shared.recorder.start_flow(self.subject.clone(), self.verdict.clone(), self.rule.clone())
    }

    /// Waits until the rate limit admits the bytes.
    pub(super) async fn wait_for_rate(&self, bytes: usize) {
        if let Some(rate_limiter) = &self.rate_limiter {
            rate_limiter.wait(bytes).await;
        }
    }

    /// Records that the connection is refused.
    pub(super) fn refuse(&self, shared: &GateState, cause: RefusalCause) {
        let verdict = Verdict::Refused(cause);
        shared.recorder.record_verdict(self.subject.clone(), &verdict, self.rule.as_deref());
    }
}

/// A client's first bytes, read from its connection.
#[derive(Debug, Default)]
pub(super) struct BufferedOpening {
    /// The bytes that were checked.
    checked: Vec<u8>,
    /// Bytes received after a `ClientHello`. They are held back until the server's response is
    /// known.
    following: Vec<u8>,
}

impl BufferedOpening {
    fn from_reader(reader: OpeningReader) -> Self {
        let (checked, following) = reader.into_parts();
        Self { checked, following }
    }
}

/// Reads a client's first bytes until it is known whether they are TLS and for which server.
/// `first` was read already. The bytes are consumed from the connection.
async fn read_opening(
    shared: &GateState,
    guest: &TcpStream,
    first: &[u8],
) -> Result<(ClientOpening, BufferedOpening), RefusalCause> {
    let mut reader = OpeningReader::new();
    if let Some(opening) = reader.feed(first) {
        return Ok((opening, BufferedOpening::from_reader(reader)));
    }
    let deadline = Instant::now() + shared.limits.opening;
    loop {
        match timeout_at(deadline, read_some(guest)).await {
            Err(_) => return Err(RefusalCause::ClientDeadline),
            Ok(Err(_)) => return Err(RefusalCause::ClientGone),
            Ok(Ok(bytes)) if bytes.is_empty() => return Err(RefusalCause::ClientGone),
            Ok(Ok(bytes)) => {
                if let Some(opening) = reader.feed(&bytes) {
                    return Ok((opening, BufferedOpening::from_reader(reader)));
                }
            }
        }
    }
}

/// Reads a client's first bytes if they must be TLS for the name. When this fails, nothing was sent
/// to the destination.
pub(super) async fn read_hello(
    shared: &GateState,
    guest: &TcpStream,
    plan: &ConnectionPlan,
) -> Result<BufferedOpening, RefusalCause> {
    if plan.inspection != Inspection::Enforce(ExpectedProtocol::Tls) {
        return Ok(BufferedOpening::default());
    }
    let (opening, hello) = read_opening(shared, guest, &[]).await?;
    opening.check(ExpectedProtocol::Tls, &plan.host)?;
    Ok(hello)
}

/// Relays a connection until both sides are done. `hello` was read already.
pub(super) async fn relay_connection(
    shared: &GateState,
    guest: &TcpStream,
    dialed: DialedConnection,
    hello: BufferedOpening,
    plan: &ConnectionPlan,
    mut flow: Flow,
) {
    flow.set_peer(dialed.peer);
    let destination = dialed.stream;
    let bytes = flow.bytes();
    let limits = shared.tunnel_limits(plan.max_bytes, plan.rate_limiter.clone());
    let (retry_sender, retry_requested) = watch::channel(None);
    let response = forward_server_opening(&destination, guest, (&bytes, plan), retry_sender);
    let mut filter =
        OpeningFilter { shared, guest, destination: &destination, plan, flow: &mut flow };
    let relay = Relay { guest, destination: &destination, bytes: &bytes, limits: &limits };
    let result = match plan.inspection {
        Inspection::Skip | Inspection::Enforce(ExpectedProtocol::Http) => {
            relay.run(ready(Ok(())), ready(Ok(()))).await
        }
        Inspection::Enforce(ExpectedProtocol::Tls) => {
            relay.run(filter.forward_hello(hello, retry_requested), response).await
        }
        Inspection::Enforce(ExpectedProtocol::TlsForNameOrOther) => {
            relay.run(filter.hold_until_checked(retry_requested), response).await
        }
        Inspection::Observe(_) if shared.policy.has_deny_rule_on(plan.port) => {
            relay.run(filter.forward_unless_denied(retry_requested), response).await
        }
        Inspection::Observe(expected) => relay.run(filter.observe(expected), ready(Ok(()))).await,
    };
    if let Err(error) = result {
        if let TunnelError::Refused(cause) = &error {
            flow.record_verdict(&Verdict::Refused(cause.clone()));
        }
        flow.set_end_reason(error);
    }
}

/// Forwards the first bytes of a server's response, and reports whether it requests another hello
/// before its client can know it.
async fn forward_server_opening(
    destination: &TcpStream,
    guest: &TcpStream,
    (bytes, plan): (&ByteCounters, &ConnectionPlan),
    retry_sender: watch::Sender<Option<bool>>,
) -> Result<(), TunnelError> {
    let mut detector = RetryDetector::default();
    let failed = |side| move |source| TunnelError::Io { side, source };
    loop {
        let read = read_some(destination).await.map_err(failed("destination"))?;
        let is_retry = if read.is_empty() { Some(false) } else { detector.feed(&read) };
        retry_sender.send_replace(is_retry);
        bytes.down.fetch_add(read.len() as u64, Ordering::Relaxed);
        plan.wait_for_rate(read.len()).await;
        write_all(guest, &read).await.map_err(failed("guest"))?;
        if is_retry.is_some() {
            return Ok(());
        }
    }
}

/// Inspects and forwards a guest's first bytes.
struct OpeningFilter<'a> {
    shared: &'a GateState,
    guest: &'a TcpStream,
    destination: &'a TcpStream,
    plan: &'a ConnectionPlan,
    flow: &'a mut Flow,
}

impl OpeningFilter<'_> {
    /// Forwards a checked hello, and checks a second one, too. The bytes after the first are held
    /// back until it is known whether the server requests another.
    async fn forward_hello(
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
    async fn hold_until_checked(
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
    async fn forward_unless_denied(
        &mut self,
        retry_requested: watch::Receiver<Option<bool>>,
    ) -> Result<(), TunnelError> {
        let first = read_some(self.guest).await.map_err(guest_error)?;
        if first.is_empty() {
            return Ok(());
        }
        if first.first() == Some(&TLS) {
            let (opening, hello) = read_opening(self.shared, self.guest, &first).await?;
            self.check_hello(&opening)?;
            return self.forward_hello(hello, retry_requested).await;
        }
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
    async fn observe(&mut self, expected: Option<ExpectedProtocol>) -> Result<(), TunnelError> {
        let (mut reader, mut observer) = (OpeningReader::new(), HttpObserver::default());
        let mut is_tls = true;
        loop {
            let bytes = read_some(self.guest).await.map_err(guest_error)?;
            if bytes.is_empty() {
                return Ok(());
            }
            let opening = if is_tls { reader.feed(&bytes) } else { None };
            // The first byte decides it.
            is_tls &= opening != Some(ClientOpening::Other);
            let is_known = if is_tls {
                opening.map(|opening| self.check_opening(&opening, expected)).transpose()?.is_some()
            } else {
                observer
                    .feed_first(&bytes)
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
        self.flow.bytes().up.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.plan.wait_for_rate(bytes.len()).await;
        let written = write_all(self.destination, bytes).await;
        written.map_err(|source| TunnelError::Io { side: "destination", source })
    }
}

fn guest_error(source: io::Error) -> TunnelError {
    TunnelError::Io { side: "guest", source }
}

/// Reads available bytes, or waits for some. Returns an empty buffer at the end of the stream.
pub(super) async fn read_some(stream: &TcpStream) -> io::Result<Vec<u8>> {
    loop {
        stream.readable().await?;
        let mut buffer = Vec::with_capacity(CHUNK);
        match stream.try_read_buf(&mut buffer) {
            Ok(_) => return Ok(buffer),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

//! One allowed connection: inspects its first bytes as the policy requires and relays the rest.

use std::future::ready;
use std::io;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::dial::DialedConnection;
use super::host::Host;
use super::opening::{ClientOpening, OpeningReader, RetryDetector};
use super::opening_filter::OpeningFilter;
use super::policy::{ExpectedProtocol, Inspection, PolicyDecision};
use super::rate_limiter::RateLimiter;
use super::record::{ByteCounters, Flow, Subject};
use super::state::GateState;
use super::tunnel::{Relay, TunnelError, count_bytes, write_all};
use super::verdict::{RefusalCause, Verdict};

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
    pub(super) checked: Vec<u8>,
    /// Bytes received after a `ClientHello`. They are held back until the server's response is
    /// known.
    pub(super) following: Vec<u8>,
}

impl BufferedOpening {
    fn from_reader(reader: OpeningReader) -> Self {
        let (checked, following) = reader.into_parts();
        Self { checked, following }
    }
}

/// Reads a client's first bytes until it is known whether they are TLS and for which server.
/// `first` was read already. The bytes are consumed from the connection.
pub(super) async fn read_opening(
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
        count_bytes(&bytes.down, read.len(), bytes, plan.max_bytes)?;
        plan.wait_for_rate(read.len()).await;
        write_all(guest, &read).await.map_err(failed("guest"))?;
        if is_retry.is_some() {
            return Ok(());
        }
    }
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

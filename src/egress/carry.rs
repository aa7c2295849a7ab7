//! Carries one allowed connection: looks at its first bytes as the policy wants, and moves the
//! rest.

use std::future::ready;
use std::io;
use std::sync::atomic::Ordering;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::dial::Dialled;
use super::gate::Shared;
use super::host::Host;
use super::opening::{Opening, Watcher};
use super::policy::{Decision, Expected, Inspection};
use super::record::{Flow, Subject};
use super::tunnel::{self, Broken, write_all};
use super::verdict::{Cause, Verdict};

/// Bytes that are read at once while looking at the first bytes.
const CHUNK: usize = 4 << 10;

/// A connection that was decided on.
pub(super) struct Plan {
    pub(super) host: Host,
    pub(super) port: u16,
    pub(super) subject: Subject,
    pub(super) verdict: Verdict,
    pub(super) rule: Option<String>,
    pub(super) allow_private: bool,
    pub(super) inspection: Inspection,
    pub(super) max_bytes: Option<u64>,
}

impl Plan {
    pub(super) fn new(host: Host, port: u16, subject: Subject, decision: Decision<'_>) -> Self {
        let Decision { verdict, rule, allow_private, inspection, max_bytes } = decision;
        let rule = rule.map(ToString::to_string);
        Self { host, port, subject, verdict, rule, allow_private, inspection, max_bytes }
    }

    /// Begins the record of the connection.
    pub(super) fn begin(&self, shared: &Shared) -> Flow {
        shared.recorder.pass(self.subject.clone(), self.verdict.clone(), self.rule.clone())
    }

    /// Records that the connection goes no further.
    pub(super) fn refuse(&self, shared: &Shared, cause: Cause) {
        let verdict = Verdict::Refused(cause);
        shared.recorder.verdict(self.subject.clone(), &verdict, self.rule.as_deref());
    }
}

/// Reads a client's first bytes until it can be told whether they are TLS and for whom. They are
/// taken from the connection.
async fn read_opening(shared: &Shared, guest: &TcpStream) -> Result<(Opening, Vec<u8>), Cause> {
    let mut watcher = Watcher::for_tls();
    let deadline = Instant::now() + shared.limits.opening;
    loop {
        match timeout_at(deadline, read_some(guest)).await {
            Err(_) => return Err(Cause::ClientDeadline),
            Ok(Err(_)) => return Err(Cause::ClientGone),
            Ok(Ok(bytes)) if bytes.is_empty() => return Err(Cause::ClientGone),
            Ok(Ok(bytes)) => {
                if let Some(opening) = watcher.feed(&bytes) {
                    return Ok((opening, watcher.into_seen()));
                }
            }
        }
    }
}

/// Reads what a client says first, where that must be TLS for the name. Nothing has gone to the
/// destination when this fails.
pub(super) async fn read_hello(
    shared: &Shared,
    guest: &TcpStream,
    plan: &Plan,
) -> Result<Vec<u8>, Cause> {
    if plan.inspection != Inspection::Enforce(Expected::Tls) {
        return Ok(Vec::new());
    }
    let (opening, seen) = read_opening(shared, guest).await?;
    opening.judge(Expected::Tls, &plan.host)?;
    Ok(seen)
}

/// Moves the bytes of a connection until both sides are done. `hello` was read already.
pub(super) async fn carry(
    shared: &Shared,
    guest: &TcpStream,
    dialled: Dialled,
    hello: Vec<u8>,
    plan: &Plan,
    mut flow: Flow,
) {
    flow.connected_to(dialled.peer);
    let destination = dialled.stream;
    let bytes = flow.bytes();
    let bounds = shared.bounds(plan.max_bytes);
    let mut entrance = Entrance { shared, guest, destination: &destination, plan, flow: &mut flow };
    let result = match plan.inspection {
        Inspection::Skip | Inspection::Enforce(Expected::Tls | Expected::Http) => {
            bytes.up.fetch_add(hello.len() as u64, Ordering::Relaxed);
            match write_all(&destination, &hello).await {
                Err(source) => Err(Broken::Io { side: "destination", source }),
                Ok(()) => tunnel::relay(guest, &destination, &bytes, &bounds, ready(Ok(()))).await,
            }
        }
        Inspection::Enforce(Expected::TlsForNameOrOther) => {
            tunnel::relay(guest, &destination, &bytes, &bounds, entrance.hold()).await
        }
        Inspection::Observe(expected) => {
            tunnel::relay(guest, &destination, &bytes, &bounds, entrance.observe(expected)).await
        }
    };
    if let Err(broken) = result {
        if let Broken::Refused(cause) = &broken {
            flow.judge(&Verdict::Refused(cause.clone()));
        }
        flow.ended_by(broken);
    }
}

/// Where a guest's first bytes pass on connections whose destination may speak first.
struct Entrance<'a> {
    shared: &'a Shared,
    guest: &'a TcpStream,
    destination: &'a TcpStream,
    plan: &'a Plan,
    flow: &'a mut Flow,
}

impl Entrance<'_> {
    /// Holds the first bytes back until they are known to be no TLS, or TLS for the name. A client
    /// may wait for the destination's greeting as long as it likes; once it has begun a
    /// `ClientHello` it must go on with it.
    async fn hold(&mut self) -> Result<(), Broken> {
        self.guest.readable().await.map_err(reading)?;
        let (opening, seen) = match read_opening(self.shared, self.guest).await {
            Ok(found) => found,
            // It said nothing at all: the other direction may still go on.
            Err(Cause::ClientGone) => return Ok(()),
            Err(cause) => return Err(cause.into()),
        };
        opening.judge(Expected::TlsForNameOrOther, &self.plan.host)?;
        self.note(&opening);
        self.pass_on(&seen).await
    }

    /// Lets the first bytes pass as they come, and judges them for the record and for `deny`
    /// rules.
    async fn observe(&mut self, expected: Option<Expected>) -> Result<(), Broken> {
        let mut watcher = Watcher::new();
        loop {
            let bytes = read_some(self.guest).await.map_err(reading)?;
            if bytes.is_empty() {
                return Ok(());
            }
            let opening = watcher.feed(&bytes);
            if let Some(opening) = &opening {
                self.judge(opening, expected)?;
            }
            self.pass_on(&bytes).await?;
            if opening.is_some() {
                return Ok(());
            }
        }
    }

    fn judge(&mut self, opening: &Opening, expected: Option<Expected>) -> Result<(), Cause> {
        self.note(opening);
        if let Some(expected) = expected
            && self.plan.host.name().is_some()
            && let Err(cause) = opening.judge(expected, &self.plan.host)
        {
            self.flow.judge(&Verdict::WouldRefuse(cause));
        }
        // Where rules allow and refuse by name only in part, what the client calls its destination
        // counts as well as how it got there.
        let denied = opening.named().and_then(|name| {
            let decision = self.shared.policy.decide(&Host::Name(name), self.plan.port);
            match decision.verdict {
                Verdict::Refused(cause @ Cause::Denied(_)) => Some(cause),
                _ => None,
            }
        });
        denied.map_or(Ok(()), Err)
    }

    fn note(&mut self, opening: &Opening) {
        if let Some(name) = opening.named() {
            self.flow.named(&name);
        }
    }

    async fn pass_on(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        self.flow.bytes().up.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let written = write_all(self.destination, bytes).await;
        written.map_err(|source| Broken::Io { side: "destination", source })
    }
}

fn reading(source: io::Error) -> Broken {
    Broken::Io { side: "guest", source }
}

/// Reads what is there, and waits where nothing is. Empty at the end.
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

//! Carries one allowed connection: looks at its first bytes as the policy wants, and moves the
//! rest.

use std::future::ready;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::dial::Dialled;
use super::host::{Host, HostName};
use super::http::{Speaks, Watched};
use super::opening::{Answer, Opening, SecondHello, Watcher};
use super::pace::Pace;
use super::policy::{Decision, Expected, Inspection};
use super::record::{Bytes, Flow, Subject};
use super::shared::Shared;
use super::tunnel::{Broken, Relay, write_all};
use super::verdict::{Cause, Verdict};

/// The first byte of TLS: the content type of handshake records.
const TLS: u8 = 22;

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
    pub(super) pace: Option<Arc<Pace>>,
}

impl Plan {
    pub(super) fn new(
        shared: &Shared,
        (host, port): (Host, u16),
        subject: Subject,
        decision: Decision<'_>,
    ) -> Self {
        let Decision { verdict, rule, allow_private, inspection, max_bytes } = decision;
        let pace = rule.and_then(|rule| shared.paces.get(&rule.origin)).cloned();
        let rule = rule.map(ToString::to_string);
        Self { host, port, subject, verdict, rule, allow_private, inspection, max_bytes, pace }
    }

    /// Begins the record of the connection.
    pub(super) fn begin(&self, shared: &Shared) -> Flow {
        shared.recorder.pass(self.subject.clone(), self.verdict.clone(), self.rule.clone())
    }

    /// Waits until bytes may pass.
    pub(super) async fn pace(&self, bytes: usize) {
        if let Some(pace) = &self.pace {
            pace.pass(bytes).await;
        }
    }

    /// Records that the connection goes no further.
    pub(super) fn refuse(&self, shared: &Shared, cause: Cause) {
        let verdict = Verdict::Refused(cause);
        shared.recorder.verdict(self.subject.clone(), &verdict, self.rule.as_deref());
    }
}

/// A client's first bytes, taken from its connection.
#[derive(Debug, Default)]
pub(super) struct Hello {
    /// Those that were judged.
    judged: Vec<u8>,
    /// What came behind a `ClientHello` with it. It waits until it is known what may come there.
    behind: Vec<u8>,
}

impl Hello {
    fn of(watcher: Watcher) -> Self {
        let (judged, behind) = watcher.into_seen();
        Self { judged, behind }
    }
}

/// Reads a client's first bytes, of which `first` was read already, until it can be told whether they are TLS and for whom. They are
/// taken from the connection.
async fn read_opening(
    shared: &Shared,
    guest: &TcpStream,
    first: &[u8],
) -> Result<(Opening, Hello), Cause> {
    let mut watcher = Watcher::new();
    if let Some(opening) = watcher.feed(first) {
        return Ok((opening, Hello::of(watcher)));
    }
    let deadline = Instant::now() + shared.limits.opening;
    loop {
        match timeout_at(deadline, read_some(guest)).await {
            Err(_) => return Err(Cause::ClientDeadline),
            Ok(Err(_)) => return Err(Cause::ClientGone),
            Ok(Ok(bytes)) if bytes.is_empty() => return Err(Cause::ClientGone),
            Ok(Ok(bytes)) => {
                if let Some(opening) = watcher.feed(&bytes) {
                    return Ok((opening, Hello::of(watcher)));
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
) -> Result<Hello, Cause> {
    if plan.inspection != Inspection::Enforce(Expected::Tls) {
        return Ok(Hello::default());
    }
    let (opening, hello) = read_opening(shared, guest, &[]).await?;
    opening.judge(Expected::Tls, &plan.host)?;
    Ok(hello)
}

/// Moves the bytes of a connection until both sides are done. `hello` was read already.
pub(super) async fn carry(
    shared: &Shared,
    guest: &TcpStream,
    dialled: Dialled,
    hello: Hello,
    plan: &Plan,
    mut flow: Flow,
) {
    flow.connected_to(dialled.peer);
    let destination = dialled.stream;
    let bytes = flow.bytes();
    let bounds = shared.bounds(plan.max_bytes, plan.pace.clone());
    let (teller, told) = watch::channel(None);
    let answer = watch_answer(&destination, guest, (&bytes, plan), teller);
    let mut entrance = Entrance { shared, guest, destination: &destination, plan, flow: &mut flow };
    let relay = Relay { guest, destination: &destination, bytes: &bytes, bounds: &bounds };
    let result = match plan.inspection {
        Inspection::Skip | Inspection::Enforce(Expected::Http) => {
            relay.run(ready(Ok(())), ready(Ok(()))).await
        }
        Inspection::Enforce(Expected::Tls) => {
            relay.run(entrance.after_hello(hello, told), answer).await
        }
        Inspection::Enforce(Expected::TlsForNameOrOther) => {
            relay.run(entrance.hold(told), answer).await
        }
        Inspection::Observe(_) if shared.policy.denies_on(plan.port) => {
            relay.run(entrance.guard(told), answer).await
        }
        Inspection::Observe(expected) => relay.run(entrance.observe(expected), ready(Ok(()))).await,
    };
    if let Err(broken) = result {
        if let Broken::Refused(cause) = &broken {
            flow.judge(&Verdict::Refused(cause.clone()));
        }
        flow.ended_by(broken);
    }
}

/// Passes the first bytes of a server's answer on, and tells whether it asks for another hello
/// before its client can know it.
async fn watch_answer(
    destination: &TcpStream,
    guest: &TcpStream,
    (bytes, plan): (&Bytes, &Plan),
    teller: watch::Sender<Option<bool>>,
) -> Result<(), Broken> {
    let mut answer = Answer::default();
    let failed = |side| move |source| Broken::Io { side, source };
    loop {
        let read = read_some(destination).await.map_err(failed("destination"))?;
        let asks = if read.is_empty() { Some(false) } else { answer.feed(&read) };
        teller.send_replace(asks);
        bytes.down.fetch_add(read.len() as u64, Ordering::Relaxed);
        plan.pace(read.len()).await;
        write_all(guest, &read).await.map_err(failed("guest"))?;
        if asks.is_some() {
            return Ok(());
        }
    }
}

/// Where a guest's first bytes pass.
struct Entrance<'a> {
    shared: &'a Shared,
    guest: &'a TcpStream,
    destination: &'a TcpStream,
    plan: &'a Plan,
    flow: &'a mut Flow,
}

impl Entrance<'_> {
    /// Passes a hello on that was read and judged, and sees that another one is judged, too. What
    /// came behind the first waits until the server has said whether it asks for another.
    async fn after_hello(
        &mut self,
        hello: Hello,
        mut told: watch::Receiver<Option<bool>>,
    ) -> Result<(), Broken> {
        self.pass_on(&hello.judged).await?;
        // Until the server has answered its client has nothing to say but early data, which waits.
        let asks = told.wait_for(Option::is_some).await.map(|told| *told == Some(true));
        // Whoever tells is gone where the connection is.
        if !matches!(asks, Ok(true)) {
            return self.pass_on(&hello.behind).await;
        }
        let mut second = SecondHello::default();
        let mut next = hello.behind;
        let deadline = Instant::now() + self.shared.limits.opening;
        loop {
            if let Some(opening) = second.feed(&next) {
                self.judge_hello(&opening)?;
                return self.pass_on(&second.into_seen()).await;
            }
            let read = timeout_at(deadline, read_some(self.guest)).await;
            next = read.map_err(|_| Cause::ClientDeadline)?.map_err(reading)?;
            if next.is_empty() {
                return Ok(());
            }
        }
    }

    /// Judges a `ClientHello`: by the name of the connection where that must be in it, else by what
    /// `deny` rules say of the name that it has.
    fn judge_hello(&mut self, opening: &Opening) -> Result<(), Cause> {
        match (self.plan.inspection, opening) {
            (Inspection::Enforce(_), _) => opening.judge(Expected::Tls, &self.plan.host),
            (_, Opening::BadTls(why)) => Err(Cause::ClientHello(why.clone())),
            (_, Opening::Tls(_)) => self.judge(opening, None),
            (_, Opening::Other) => Err(Cause::NotTls),
        }
    }

    /// Holds the first bytes back until they are known to be no TLS, or TLS for the name. A client
    /// may wait for the destination's greeting as long as it likes; once it has begun a
    /// `ClientHello` it must go on with it.
    async fn hold(&mut self, told: watch::Receiver<Option<bool>>) -> Result<(), Broken> {
        self.guest.readable().await.map_err(reading)?;
        let (opening, hello) = match read_opening(self.shared, self.guest, &[]).await {
            Ok(found) => found,
            // It said nothing at all: the other direction may still go on.
            Err(Cause::ClientGone) => return Ok(()),
            Err(cause) => return Err(cause.into()),
        };
        opening.judge(Expected::TlsForNameOrOther, &self.plan.host)?;
        self.note(&opening);
        match opening {
            Opening::Tls(_) => self.after_hello(hello, told).await,
            _ => self.pass_on(&hello.judged).await,
        }
    }

    /// Where `deny` rules are for names on this port: sees that no hello and no request is for one
    /// of them. What may be HTTP and can't be read without doubt does not pass.
    async fn guard(&mut self, told: watch::Receiver<Option<bool>>) -> Result<(), Broken> {
        let first = read_some(self.guest).await.map_err(reading)?;
        if first.is_empty() {
            return Ok(());
        }
        if first.first() == Some(&TLS) {
            let (opening, hello) = read_opening(self.shared, self.guest, &first).await?;
            self.judge_hello(&opening)?;
            return self.after_hello(hello, told).await;
        }
        let mut watched = Watched::default();
        let mut next = first;
        let deadline = Instant::now() + self.shared.limits.opening;
        loop {
            for name in watched.feed(&next)? {
                self.flow.named(&name);
                self.check_denied(name)?;
            }
            self.pass_on(&watched.released()).await?;
            next = match watched.speaks() {
                Some(Speaks::Other) => return Ok(()),
                Some(Speaks::Http) => read_some(self.guest).await.map_err(reading)?,
                None => {
                    let read = timeout_at(deadline, read_some(self.guest)).await;
                    read.map_err(|_| Cause::ClientDeadline)?.map_err(reading)?
                }
            };
            if next.is_empty() {
                return Ok(());
            }
        }
    }

    /// Lets the first bytes pass as they come, and judges them for the record and for `deny`
    /// rules.
    async fn observe(&mut self, expected: Option<Expected>) -> Result<(), Broken> {
        let (mut watcher, mut watched) = (Watcher::new(), Watched::default());
        let mut is_tls = true;
        loop {
            let bytes = read_some(self.guest).await.map_err(reading)?;
            if bytes.is_empty() {
                return Ok(());
            }
            let opening = if is_tls { watcher.feed(&bytes) } else { None };
            // Told by the first byte.
            is_tls &= opening != Some(Opening::Other);
            let is_told = if is_tls {
                opening.map(|opening| self.judge(&opening, expected)).transpose()?.is_some()
            } else {
                watched.first(&bytes).map(|first| self.judge_first(first, expected)).is_some()
            };
            self.pass_on(&bytes).await?;
            if is_told {
                return Ok(());
            }
        }
    }

    /// Notes whom a first request is for, or that there is none, and marks what `enforce` would have
    /// refused.
    fn judge_first(&mut self, first: Result<Vec<HostName>, Cause>, expected: Option<Expected>) {
        for name in first.iter().flatten() {
            self.flow.named(name);
        }
        let named = self.plan.host.name();
        let is_other = |name: &&HostName| named != Some(*name);
        let cause = match (expected, first) {
            (Some(Expected::Tls), _) => Cause::NotTls,
            (Some(Expected::Http), Err(cause)) => cause,
            (Some(Expected::Http), Ok(names)) => match names.iter().find(is_other) {
                Some(other) => Cause::HostMismatch(other.to_string()),
                None => return,
            },
            (Some(Expected::TlsForNameOrOther) | None, _) => return,
        };
        if named.is_some() {
            self.flow.judge(&Verdict::WouldRefuse(cause));
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
        opening.named().map_or(Ok(()), |name| self.check_denied(name))
    }

    /// Where rules allow and refuse by name only in part, what the client calls its destination
    /// counts as well as how it got there.
    fn check_denied(&self, name: HostName) -> Result<(), Cause> {
        match self.shared.policy.decide(&Host::Name(name), self.plan.port).verdict {
            Verdict::Refused(cause @ Cause::Denied(_)) => Err(cause),
            _ => Ok(()),
        }
    }

    fn note(&mut self, opening: &Opening) {
        if let Some(name) = opening.named() {
            self.flow.named(&name);
        }
    }

    async fn pass_on(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        self.flow.bytes().up.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.plan.pace(bytes.len()).await;
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

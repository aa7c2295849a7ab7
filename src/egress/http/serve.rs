//! Requests, one after the other on a client's connection, each decided on by itself.

use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes as Data;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1 as client;
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::super::carry::Plan;
use super::super::dial::{Dialled, HttpRoute};
use super::super::idle::nothing_passes;
use super::super::policy::{Decision, Expected, Inspection};
use super::super::record::{SharedFlow, Subject, Via};
use super::super::shared::Shared;
use super::super::verdict::{Cause, Verdict};
use super::body::{Counted, Way};
use super::guarded::Guarded;
use super::onward::{
    Again, Failed, Kept, Outgoing, Route, repeatable, request_line, rewrite, size_of,
};
use super::refusal;
use super::request::{Target, cause_header, direct, proxied, status_of, strip};
use super::strict::Strict;

/// Bytes of a connection that are held while the other side takes none, in each direction.
const BUFFER: usize = 64 << 10;

/// What requests on a connection may be for.
pub(super) enum Origin {
    /// Anything that the policy allows: the forward proxy.
    Any,
    /// What the connection was made to.
    One {
        /// What was decided about it.
        plan: Arc<Plan>,
        /// Where requests go, as far as that was reached already.
        route: Option<HttpRoute>,
    },
}

type Answer = Response<Either<Full<Data>, Counted>>;

/// Bytes of a line such as `HTTP/1.1 200 OK`, about.
const STATUS_LINE: usize = 17;

/// The most header fields of an answer. Some servers send a cookie for each thing they know.
const MAX_ANSWER_FIELDS: usize = 1000;

/// A client's connection, as its requests see it.
struct Connection<'a> {
    shared: &'a Arc<Shared>,
    origin: Origin,
    /// The connection to the destination of the last request, for the next one to use.
    kept: Mutex<Option<Kept>>,
    /// What drives the connections to destinations.
    drivers: Mutex<JoinSet<()>>,
}

/// Serves requests until the client is done, breaks a rule of HTTP, or is quiet for too long.
pub(super) async fn serve(
    shared: &Arc<Shared>,
    guest: TcpStream,
    (strict, seen): (Strict, Vec<u8>),
    mut origin: Origin,
) {
    let subject = subject_of(&guest, &origin);
    let guarded = Guarded::new(guest, strict, seen);
    let watch = guarded.watch();
    let route = match &mut origin {
        Origin::One { plan, route } => {
            route.take().map(|route| (Target::of(plan.host.clone(), plan.port), route))
        }
        Origin::Any => None,
    };
    let connection =
        Connection { shared, origin, kept: Mutex::default(), drivers: Mutex::default() };
    if let Some((target, route)) = route {
        // Where it can't be used, the first request finds another.
        let kept = connection.attach(target, route).await.ok();
        *connection.kept.lock().unwrap_or_else(PoisonError::into_inner) = kept;
    }
    let service =
        service_fn(|request| async { Ok::<_, Infallible>(connection.respond(request).await) });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.limits.opening)
        .max_headers(100)
        .max_buf_size(BUFFER)
        .preserve_header_case(true)
        .serve_connection(TokioIo::new(guarded), service);
    tokio::select! {
        // How it ended shows in the record of each exchange.
        _ = served => {}
        () = nothing_passes(|| watch.traffic.load(Ordering::Relaxed), shared.limits.idle) => {}
        () = shared.cancel.cancelled() => {}
    }
    if let Some(violation) = watch.violation.get() {
        let verdict = Verdict::Refused(Cause::Request((*violation).into()));
        shared.recorder.verdict(subject, &verdict, None);
    }
}

/// What a broken request is recorded as.
fn subject_of(guest: &TcpStream, origin: &Origin) -> Subject {
    if let Origin::One { plan, .. } = origin {
        return plan.subject.clone();
    }
    let original = guest.local_addr().ok();
    Subject {
        via: Via::Proxy,
        host: original.map(|address| address.ip().to_string()).unwrap_or_default(),
        port: original.map_or(0, |address| address.port()),
        original,
        method: "HTTP".into(),
        url: None,
    }
}

impl Connection<'_> {
    async fn respond(&self, request: Request<Incoming>) -> Answer {
        let (target, plan) = match self.plan(&request) {
            Ok(planned) => planned,
            Err(refused) => {
                let (cause, subject) = *refused;
                self.shared.recorder.verdict(subject, &Verdict::Refused(cause.clone()), None);
                return answer(&cause, format!("mayfly: {}\n", super::Whole(&cause)));
            }
        };
        let result = match plan.verdict.clone() {
            Verdict::Refused(cause) => Err(cause),
            _ => self.forward(request, &target, &plan).await,
        };
        result.unwrap_or_else(|cause| {
            plan.refuse(self.shared, cause.clone());
            let cause = cause.told(&target.host, self.shared.policy.wants_every_port());
            answer(&cause, refusal(self.shared, &target.host, target.port, &cause))
        })
    }

    /// Where a request goes and what was decided about it.
    fn plan(&self, request: &Request<Incoming>) -> Result<(Target, Plan), Box<(Cause, Subject)>> {
        let (uri, headers) = (request.uri(), request.headers());
        let mut subject = Subject {
            via: Via::Proxy,
            host: uri.host().unwrap_or_default().to_owned(),
            port: uri.port_u16().unwrap_or(super::request::HTTP_PORT),
            original: None,
            method: request.method().to_string(),
            url: None,
        };
        let target = match &self.origin {
            Origin::Any => proxied(request.method(), uri, headers),
            Origin::One { plan, .. } => {
                subject = Subject { method: subject.method, ..plan.subject.clone() };
                direct(uri, headers, &plan.host, plan.port)
            }
        };
        let target = target.map_err(|cause| Box::new((cause, subject.clone())))?;
        subject.host = target.host.to_string();
        subject.url = Some(target.url());
        let decision = self.shared.policy.decide(&target.host, target.port);
        let decision = for_plain_http(decision);
        let plan = Plan::new(self.shared, (target.host.clone(), target.port), subject, decision);
        Ok((target, plan))
    }

    async fn forward(
        &self,
        request: Request<Incoming>,
        target: &Target,
        plan: &Plan,
    ) -> Result<Answer, Cause> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (mut kept, used_before) = match kept {
            Some(kept) if kept.serves(target) => (kept, true),
            _ => (self.connect(target, plan).await?, false),
        };
        let flow = SharedFlow::new(plan.begin(self.shared));
        let again = used_before.then(|| repeatable(&request)).flatten();
        let outgoing = rewrite(request, target, &kept.route, &flow, plan);
        let sent = match self.exchange(&mut kept, outgoing, &flow, plan).await {
            // A server may end a kept connection at any time, also while a request is on its way to
            // it (RFC 9112, section 9.3.1).
            Err(Failed { cause, unsent }) if used_before => match unsent.or(again) {
                Some(request) => {
                    kept = match self.connect(target, plan).await {
                        Ok(kept) => kept,
                        Err(cause) => return Ok(fail(&flow, &cause, self.shared, target)),
                    };
                    let request = request.into_request(target, &kept.route);
                    self.exchange(&mut kept, request, &flow, plan).await
                }
                None => Err(Failed { cause, unsent: None }),
            },
            sent => sent,
        };
        match sent {
            Err(failed) => Ok(fail(&flow, &failed.cause, self.shared, target)),
            Ok(response) => {
                *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
                let (mut parts, body) = response.into_parts();
                let head = size_of(&parts.headers) + STATUS_LINE;
                flow.lock().bytes().down.fetch_add(head as u64, Ordering::Relaxed);
                plan.pace(head).await;
                flow.lock().answered(parts.status.as_u16());
                strip(&mut parts.headers);
                let body = Counted::new(body, Way::Down, flow, plan);
                Ok(Response::from_parts(parts, Either::Right(body)))
            }
        }
    }

    /// Sends a request and waits for the head of its answer, for as long as bytes pass.
    async fn exchange(
        &self,
        kept: &mut Kept,
        request: Request<Outgoing>,
        flow: &SharedFlow,
        plan: &Plan,
    ) -> Result<Response<Incoming>, Failed> {
        let bytes = {
            let mut flow = flow.lock();
            flow.connected_to(kept.peer.clone());
            flow.bytes()
        };
        let head = request_line(&request) + size_of(request.headers());
        plan.pace(head).await;
        bytes.up.fetch_add(head as u64, Ordering::Relaxed);
        tokio::select! {
            sent = kept.sender.try_send_request(request) => sent.map_err(|mut error| {
                let unsent = error.take_message().map(|request| Again::Whole(Box::new(request)));
                if unsent.is_some() {
                    bytes.up.fetch_sub(head as u64, Ordering::Relaxed);
                }
                Failed { cause: Cause::Connect(crate::failure::chain(error.error())), unsent }
            }),
            () = nothing_passes(|| bytes.total(), self.shared.limits.idle) => {
                Err(Failed { cause: Cause::ConnectDeadline, unsent: None })
            }
        }
    }

    async fn connect(&self, target: &Target, plan: &Plan) -> Result<Kept, Cause> {
        let route = self.shared.dial_http(&target.host, target.port, plan.allow_private).await?;
        self.attach(target.clone(), route).await
    }

    /// Makes a connection one that takes requests.
    async fn attach(&self, target: Target, route: HttpRoute) -> Result<Kept, Cause> {
        let (Dialled { stream, peer }, route) = match route {
            HttpRoute::Origin(dialled) => (dialled, Route::Origin),
            HttpRoute::Parent { dialled, authorization } => (dialled, Route::Parent(authorization)),
        };
        // What servers answer is not for us to judge: what a client would take passes.
        let mut client = client::Builder::new();
        client
            .preserve_header_case(true)
            .allow_obsolete_multiline_headers_in_responses(true)
            .allow_spaces_after_header_name_in_responses(true)
            .ignore_invalid_headers_in_responses(true)
            .max_headers(MAX_ANSWER_FIELDS)
            .max_buf_size(BUFFER);
        let failed = |error: hyper::Error| Cause::Connect(error.to_string());
        let (mut sender, driver) = client.handshake(TokioIo::new(stream)).await.map_err(failed)?;
        {
            let mut drivers = self.drivers.lock().unwrap_or_else(PoisonError::into_inner);
            while drivers.try_join_next().is_some() {}
            drivers.spawn(async move {
                // What goes wrong with it shows in the exchanges on it.
                _ = driver.await;
            });
        }
        sender.ready().await.map_err(failed)?;
        Ok(Kept { target, sender, peer, route })
    }
}

/// Plain HTTP on a port that must be TLS is not what was allowed.
fn for_plain_http(decision: Decision<'_>) -> Decision<'_> {
    let is_plain_refused = decision.inspection == Inspection::Enforce(Expected::Tls);
    match decision.verdict {
        Verdict::Allowed if is_plain_refused => {
            Decision { verdict: Verdict::Refused(Cause::NotTls), ..decision }
        }
        _ => decision,
    }
}

/// The answer where a destination failed after the exchange had begun.
fn fail(flow: &SharedFlow, cause: &Cause, shared: &Shared, target: &Target) -> Answer {
    let text = refusal(shared, &target.host, target.port, cause);
    let mut flow = flow.lock();
    flow.ended_by(cause);
    flow.answered(status_of(cause).as_u16());
    answer(cause, text)
}

fn answer(cause: &Cause, text: String) -> Answer {
    let mut answer = Response::new(Either::Left(Full::new(Data::from(text))));
    *answer.status_mut() = status_of(cause);
    let (name, value) = cause_header(cause);
    answer.headers_mut().insert(name, value);
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, plain);
    answer
}

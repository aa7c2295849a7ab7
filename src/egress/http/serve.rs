//! Serves the requests on a client's connection in sequence; each is decided on individually.

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

use super::super::connection::ConnectionPlan;
use super::super::dial::{DialedConnection, HttpRoute};
use super::super::idle::wait_until_idle;
use super::super::policy::{ExpectedProtocol, Inspection, PolicyDecision};
use super::super::record::{SharedFlow, Subject, Via};
use super::super::state::GateState;
use super::super::verdict::{RefusalCause, Verdict};
use super::body::{BodyDirection, CountedBody};
use super::budget::{ByteBudget, ByteBudgets, TooManyBytes};
use super::checked_stream::CheckedStream;
use super::forward::{
    ExchangeError, Outgoing, ReplayableRequest, ReusableConnection, Route, replayable_copy,
    request_line, rewrite, size_of,
};
use super::refusal_text;
use super::request::{
    Target, cause_header, direct_target, proxy_target, status_of, strip_hop_by_hop,
};
use super::strict::StrictChecker;

/// Buffer size of a connection, in each direction.
const BUFFER: usize = 64 << 10;

/// The origins that requests on a connection may target.
pub(super) enum AllowedOrigin {
    /// Any origin that the policy allows: the forward proxy.
    Any,
    /// The origin of the connection.
    One {
        /// The decision on the connection.
        plan: Arc<ConnectionPlan>,
        /// The established route, if any.
        route: Option<HttpRoute>,
    },
}

type ClientResponse = Response<Either<Full<Data>, CountedBody>>;

/// Approximate length of a line such as `HTTP/1.1 200 OK`.
const STATUS_LINE: usize = 17;

/// Maximum number of header fields of a response. Some servers send many cookies.
const MAX_RESPONSE_FIELDS: usize = 1000;

/// A client's connection with the state that its requests share.
struct ClientConnection<'a> {
    shared: &'a Arc<GateState>,
    origin: AllowedOrigin,
    /// The connection to the destination of the last request, for reuse.
    reusable: Mutex<Option<ReusableConnection>>,
    budgets: ByteBudgets,
    /// The tasks that drive the connections to destinations.
    drivers: Mutex<JoinSet<()>>,
}

/// Serves requests until the client is done, violates HTTP, or is idle for too long.
pub(super) async fn serve(
    shared: &Arc<GateState>,
    guest: TcpStream,
    (strict, seen): (StrictChecker, Vec<u8>),
    mut origin: AllowedOrigin,
) {
    let subject = subject_of(&guest, &origin);
    let checked = CheckedStream::new(guest, strict, seen);
    let status = checked.status();
    let route = match &mut origin {
        AllowedOrigin::One { plan, route } => {
            route.take().map(|route| (Target::new(plan.host.clone(), plan.port), route))
        }
        AllowedOrigin::Any => None,
    };
    let connection = ClientConnection {
        shared,
        origin,
        reusable: Mutex::default(),
        budgets: ByteBudgets::default(),
        drivers: Mutex::default(),
    };
    if let Some((target, route)) = route {
        // If it can't be used, the first request connects again.
        let reusable = connection.attach(target, route).await.ok();
        *connection.reusable.lock().unwrap_or_else(PoisonError::into_inner) = reusable;
    }
    let service =
        service_fn(|request| async { Ok::<_, Infallible>(connection.respond(request).await) });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.limits.opening)
        .max_headers(100)
        .max_buf_size(BUFFER)
        .preserve_header_case(true)
        .serve_connection(TokioIo::new(checked), service);
    tokio::select! {
        // The record of each exchange shows how it ended.
        _ = served => {}
        () = wait_until_idle(|| status.traffic.load(Ordering::Relaxed), shared.limits.idle) => {}
        () = shared.cancel.cancelled() => {}
    }
    if let Some(violation) = status.violation.get() {
        let verdict = Verdict::Refused(RefusalCause::Request((*violation).into()));
        shared.recorder.record_verdict(subject, &verdict, None);
    }
}

/// Returns the record subject of an invalid request.
fn subject_of(guest: &TcpStream, origin: &AllowedOrigin) -> Subject {
    if let AllowedOrigin::One { plan, .. } = origin {
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

impl ClientConnection<'_> {
    async fn respond(&self, request: Request<Incoming>) -> ClientResponse {
        let (target, plan) = match self.plan(&request) {
            Ok(planned) => planned,
            Err(refused) => {
                let (cause, subject) = *refused;
                self.shared.recorder.record_verdict(
                    subject,
                    &Verdict::Refused(cause.clone()),
                    None,
                );
                return error_response(&cause, format!("mayfly: {}\n", super::CauseChain(&cause)));
            }
        };
        let result = match plan.verdict.clone() {
            Verdict::Refused(cause) => Err(cause),
            _ => self.forward(request, &target, &plan).await,
        };
        result.unwrap_or_else(|cause| {
            plan.refuse(self.shared, cause.clone());
            let cause =
                cause.redact_for_guest(&target.host, self.shared.policy.intercepts_every_port());
            error_response(&cause, refusal_text(self.shared, &target.host, target.port, &cause))
        })
    }

    /// Returns the target of a request and the decision on it.
    fn plan(
        &self,
        request: &Request<Incoming>,
    ) -> Result<(Target, ConnectionPlan), Box<(RefusalCause, Subject)>> {
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
            AllowedOrigin::Any => proxy_target(request.method(), uri, headers),
            AllowedOrigin::One { plan, .. } => {
                subject = Subject { method: subject.method, ..plan.subject.clone() };
                direct_target(uri, headers, &plan.host, plan.port)
            }
        };
        let target = target.map_err(|cause| Box::new((cause, subject.clone())))?;
        subject.host = target.host.to_string();
        subject.url = Some(target.url());
        let decision = self.shared.policy.decide(&target.host, target.port);
        let decision = for_plain_http(decision);
        let plan =
            ConnectionPlan::new(self.shared, (target.host.clone(), target.port), subject, decision);
        Ok((target, plan))
    }

    async fn forward(
        &self,
        request: Request<Incoming>,
        target: &Target,
        plan: &ConnectionPlan,
    ) -> Result<ClientResponse, RefusalCause> {
        let reusable = self.reusable.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (mut reusable, used_before) = match reusable {
            Some(reusable) if reusable.can_serve(target) => (reusable, true),
            _ => (self.connect(target, plan).await?, false),
        };
        let flow = SharedFlow::new(plan.start_flow(self.shared));
        let budget = self.budgets.under(plan);
        let counted = (&flow, &budget);
        let replayable = used_before.then(|| replayable_copy(&request)).flatten();
        let outgoing = rewrite(request, target, &reusable.route, counted, plan);
        let sent = match self.exchange(&mut reusable, outgoing, counted, plan).await {
            // A server may close a reused connection at any time, also while a request is in
            // transit (RFC 9112, section 9.3.1).
            Err(ExchangeError { cause, unsent }) if used_before => match unsent.or(replayable) {
                Some(request) => {
                    reusable = match self.connect(target, plan).await {
                        Ok(reusable) => reusable,
                        Err(cause) => return Ok(fail(&flow, &cause, self.shared, target)),
                    };
                    let request = request.into_request(target, &reusable.route);
                    self.exchange(&mut reusable, request, counted, plan).await
                }
                None => Err(ExchangeError { cause, unsent: None }),
            },
            sent => sent,
        };
        match sent {
            Err(failed) => Ok(fail(&flow, &failed.cause, self.shared, target)),
            Ok(response) => {
                *self.reusable.lock().unwrap_or_else(PoisonError::into_inner) = Some(reusable);
                let (mut parts, body) = response.into_parts();
                let head = size_of(&parts.headers) + STATUS_LINE;
                flow.lock().bytes().down.fetch_add(head as u64, Ordering::Relaxed);
                if let Err(TooManyBytes) = budget.charge(head) {
                    return Ok(fail(&flow, &RefusalCause::TooManyBytes, self.shared, target));
                }
                plan.wait_for_rate(head).await;
                flow.lock().set_status(parts.status.as_u16());
                strip_hop_by_hop(&mut parts.headers);
                let body = CountedBody::new(body, BodyDirection::Down, flow, budget, plan);
                Ok(Response::from_parts(parts, Either::Right(body)))
            }
        }
    }

    /// Sends a request and waits for the response head while bytes pass.
    async fn exchange(
        &self,
        reusable: &mut ReusableConnection,
        request: Request<Outgoing>,
        (flow, budget): (&SharedFlow, &ByteBudget),
        plan: &ConnectionPlan,
    ) -> Result<Response<Incoming>, ExchangeError> {
        let bytes = {
            let mut flow = flow.lock();
            flow.set_peer(reusable.peer.clone());
            flow.bytes()
        };
        let head = request_line(&request) + size_of(request.headers());
        if let Err(TooManyBytes) = budget.charge(head) {
            return Err(ExchangeError { cause: RefusalCause::TooManyBytes, unsent: None });
        }
        plan.wait_for_rate(head).await;
        bytes.up.fetch_add(head as u64, Ordering::Relaxed);
        tokio::select! {
            sent = reusable.sender.try_send_request(request) => sent.map_err(|mut error| {
                let unsent = error.take_message();
                let unsent = unsent.map(|request| ReplayableRequest::Whole(Box::new(request)));
                if unsent.is_some() {
                    bytes.up.fetch_sub(head as u64, Ordering::Relaxed);
                    budget.refund(head);
                }
                let cause = RefusalCause::Connect(mayfly_failure::chain(error.error()));
                ExchangeError { cause, unsent }
            }),
            () = wait_until_idle(|| bytes.total(), self.shared.limits.idle) => {
                Err(ExchangeError { cause: RefusalCause::ConnectDeadline, unsent: None })
            }
        }
    }

    async fn connect(
        &self,
        target: &Target,
        plan: &ConnectionPlan,
    ) -> Result<ReusableConnection, RefusalCause> {
        let route = self.shared.dial_http(&target.host, target.port, plan.allow_private).await?;
        self.attach(target.clone(), route).await
    }

    /// Starts an HTTP client on a connection.
    async fn attach(
        &self,
        target: Target,
        route: HttpRoute,
    ) -> Result<ReusableConnection, RefusalCause> {
        let (DialedConnection { stream, peer }, route) = match route {
            HttpRoute::Origin(dialed) => (dialed, Route::Origin),
            HttpRoute::Parent { dialed, authorization } => (dialed, Route::Parent(authorization)),
        };
        // Responses are not checked: anything that a client would accept is forwarded.
        let mut client = client::Builder::new();
        client
            .preserve_header_case(true)
            .allow_obsolete_multiline_headers_in_responses(true)
            .allow_spaces_after_header_name_in_responses(true)
            .ignore_invalid_headers_in_responses(true)
            .max_headers(MAX_RESPONSE_FIELDS)
            .max_buf_size(BUFFER);
        let failed = |error: hyper::Error| RefusalCause::Connect(error.to_string());
        let (mut sender, driver) = client.handshake(TokioIo::new(stream)).await.map_err(failed)?;
        {
            let mut drivers = self.drivers.lock().unwrap_or_else(PoisonError::into_inner);
            while drivers.try_join_next().is_some() {}
            drivers.spawn(async move {
                // Its errors show in the exchanges on it.
                _ = driver.await;
            });
        }
        sender.ready().await.map_err(failed)?;
        Ok(ReusableConnection { target, sender, peer, route })
    }
}

/// Refuses plain HTTP on a port that requires TLS.
fn for_plain_http(decision: PolicyDecision<'_>) -> PolicyDecision<'_> {
    let is_plain_refused = decision.inspection == Inspection::Enforce(ExpectedProtocol::Tls);
    match decision.verdict {
        Verdict::Allowed if is_plain_refused => {
            PolicyDecision { verdict: Verdict::Refused(RefusalCause::NotTls), ..decision }
        }
        _ => decision,
    }
}

/// Returns the response for a destination that failed after the exchange had started.
fn fail(
    flow: &SharedFlow,
    cause: &RefusalCause,
    shared: &GateState,
    target: &Target,
) -> ClientResponse {
    let text = refusal_text(shared, &target.host, target.port, cause);
    let mut flow = flow.lock();
    flow.set_end_reason(cause);
    flow.set_status(status_of(cause).as_u16());
    error_response(cause, text)
}

fn error_response(cause: &RefusalCause, text: String) -> ClientResponse {
    let mut error_response = Response::new(Either::Left(Full::new(Data::from(text))));
    *error_response.status_mut() = status_of(cause);
    let (name, value) = cause_header(cause);
    error_response.headers_mut().insert(name, value);
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    error_response.headers_mut().insert(header::CONTENT_TYPE, plain);
    error_response
}

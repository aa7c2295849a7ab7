//! Forwarded requests, and the connections that carry them.

use bytes::Bytes as Data;
use http_body_util::{Either, Empty};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Request, Uri, Version};
use secrecy::{ExposeSecret, SecretString};

use super::super::connection::ConnectionPlan;
use super::super::record::{Peer, SharedFlow};
use super::super::verdict::RefusalCause;
use super::body::{BodyDirection, CountedBody};
use super::budget::ByteBudget;
use super::request::{Target, strip_hop_by_hop};

/// The body of a forwarded request: the client's, or empty.
pub(super) type Outgoing = Either<Empty<Data>, CountedBody>;

/// A failed exchange.
pub(super) struct ExchangeError {
    pub(super) cause: RefusalCause,
    /// The request, if no part of it was sent.
    pub(super) unsent: Option<ReplayableRequest>,
}

/// A request that can be sent again.
pub(super) enum ReplayableRequest {
    /// The original request: no part of it was sent.
    Whole(Box<Request<Outgoing>>),
    /// The head of an idempotent request without a body.
    Parts(Box<Parts>),
}

impl ReplayableRequest {
    pub(super) fn into_request(self, target: &Target, route: &Route) -> Request<Outgoing> {
        match self {
            Self::Whole(request) => *request,
            Self::Parts(parts) => {
                let parts = rewrite_head(*parts, target, route);
                Request::from_parts(parts, Either::Left(Empty::new()))
            }
        }
    }
}

/// Returns a copy of a request that may be sent twice: an idempotent one (RFC 9110, section 9.2.2)
/// without a body.
pub(super) fn replayable_copy(request: &Request<Incoming>) -> Option<ReplayableRequest> {
    if !request.method().is_idempotent() || !request.body().is_end_stream() {
        return None;
    }
    let mut copy = Request::new(());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    *copy.extensions_mut() = request.extensions().clone();
    Some(ReplayableRequest::Parts(Box::new(copy.into_parts().0)))
}

/// A connection to a destination that has responded and can be reused.
pub(super) struct ReusableConnection {
    pub(super) target: Target,
    pub(super) sender: SendRequest<Outgoing>,
    pub(super) peer: Peer,
    pub(super) route: Route,
}

/// The form of forwarded requests.
#[derive(Clone)]
pub(super) enum Route {
    Origin,
    Parent(Option<SecretString>),
}

/// Returns the size of a request line on the wire.
pub(super) fn request_line<B>(request: &Request<B>) -> usize {
    // Two spaces, the version, and the line ends of the request line and the head.
    let target = request.uri().to_string().len();
    request.method().as_str().len() + target + 14
}

/// Returns the size of header fields on the wire.
pub(super) fn size_of(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

impl ReusableConnection {
    /// Returns whether the next request may use this connection: same destination, and the last
    /// response is complete.
    pub(super) fn can_serve(&self, target: &Target) -> bool {
        self.sender.is_ready()
            && (&self.target.host, self.target.port) == (&target.host, target.port)
    }
}

/// Converts a request for its destination.
pub(super) fn rewrite(
    request: Request<Incoming>,
    target: &Target,
    route: &Route,
    (flow, budget): (&SharedFlow, &ByteBudget),
    plan: &ConnectionPlan,
) -> Request<Outgoing> {
    let (parts, body) = request.into_parts();
    let body = CountedBody::new(body, BodyDirection::Up, flow.clone(), budget.clone(), plan);
    Request::from_parts(rewrite_head(parts, target, route), Either::Right(body))
}

pub(super) fn rewrite_head(mut parts: Parts, target: &Target, route: &Route) -> Parts {
    strip_hop_by_hop(&mut parts.headers);
    parts.version = Version::HTTP_11;
    parts.uri = Uri::from(target.path.clone());
    let authority = target.authority();
    if let Route::Parent(authorization) = route {
        let url = Uri::builder().scheme("http").authority(&*authority);
        let url = url.path_and_query(target.path.clone()).build();
        // Each part was part of a URI before.
        parts.uri = url.unwrap_or(parts.uri);
        let value =
            authorization.as_ref().map(|value| HeaderValue::from_str(value.expose_secret()));
        if let Some(Ok(mut value)) = value {
            value.set_sensitive(true);
            parts.headers.insert(header::PROXY_AUTHORIZATION, value);
        }
    }
    if let Ok(value) = HeaderValue::from_str(&authority) {
        parts.headers.insert(header::HOST, value);
    }
    parts
}

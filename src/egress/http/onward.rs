//! Requests as they go on to a destination, and the connections that they go on by.

use bytes::Bytes as Data;
use http_body_util::{Either, Empty};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Request, Uri, Version};
use secrecy::{ExposeSecret, SecretString};

use super::super::carry::Plan;
use super::super::record::{Peer, SharedFlow};
use super::super::verdict::Cause;
use super::body::{Counted, Way};
use super::request::{Target, strip};

/// What is sent to a destination: a client's body, or none.
pub(super) type Outgoing = Either<Empty<Data>, Counted>;

/// An exchange that came to nothing.
pub(super) struct Failed {
    pub(super) cause: Cause,
    /// The request, where none of it was sent.
    pub(super) unsent: Option<Again>,
}

/// A request that can be sent once more.
pub(super) enum Again {
    /// As it was: nothing of it was sent.
    Whole(Box<Request<Outgoing>>),
    /// One without a body that does the same however often it is sent.
    Parts(Box<Parts>),
}

impl Again {
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

/// A copy of a request that a server may see twice: one that changes nothing, or nothing more
/// (RFC 9110, section 9.2.2), and has no body.
pub(super) fn repeatable(request: &Request<Incoming>) -> Option<Again> {
    if !request.method().is_idempotent() || !request.body().is_end_stream() {
        return None;
    }
    let mut copy = Request::new(());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    *copy.extensions_mut() = request.extensions().clone();
    Some(Again::Parts(Box::new(copy.into_parts().0)))
}

/// A connection to a destination that has answered and can be used again.
pub(super) struct Kept {
    pub(super) target: Target,
    pub(super) sender: SendRequest<Outgoing>,
    pub(super) peer: Peer,
    pub(super) route: Route,
}

/// How a request is written.
#[derive(Clone)]
pub(super) enum Route {
    Origin,
    Parent(Option<SecretString>),
}

/// What a request's first line takes on the wire.
pub(super) fn request_line<B>(request: &Request<B>) -> usize {
    // Two blanks, the version, the line's end, and that of the head.
    let target = request.uri().to_string().len();
    request.method().as_str().len() + target + 14
}

/// What header fields take on the wire.
pub(super) fn size_of(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

impl Kept {
    /// Whether the next request may go here: same destination, and the last answer is read out.
    pub(super) fn serves(&self, target: &Target) -> bool {
        self.sender.is_ready()
            && (&self.target.host, self.target.port) == (&target.host, target.port)
    }
}

/// The request as it goes on.
pub(super) fn rewrite(
    request: Request<Incoming>,
    target: &Target,
    route: &Route,
    flow: &SharedFlow,
    plan: &Plan,
) -> Request<Outgoing> {
    let (parts, body) = request.into_parts();
    let body = Counted::new(body, Way::Up, flow.clone(), plan);
    Request::from_parts(rewrite_head(parts, target, route), Either::Right(body))
}

pub(super) fn rewrite_head(mut parts: Parts, target: &Target, route: &Route) -> Parts {
    strip(&mut parts.headers);
    parts.version = Version::HTTP_11;
    parts.uri = Uri::from(target.path.clone());
    let authority = target.authority();
    if let Route::Parent(authorization) = route {
        let whole = Uri::builder().scheme("http").authority(&*authority);
        let whole = whole.path_and_query(target.path.clone()).build();
        // Each part was one of a URI before.
        parts.uri = whole.unwrap_or(parts.uri);
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

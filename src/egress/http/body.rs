//! Bodies that count what passes and record the end when they are done.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::Bytes as Data;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use crate::egress::record::{Bytes, Flow};

/// Which way a body goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Up,
    Down,
}

/// More bytes than the rule allows.
#[derive(Debug, thiserror::Error)]
#[error("more bytes than the rule allows")]
pub(super) struct TooManyBytes;

/// What can end a body early.
pub(super) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A body on its way through.
pub(super) struct Counted {
    body: Incoming,
    way: Way,
    bytes: Arc<Bytes>,
    max_bytes: Option<u64>,
    /// The record of the exchange, which ends with its last body.
    flow: Option<Flow>,
}

impl Counted {
    pub(super) fn up(body: Incoming, bytes: Arc<Bytes>, max_bytes: Option<u64>) -> Self {
        Self { body, way: Way::Up, bytes, max_bytes, flow: None }
    }

    pub(super) fn down(body: Incoming, flow: Flow, max_bytes: Option<u64>) -> Self {
        Self { body, way: Way::Down, bytes: flow.bytes(), max_bytes, flow: Some(flow) }
    }

    fn end_by(&mut self, reason: impl std::fmt::Display) {
        if let Some(flow) = &mut self.flow {
            flow.ended_by(reason);
        }
    }
}

impl Body for Counted {
    type Data = Data;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Data>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let count = match &frame {
            Some(Ok(frame)) => frame.data_ref().map_or(0, Data::len) as u64,
            Some(Err(error)) => {
                let reason = error.to_string();
                self.end_by(reason);
                0
            }
            None => 0,
        };
        let counter = match self.way {
            Way::Up => &self.bytes.up,
            Way::Down => &self.bytes.down,
        };
        counter.fetch_add(count, Ordering::Relaxed);
        if self.max_bytes.is_some_and(|most| self.bytes.total() > most) {
            self.end_by(TooManyBytes);
            return Poll::Ready(Some(Err(TooManyBytes.into())));
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

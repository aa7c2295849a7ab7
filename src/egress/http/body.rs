//! HTTP bodies that count their bytes and record the end of an exchange.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes as Data;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Sleep, sleep};

use crate::connection::ConnectionPlan;
use crate::rate_limiter::RateLimiter;
use crate::record::{ByteCounters, SharedFlow};

use super::budget::{ByteBudget, TooManyBytes};

/// The direction of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyDirection {
    Up,
    Down,
}

/// The error type of a body.
pub(super) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A body that is being forwarded.
pub(super) struct CountedBody {
    body: Incoming,
    direction: BodyDirection,
    bytes: Arc<ByteCounters>,
    budget: ByteBudget,
    rate_limiter: Option<Arc<RateLimiter>>,
    /// A received frame that waits for the rate limit.
    held: Option<(Pin<Box<Sleep>>, Frame<Data>)>,
    /// The record of the exchange; the last of its bodies ends it.
    flow: SharedFlow,
}

impl CountedBody {
    pub(super) fn new(
        body: Incoming,
        direction: BodyDirection,
        flow: SharedFlow,
        budget: ByteBudget,
        plan: &ConnectionPlan,
    ) -> Self {
        let rate_limiter = plan.rate_limiter.clone();
        let bytes = flow.lock().bytes();
        Self { body, direction, bytes, budget, rate_limiter, held: None, flow }
    }

    /// Counts a received frame. Fails if the byte limit is exceeded.
    fn count(&mut self, frame: &Frame<Data>) -> Result<usize, TooManyBytes> {
        let count = frame.data_ref().map_or(0, Data::len);
        let counter = match self.direction {
            BodyDirection::Up => &self.bytes.up,
            BodyDirection::Down => &self.bytes.down,
        };
        counter.fetch_add(count as u64, Ordering::Relaxed);
        self.budget.charge(count).inspect_err(|exceeded| self.set_end_reason(exceeded))?;
        Ok(count)
    }

    fn set_end_reason(&self, reason: impl std::fmt::Display) {
        self.flow.lock().set_end_reason(reason);
    }
}

impl Body for CountedBody {
    type Data = Data;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Data>, BodyError>>> {
        if self.held.is_none() {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    self.set_end_reason(&error);
                    return Poll::Ready(Some(Err(error.into())));
                }
                None => return Poll::Ready(None),
            };
            let count = self.count(&frame)?;
            let wait = self
                .rate_limiter
                .as_ref()
                .map_or(Duration::ZERO, |rate_limiter| rate_limiter.take(count));
            if wait.is_zero() {
                return Poll::Ready(Some(Ok(frame)));
            }
            self.held = Some((Box::pin(sleep(wait)), frame));
        }
        if let Some((wait, _)) = &mut self.held {
            ready!(wait.as_mut().poll(context));
        }
        Poll::Ready(self.held.take().map(|(_, frame)| Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // Callers ask before they read: no frame is held yet.
        self.body.size_hint()
    }
}

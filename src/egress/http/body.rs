//! Bodies that count what passes and record the end when they are done.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes as Data;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Sleep, sleep};

use crate::egress::carry::Plan;
use crate::egress::pace::Pace;
use crate::egress::record::{Bytes, SharedFlow};

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
    pace: Option<Arc<Pace>>,
    /// What has come and waits until it may pass.
    held: Option<(Pin<Box<Sleep>>, Frame<Data>)>,
    /// The record of the exchange, which ends with the last of its bodies.
    flow: SharedFlow,
}

impl Counted {
    pub(super) fn new(body: Incoming, way: Way, flow: SharedFlow, plan: &Plan) -> Self {
        let Plan { max_bytes, pace, .. } = plan;
        let (max_bytes, pace) = (*max_bytes, pace.clone());
        let bytes = flow.lock().bytes();
        Self { body, way, bytes, max_bytes, pace, held: None, flow }
    }

    /// Counts what has come. Fails where it is more than may pass.
    fn count(&mut self, frame: &Frame<Data>) -> Result<usize, TooManyBytes> {
        let count = frame.data_ref().map_or(0, Data::len);
        let counter = match self.way {
            Way::Up => &self.bytes.up,
            Way::Down => &self.bytes.down,
        };
        counter.fetch_add(count as u64, Ordering::Relaxed);
        if self.max_bytes.is_some_and(|most| self.bytes.total() > most) {
            self.end_by(TooManyBytes);
            return Err(TooManyBytes);
        }
        Ok(count)
    }

    fn end_by(&self, reason: impl std::fmt::Display) {
        self.flow.lock().ended_by(reason);
    }
}

impl Body for Counted {
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
                    self.end_by(&error);
                    return Poll::Ready(Some(Err(error.into())));
                }
                None => return Poll::Ready(None),
            };
            let count = self.count(&frame)?;
            let wait = self.pace.as_ref().map_or(Duration::ZERO, |pace| pace.take(count));
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
        // Whoever asks has not begun to read: nothing is held yet.
        self.body.size_hint()
    }
}

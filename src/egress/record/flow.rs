//! Flows: allowed traffic from its verdict to its end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::line::{FlowEnd, Peer, Subject};
use super::sums::RowKey;
use super::{EgressRecorder, LineKind};
use crate::host::HostName;
use crate::verdict::Verdict;

/// Byte counters of a flow, updated by the code that moves the bytes.
#[derive(Debug, Default)]
pub struct ByteCounters {
    /// From the guest.
    pub up: AtomicU64,
    /// To the guest.
    pub down: AtomicU64,
}

impl ByteCounters {
    /// Returns the sum of both directions.
    pub fn total(&self) -> u64 {
        self.up.load(Ordering::Relaxed) + self.down.load(Ordering::Relaxed)
    }
}

/// Allowed traffic, e.g. a connection or a request. Dropping it records its end.
#[derive(Debug)]
pub struct Flow {
    recorder: EgressRecorder,
    passed: FlowEntry,
    start: Instant,
    bytes: Arc<ByteCounters>,
    reason: Option<String>,
    status: Option<u16>,
    peer: Option<Peer>,
    named: Option<String>,
}

/// The recorded start of a flow.
#[derive(Debug)]
pub(super) struct FlowEntry {
    pub(super) subject: Subject,
    pub(super) verdict: Verdict,
    pub(super) rule: Option<String>,
    /// The key of its row.
    pub(super) key: RowKey,
    /// Its id.
    pub(super) id: u64,
}

impl Flow {
    pub(super) fn new(recorder: EgressRecorder, passed: FlowEntry) -> Self {
        Self {
            recorder,
            passed,
            start: Instant::now(),
            bytes: Arc::default(),
            reason: None,
            status: None,
            peer: None,
            named: None,
        }
    }

    /// Returns the counters.
    pub fn bytes(&self) -> Arc<ByteCounters> {
        Arc::clone(&self.bytes)
    }

    /// Sets the connected peer.
    pub fn set_peer(&mut self, peer: Peer) {
        self.peer = Some(peer);
    }

    /// Sets the server name in the guest's first bytes.
    pub fn set_server_name(&mut self, name: &HostName) {
        self.named = Some(name.to_string());
    }

    /// Sets the HTTP status of the response.
    pub fn set_status(&mut self, status: u16) {
        self.status = Some(status);
    }

    /// Sets why it ended, unless both sides closed it.
    pub fn set_end_reason(&mut self, reason: impl std::fmt::Display) {
        self.reason = Some(reason.to_string());
    }

    /// Records another verdict on the same subject, e.g. on the client's first bytes.
    pub fn record_verdict(&self, verdict: &Verdict) {
        let FlowEntry { subject, rule, .. } = &self.passed;
        self.recorder.record_verdict(subject.clone(), verdict, rule.as_deref());
    }
}

/// A flow of two halves, either of which may end last: a server may respond before it has received
/// the whole request. It ends when both have been dropped.
#[derive(Debug, Clone)]
pub struct SharedFlow(Arc<Mutex<Flow>>);

impl SharedFlow {
    /// Wraps a flow.
    pub fn new(flow: Flow) -> Self {
        Self(Arc::new(Mutex::new(flow)))
    }

    /// Locks the flow.
    pub fn lock(&self) -> MutexGuard<'_, Flow> {
        // A flow is consistent between any two statements that could panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        let end = FlowEnd {
            up: self.bytes.up.load(Ordering::Relaxed),
            down: self.bytes.down.load(Ordering::Relaxed),
            elapsed: self.start.elapsed(),
            reason: self.reason.take(),
            status: self.status,
            peer: self.peer.take(),
            named: self.named.take(),
        };
        let mut record = self.recorder.lock();
        let FlowEntry { subject, verdict, rule, key, id } = &self.passed;
        record.sums.close(key, end.up, end.down);
        record.write(subject, LineKind::End(*id, &end), verdict, rule.as_deref());
    }
}

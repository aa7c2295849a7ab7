//! What passes, from its verdict to its end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::Recorder;
use super::line::{End, Peer, Subject};
use super::sums::Key;
use crate::egress::host::HostName;
use crate::egress::verdict::Verdict;

/// Bytes that passed, counted by whoever moves them.
#[derive(Debug, Default)]
pub struct Bytes {
    /// From the guest.
    pub up: AtomicU64,
    /// To the guest.
    pub down: AtomicU64,
}

impl Bytes {
    /// Both directions together.
    pub fn total(&self) -> u64 {
        self.up.load(Ordering::Relaxed) + self.down.load(Ordering::Relaxed)
    }
}

/// Something that passes. Dropping it records its end.
#[derive(Debug)]
pub struct Flow {
    recorder: Recorder,
    passed: Passed,
    start: Instant,
    bytes: Arc<Bytes>,
    reason: Option<String>,
    status: Option<u16>,
    peer: Option<Peer>,
    named: Option<String>,
}

/// What passes, as it was recorded.
#[derive(Debug)]
pub(super) struct Passed {
    pub(super) subject: Subject,
    pub(super) verdict: Verdict,
    pub(super) rule: Option<String>,
    /// Its row.
    pub(super) key: Key,
    /// Its number.
    pub(super) id: u64,
}

impl Flow {
    pub(super) fn new(recorder: Recorder, passed: Passed) -> Self {
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

    /// The counters.
    pub fn bytes(&self) -> Arc<Bytes> {
        Arc::clone(&self.bytes)
    }

    /// Notes whom it was connected to.
    pub fn connected_to(&mut self, peer: Peer) {
        self.peer = Some(peer);
    }

    /// Notes the server that the guest named in its first bytes.
    pub fn named(&mut self, name: &HostName) {
        self.named = Some(name.to_string());
    }

    /// Notes the HTTP status that was answered.
    pub fn answered(&mut self, status: u16) {
        self.status = Some(status);
    }

    /// Notes why it ended, where it wasn't by both sides' will.
    pub fn ended_by(&mut self, reason: impl std::fmt::Display) {
        self.reason = Some(reason.to_string());
    }

    /// Records another verdict on the same subject, e.g. on what the client said in the end.
    pub fn judge(&self, verdict: &Verdict) {
        let Passed { subject, rule, .. } = &self.passed;
        self.recorder.verdict(subject.clone(), verdict, rule.as_deref());
    }
}

/// A flow of two halves, each of which may be the last to end: a server may answer before it has
/// taken all of a request. It is over when both have been dropped.
#[derive(Debug, Clone)]
pub struct SharedFlow(Arc<Mutex<Flow>>);

impl SharedFlow {
    /// Shares it.
    pub fn new(flow: Flow) -> Self {
        Self(Arc::new(Mutex::new(flow)))
    }

    /// The flow, for a moment.
    pub fn lock(&self) -> MutexGuard<'_, Flow> {
        // A flow is whole between any two statements that could panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        let end = End {
            up: self.bytes.up.load(Ordering::Relaxed),
            down: self.bytes.down.load(Ordering::Relaxed),
            elapsed: self.start.elapsed(),
            reason: self.reason.take(),
            status: self.status,
            peer: self.peer.take(),
            named: self.named.take(),
        };
        let mut record = self.recorder.lock();
        let Passed { subject, verdict, rule, key, id } = &self.passed;
        record.sums.close(key, end.up, end.down);
        record.write(subject, Some(*id), verdict, rule.as_deref(), Some(&end));
    }
}

//! Bodies on their way, and the line in the log that is written when they have ended.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hutch_policy::log::{How, Record};
use hutch_policy::policy::{Decision, Verdict};
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use crate::exchange::{Body, BodyError};
use crate::gate::Gate;
use crate::live::Guard;
use crate::tunnel::{End, Moved};
use crate::upstream::{Kept, Key};

/// How long a connection may take to be ready for the next request.
const SETTLE: Duration = Duration::from_secs(2);

/// A line of the log, written when this is dropped.
pub(crate) struct Entry {
    gate: Arc<Gate>,
    begun: Instant,
    pub(crate) record: Record,
    pub(crate) sent: Arc<AtomicU64>,
    pub(crate) received: Arc<AtomicU64>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").field("record", &self.record).finish_non_exhaustive()
    }
}

impl Entry {
    pub(crate) fn new(gate: &Arc<Gate>, record: Record) -> Self {
        Self {
            gate: Arc::clone(gate),
            begun: Instant::now(),
            record,
            sent: Arc::default(),
            received: Arc::default(),
        }
    }

    pub(crate) fn allow(&mut self, verdict: &Verdict) {
        self.record.rule.clone_from(&verdict.rule);
        self.record.reason.clone_from(&verdict.reason);
    }

    pub(crate) fn refuse(&mut self, verdict: &Verdict) {
        self.allow(verdict);
        self.record.decision = Decision::Denied;
        self.record.how = How::Refused;
        self.record.status = Some(hutch_policy::refusal::STATUS);
    }

    /// What went wrong, with nothing more to come.
    pub(crate) fn failed(mut self, sentence: &str) {
        self.record.error = Some(sentence.to_owned());
    }

    /// What was moved in a tunnel, and how it ended.
    pub(crate) fn ended(&mut self, moved: &Moved, end: &End) {
        self.sent.store(moved.sent.load(Ordering::Relaxed), Ordering::Relaxed);
        self.received.store(moved.received.load(Ordering::Relaxed), Ordering::Relaxed);
        self.record.error = match end {
            End::Closed => None,
            End::Broken(error) => Some(format!("it broke off: {}", error.kind())),
            End::Cut => Some("the policy was changed and no longer allows it".to_owned()),
        };
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut record = self.record.clone();
        record.sent = self.sent.load(Ordering::Relaxed);
        record.received = self.received.load(Ordering::Relaxed);
        record.duration_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.gate.log(record);
    }
}

/// A body whose bytes are counted.
pub(super) struct Counted {
    body: Body,
    count: Arc<AtomicU64>,
}

impl Counted {
    pub(super) fn new(body: Body, count: Arc<AtomicU64>) -> Self {
        Self { body, count }
    }
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.count.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What a response holds on to while its body passes.
pub(super) struct Passing {
    guard: Guard,
    connection: Option<(Key, Kept)>,
}

impl Passing {
    pub(super) fn new(guard: Guard, key: Key, kept: Kept) -> Self {
        Self { guard, connection: Some((key, kept)) }
    }

    pub(super) fn wrap(self, body: Body, entry: Entry) -> Body {
        let ended = body.is_end_stream();
        let mut passed = Passed { body, passing: self, entry };
        if ended {
            passed.give_back();
        }
        passed.boxed_unsync()
    }
}

/// A response's body: cut when the policy no longer allows it, its connection kept for the next request at its end.
struct Passed {
    body: Body,
    passing: Passing,
    entry: Entry,
}

impl Passed {
    fn give_back(&mut self) {
        let Some((key, kept)) = self.passing.connection.take() else { return };
        if kept.sender.is_http2() {
            return;
        }
        let gate = Arc::clone(&self.entry.gate);
        let kept = Kept { fresh: false, ..kept };
        if kept.sender.is_ready() {
            gate.upstreams.pool.put(key, kept);
            return;
        }
        tokio::spawn(async move {
            let mut kept = kept;
            if let Ok(true) = tokio::time::timeout(SETTLE, kept.sender.settle()).await {
                gate.upstreams.pool.put(key, kept);
            }
        });
    }
}

impl HttpBody for Passed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.passing.guard.cut.poll_cut(context).is_ready() {
            let sentence = "the policy was changed and no longer allows it";
            self.entry.record.error = Some(sentence.to_owned());
            return Poll::Ready(Some(Err(sentence.into())));
        }
        let frame = Pin::new(&mut self.body).poll_frame(context);
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    self.entry.received.fetch_add(data.len() as u64, Ordering::Relaxed);
                }
                if self.body.is_end_stream() {
                    self.give_back();
                }
            }
            Poll::Ready(Some(Err(_))) => {
                self.entry.record.error = Some("the answer broke off".to_owned());
            }
            Poll::Ready(None) => self.give_back(),
            Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

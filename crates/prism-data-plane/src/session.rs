//! A live session: its route, its figures, what runs under it, and how it ends.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use prism_backends::driver::{QueueSubscription, Route};
use prism_core::config::Config;
use prism_core::limits::SessionPolicy;
use prism_core::rate::TokenBucket;
use prism_core::session::{self, SessionFigures, SessionId, SessionRecord, SessionReport, SessionStatus};
use prism_core::{Result, UnixMillis};
use prism_rpc::Series;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::cause::{self, EndCause};
use crate::decision::Leaving;
use crate::namespaces::NamespaceRuntime;

// The life of a session is one word: flags above, the number of running operations below. An operation adds itself before it
// looks at the flags, an end sets its flag before it looks at the number, so neither can miss the other.
const ENDED: u64 = 1 << 63;
const TERMINATING: u64 = 1 << 62;
const CLOSING: u64 = 1 << 61;
const DRAINING: u64 = 1 << 60;
const LEAVING: u64 = TERMINATING | CLOSING | DRAINING;
const RUNNING: u64 = (1 << 32) - 1;

/// How often someone who waits for a session to settle looks again: an acknowledgement settles a message inside the driver.
const SETTLE_POLL: Duration = Duration::from_millis(20);

/// What a session is made of, beside its record.
pub struct Parts {
    /// Its namespace.
    pub namespace: Arc<NamespaceRuntime>,
    /// The driver's handle, or why there is none.
    pub route: Result<Route>,
    /// Figures of its backend instance.
    pub backend: Arc<Series>,
    /// The rate limit of its config.
    pub rate: Option<Arc<TokenBucket>>,
}

/// A live session.
pub struct Session {
    record: SessionRecord,
    parts: Parts,
    timeout: Option<Duration>,
    life: AtomicU64,
    last_activity: AtomicI64,
    expires_at: AtomicI64,
    requests: AtomicI64,
    bytes_sent: AtomicI64,
    bytes_received: AtomicI64,
    /// 0 = there was none.
    last_request: AtomicI64,
    streams: AtomicI32,
    unreported: AtomicBool,
    /// A drain is ending it.
    ending: AtomicBool,
    /// The newest state of client access of which it is known that it upholds the session; 0 = none yet.
    upheld_at: AtomicU64,
    subscriptions: Mutex<Vec<(u64, Weak<dyn QueueSubscription>)>>,
    next_subscription: AtomicU64,
    termination: OnceLock<String>,
    end: OnceLock<EndCause>,
    ended: CancellationToken,
    changed: watch::Sender<()>,
    settled: Notify,
}

impl Session {
    /// A session that goes on from `record`.
    pub fn new(record: SessionRecord, parts: Parts) -> Self {
        let figures = record.figures;
        let timeout =
            record.config.consistency.and_then(|given| u64::try_from(given.timeout_ms).ok()).filter(|ms| *ms > 0);
        let session = Self {
            timeout: timeout.map(Duration::from_millis),
            life: AtomicU64::new(0),
            last_activity: AtomicI64::new(record.last_activity.0),
            expires_at: AtomicI64::new(record.expires_at.0),
            requests: AtomicI64::new(figures.requests_total),
            bytes_sent: AtomicI64::new(figures.bytes_sent),
            bytes_received: AtomicI64::new(figures.bytes_received),
            last_request: AtomicI64::new(figures.last_request.map_or(0, |at| at.0)),
            streams: AtomicI32::new(0),
            unreported: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            upheld_at: AtomicU64::new(0),
            subscriptions: Mutex::default(),
            next_subscription: AtomicU64::new(1),
            termination: OnceLock::new(),
            end: OnceLock::new(),
            ended: CancellationToken::new(),
            changed: watch::Sender::new(()),
            settled: Notify::new(),
            record,
            parts,
        };
        if let Some(reason) = session.record.terminating.clone() {
            session.terminate_gently(reason);
        }
        session
    }

    /// Its id.
    pub fn id(&self) -> SessionId {
        self.record.id
    }

    /// What is durable of it, as it was when the session came to this node.
    pub fn record(&self) -> &SessionRecord {
        &self.record
    }

    /// Its config.
    pub fn config(&self) -> &Config {
        &self.record.config
    }

    /// Its namespace.
    pub fn namespace(&self) -> &Arc<NamespaceRuntime> {
        &self.parts.namespace
    }

    /// The driver's handle; UNAVAILABLE when its backend is not configured any more.
    pub fn route(&self) -> Result<&Route> {
        self.parts.route.as_ref().map_err(Clone::clone)
    }

    /// Figures of its backend instance.
    pub fn backend(&self) -> &Series {
        &self.parts.backend
    }

    /// The rate limit of its config.
    pub fn rate(&self) -> Option<&TokenBucket> {
        self.parts.rate.as_deref()
    }

    /// Longest time that its config allows an operation.
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    // Times and figures.

    /// When it was last heard of.
    pub fn last_activity(&self) -> UnixMillis {
        UnixMillis(self.last_activity.load(Ordering::Relaxed))
    }

    /// When it ends at the latest.
    pub fn expires_at(&self) -> UnixMillis {
        UnixMillis(self.expires_at.load(Ordering::Relaxed))
    }

    /// Moves its end.
    pub fn extend(&self, expires_at: UnixMillis) {
        self.expires_at.fetch_max(expires_at.0, Ordering::Relaxed);
    }

    /// Whether its time is up at `now`.
    pub fn is_over(&self, policy: &SessionPolicy, now: UnixMillis) -> bool {
        now >= self.expires_at() || now.since(self.last_activity()) >= policy.idle_timeout
    }

    /// Counts a request at `now` as life.
    pub fn heard(&self, now: UnixMillis) {
        self.last_activity.fetch_max(now.0, Ordering::Relaxed);
        self.last_request.store(now.0, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.touch();
    }

    /// Counts message bytes from the client.
    pub fn received(&self, bytes: usize) {
        self.bytes_received.fetch_add(bytes as i64, Ordering::Relaxed);
    }

    /// Counts message bytes to the client.
    pub fn sent(&self, bytes: usize) {
        self.bytes_sent.fetch_add(bytes as i64, Ordering::Relaxed);
        self.touch();
    }

    /// Marks that there is something to report.
    pub fn touch(&self) {
        if !self.unreported.load(Ordering::Relaxed) {
            self.unreported.store(true, Ordering::Relaxed);
        }
    }

    /// What changed since the last report, if anything.
    pub fn take_report(&self) -> Option<SessionReport> {
        self.unreported.swap(false, Ordering::Relaxed).then(|| self.report())
    }

    /// Its figures now.
    pub fn report(&self) -> SessionReport {
        SessionReport { id: self.id(), last_activity: self.last_activity(), figures: self.figures() }
    }

    /// Its figures now.
    pub fn figures(&self) -> SessionFigures {
        let last_request = self.last_request.load(Ordering::Relaxed);
        SessionFigures {
            requests_total: self.requests.load(Ordering::Relaxed),
            bytes_sent: self.bytes_sent.load(Ordering::Relaxed),
            bytes_received: self.bytes_received.load(Ordering::Relaxed),
            active_streams: self.streams(),
            last_request: (last_request > 0).then_some(UnixMillis(last_request)),
        }
    }

    /// Its status at `now`.
    pub fn status(&self, policy: &SessionPolicy, now: UnixMillis) -> SessionStatus {
        let leaving = self.leaving() != Leaving::No;
        session::status(policy, now, self.has_ended(), leaving, self.last_activity(), self.expires_at())
    }

    // What it stands on.

    /// Whether its credential is known to allow it by the client access numbered `generation`.
    pub fn is_upheld_at(&self, generation: u64) -> bool {
        self.upheld_at.load(Ordering::Relaxed) >= generation
    }

    /// Its credential allows it by the client access numbered `generation`.
    pub fn uphold_at(&self, generation: u64) {
        self.upheld_at.fetch_max(generation, Ordering::Relaxed);
    }

    // What runs.

    /// Counts an operation as running and says whether the session is on its way out.
    pub fn begin(&self) -> Leaving {
        leaving(self.life.fetch_add(1, Ordering::SeqCst))
    }

    /// Counts an operation as over.
    pub fn finish(&self) {
        let before = self.life.fetch_sub(1, Ordering::SeqCst);
        if before & (LEAVING | ENDED) != 0 && before & RUNNING == 1 {
            self.settled.notify_waiters();
        }
    }

    /// Operations that are running: calls, open transactions and reads, and subscriptions with messages in flight.
    pub fn running(&self) -> usize {
        let operations = (self.life.load(Ordering::SeqCst) & RUNNING) as usize;
        let subscriptions = self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner);
        let delivering = |(_, subscription): &&(u64, Weak<dyn QueueSubscription>)| {
            subscription.upgrade().is_some_and(|subscription| subscription.in_flight() > 0)
        };
        operations + subscriptions.iter().filter(delivering).count()
    }

    /// Waits until nothing runs.
    pub async fn settled(&self) {
        while self.running() > 0 {
            let _ = tokio::time::timeout(SETTLE_POLL, self.settled.notified()).await;
        }
    }

    /// A number for a new subscription.
    pub fn number_subscription(&self) -> u64 {
        self.next_subscription.fetch_add(1, Ordering::Relaxed)
    }

    /// Lets the messages in flight of a subscription count as running, until the guard is dropped.
    pub fn register(self: &Arc<Self>, number: u64, subscription: &Arc<dyn QueueSubscription>) -> Registration {
        let mut subscriptions = self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner);
        subscriptions.push((number, Arc::downgrade(subscription)));
        Registration { session: Arc::clone(self), number }
    }

    /// Streams open now.
    pub fn streams(&self) -> i32 {
        self.streams.load(Ordering::Relaxed)
    }

    /// Counts a new stream, unless there are `max` already.
    pub fn open_stream(&self, max: usize) -> bool {
        let max = i32::try_from(max).unwrap_or(i32::MAX);
        let opened =
            self.streams.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| (now < max).then_some(now + 1));
        self.touch();
        opened.is_ok()
    }

    /// Counts a stream as gone.
    pub fn close_stream(&self) {
        self.streams.fetch_sub(1, Ordering::Relaxed);
        self.touch();
    }

    // Leaving and ending.

    /// Whether it is on its way out.
    pub fn leaving(&self) -> Leaving {
        leaving(self.life.load(Ordering::SeqCst))
    }

    /// What a subscription that stops because the session leaves is told; `None` while the session stays.
    pub fn leaving_error(&self) -> Option<prism_core::Error> {
        match self.leaving() {
            Leaving::No => None,
            Leaving::Draining => Some(EndCause::Drained.error()),
            Leaving::Closing => Some(EndCause::Closed.error()),
            Leaving::Terminating => Some(self.termination().error()),
        }
    }

    /// Takes nothing new because of a drain.
    pub fn drain(&self) {
        self.set(DRAINING);
    }

    /// A drain is over and the session still here.
    pub fn undrain(&self) {
        self.clear(DRAINING);
    }

    /// Whether a drain is ending it at this moment.
    pub fn is_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }

    /// A drain begins to end it; `false` when one is at it already.
    pub fn begin_ending(&self) -> bool {
        !self.ending.swap(true, Ordering::SeqCst)
    }

    /// The end that a drain began is done, or failed.
    pub fn finish_ending(&self) {
        self.ending.store(false, Ordering::SeqCst);
    }

    /// Takes nothing new because its client closed it; `false` when it was closing already.
    pub fn close(&self) -> bool {
        self.set(CLOSING)
    }

    /// The close could not be made durable.
    pub fn unclose(&self) {
        self.clear(CLOSING);
    }

    /// Takes nothing new because an operator terminated it; `false` when that was so already.
    pub fn terminate_gently(&self, reason: String) -> bool {
        let _ = self.termination.set(reason);
        self.set(TERMINATING)
    }

    /// The end that a gentle termination comes to.
    pub fn termination(&self) -> EndCause {
        EndCause::Terminated(self.termination.get().cloned().unwrap_or_default())
    }

    fn set(&self, flag: u64) -> bool {
        let first = self.life.fetch_or(flag, Ordering::SeqCst) & flag == 0;
        if first {
            self.bump();
        }
        first
    }

    fn clear(&self, flag: u64) {
        if self.life.fetch_and(!flag, Ordering::SeqCst) & flag != 0 {
            self.bump();
        }
    }

    /// Ends it here and cuts what runs; `false` when it had ended before.
    pub fn cut(&self, cause: EndCause) -> bool {
        let first = self.end.set(cause).is_ok();
        self.life.fetch_or(ENDED, Ordering::SeqCst);
        self.ended.cancel();
        self.bump();
        first
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.life.load(Ordering::SeqCst) & ENDED != 0
    }

    /// Waits for its end and says what to tell those that it cuts.
    pub async fn ended(&self) -> prism_core::Error {
        self.ended.cancelled().await;
        self.end_error().unwrap_or_else(cause::token_invalid)
    }

    /// What to tell those that its end cuts; `None` while it lives.
    pub fn end_error(&self) -> Option<prism_core::Error> {
        self.end.get().map(EndCause::error)
    }

    /// Changes of its own state or of its namespace's policy, for streams.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Makes its streams look at what they may still do.
    pub fn bump(&self) {
        self.changed.send_replace(());
    }
}

fn leaving(life: u64) -> Leaving {
    if life & TERMINATING != 0 {
        Leaving::Terminating
    } else if life & CLOSING != 0 {
        Leaving::Closing
    } else if life & DRAINING != 0 {
        Leaving::Draining
    } else {
        Leaving::No
    }
}

/// Lets a subscription's messages in flight count as running.
pub struct Registration {
    session: Arc<Session>,
    number: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut subscriptions = self.session.subscriptions.lock().unwrap_or_else(PoisonError::into_inner);
        subscriptions.retain(|(number, _)| *number != self.number);
        drop(subscriptions);
        self.session.settled.notify_waiters();
    }
}

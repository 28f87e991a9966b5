//! What becomes of calls while the audit log cannot be written: nothing is changed, and reads go on only if the settings
//! say so. They are counted then, and the count is an entry as soon as there can be one.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prism_core::{Error, Kind, Result, UnixMillis};
use prism_proto::rules::AuditClass;
use prism_rpc::metrics::{Counter, Metrics};
use prism_store::{EntryDraft, OnReadFailure, Store};

/// How often the server's log says that reads go unrecorded.
const WARN_EVERY: Duration = Duration::from_mins(1);

/// Whether `failed` says that the storage takes no writes: the disk is full or broken.
pub(crate) fn is_storage_failure(failed: &Error) -> bool {
    failed.kind() == Kind::Unavailable && matches!(failed.reason(), "STORAGE_FULL" | "STORAGE_UNAVAILABLE")
}

/// What the caller is told when `failed` kept the entry of a call from being written.
pub(crate) fn cannot_record(failed: Error) -> Error {
    if !is_storage_failure(&failed) {
        return failed;
    }
    let message = format!("the audit log cannot be written, so nothing was done: {}", failed.message());
    failed.with_message(message)
}

/// Reads that were carried out without an entry.
pub(crate) struct Unrecorded {
    setting: OnReadFailure,
    total: Counter,
    pending: Mutex<Pending>,
}

#[derive(Clone, Copy, Default)]
struct Pending {
    reads: u64,
    since: Option<UnixMillis>,
    warned: Option<Instant>,
}

impl Unrecorded {
    /// None so far.
    pub(crate) fn new(setting: OnReadFailure, metrics: &Metrics) -> Self {
        let total = metrics.counter(
            "prism_audit_unrecorded_reads_total",
            "Admin calls that were answered while the audit log could not be written.",
        );
        Self { setting, total, pending: Mutex::default() }
    }

    /// Whether a call of this class goes on while its entry cannot be written.
    pub(crate) fn goes_on(&self, class: AuditClass) -> bool {
        self.setting == OnReadFailure::Allow && class == AuditClass::Read
    }

    /// Counts one.
    pub(crate) fn count(&self, at: UnixMillis) {
        self.total.increment();
        let mut pending = self.pending();
        pending.reads += 1;
        pending.since.get_or_insert(at);
        if pending.warned.is_none_or(|warned| warned.elapsed() >= WARN_EVERY) {
            pending.warned = Some(Instant::now());
            tracing::warn!(
                reads = pending.reads,
                "the audit log cannot be written; reads are answered without an entry"
            );
        }
    }

    /// Leaves the entry of all that were counted, if any were; what fails stays counted.
    pub(crate) async fn record(&self, store: &Store) -> Result<()> {
        let counted = {
            let mut pending = self.pending();
            Pending { warned: pending.warned, ..std::mem::take(&mut *pending) }
        };
        let Some(since) = counted.since else { return Ok(()) };
        let written = store.write(move |tx| tx.append_entry(entry(counted.reads, since))).await;
        if written.is_err() {
            let mut pending = self.pending();
            pending.reads += counted.reads;
            pending.since = Some(since);
            pending.warned = pending.warned.or(counted.warned);
        }
        written.map(drop)
    }

    /// Whether any wait for their entry.
    pub(crate) fn any(&self) -> bool {
        self.pending().since.is_some()
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        // Plain numbers are never left half-changed.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn entry(reads: u64, since: UnixMillis) -> EntryDraft {
    EntryDraft {
        actor: "prism".to_owned(),
        operation: "UnrecordedReads".to_owned(),
        resource: "audit".to_owned(),
        metadata: [("count".to_owned(), reads.to_string()), ("since_epoch_ms".to_owned(), since.0.to_string())].into(),
        auth_method: "none".to_owned(),
        ..EntryDraft::default()
    }
}

//! Calls without a valid credential: each is refused with an entry, in bounded number, and none is forgotten. What has no entry of
//! its own is counted in the next one, or in an entry of the count alone.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use prism_core::rate::TokenBucket;
use prism_core::{Error, Result};
use prism_rpc::metrics::{Counter, Metrics};
use prism_store::EntryDraft;

use crate::door::Door;
use crate::identity::Refused;
use crate::unrecorded::cannot_record;

/// Audit entries per second for calls without a valid credential; more are counted in the next entry.
const ENTRIES_PER_SECOND: u64 = 2;
/// And how many at once.
const ENTRIES_BURST: u64 = 100;
/// Name of an entry that holds nothing but the count.
const OPERATION: &str = "RefusedCredentials";
/// The count in an entry's metadata.
const COUNT: &str = "suppressed_before";

/// Refused calls that have no entry.
pub(crate) struct Suppressed {
    entries: TokenBucket,
    count: AtomicU64,
    refused: Counter,
}

impl Suppressed {
    /// None so far.
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let refused = metrics.counter(
            "prism_admin_credentials_refused_total",
            "Admin calls that were refused because they had no valid credential.",
        );
        Self { entries: TokenBucket::new(ENTRIES_PER_SECOND, ENTRIES_BURST), count: AtomicU64::new(0), refused }
    }

    fn may_write(&self) -> bool {
        self.entries.take(Instant::now()).is_ok()
    }
}

impl Door {
    /// Leaves the entry of a call without a valid credential, in bounded number, and gives back the refusal.
    pub(crate) async fn refuse_anonymous(&self, mut draft: EntryDraft, refused: Refused) -> Result<Error> {
        self.suppressed.refused.increment();
        draft.credential_id = refused.credential_id;
        draft.error = Some(refused.error.message().to_owned());
        draft.metadata.insert("reason".to_owned(), refused.error.reason().to_owned());
        if !self.suppressed.may_write() {
            self.suppressed.count.fetch_add(1, Ordering::Relaxed);
            return Ok(refused.error);
        }
        let counted = self.suppressed.count.swap(0, Ordering::Relaxed);
        self.record_refused(draft, counted, 1).await.map(|()| refused.error).map_err(cannot_record)
    }

    /// Leaves an entry of the refused calls that have none, if there are any and the bound on such entries allows another; at the
    /// end of the server it always does.
    pub(crate) async fn record_suppressed(&self, at_the_end: bool) -> Result<()> {
        if self.suppressed.count.load(Ordering::Relaxed) == 0 || !(self.suppressed.may_write() || at_the_end) {
            return Ok(());
        }
        let counted = self.suppressed.count.swap(0, Ordering::Relaxed);
        if counted == 0 {
            // An entry of that moment has them.
            return Ok(());
        }
        let draft = EntryDraft {
            operation: OPERATION.to_owned(),
            error: Some("calls without a valid credential were refused; these have no entries of their own".to_owned()),
            ..EntryDraft::default()
        };
        self.record_refused(draft, counted, 0).await
    }

    /// Writes an entry that tells of `counted` calls beside its own; when it cannot be written, they and the `own` ones of it
    /// stay counted.
    async fn record_refused(&self, mut draft: EntryDraft, counted: u64, own: u64) -> Result<()> {
        "anonymous".clone_into(&mut draft.actor);
        "none".clone_into(&mut draft.auth_method);
        if counted > 0 {
            draft.metadata.insert(COUNT.to_owned(), counted.to_string());
        }
        let written = self.services.store.write(move |tx| tx.append_entry(draft)).await;
        if written.is_err() {
            self.suppressed.count.fetch_add(counted + own, Ordering::Relaxed);
        }
        written.map(drop)
    }
}

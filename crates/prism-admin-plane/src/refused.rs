//! Calls without a valid credential, and calls beyond what their credential may have: each is refused with an entry, in bounded
//! number, and none is forgotten. What has no entry of its own is counted in the next one, or in an entry of the count alone.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use prism_core::rate::TokenBucket;
use prism_core::{Error, Result};
use prism_rpc::metrics::{Counter, Metrics};
use prism_store::EntryDraft;

use crate::door::{Door, note};
use crate::identity::Refused;
use crate::unrecorded::cannot_record;

/// Audit entries per second for refused calls of a kind; more are counted in the next entry.
const ENTRIES_PER_SECOND: u64 = 2;
/// And how many at once.
const ENTRIES_BURST: u64 = 100;
/// Names of entries that hold nothing but the count.
const CREDENTIALS: &str = "RefusedCredentials";
const CALLS: &str = "RefusedCalls";
const FAILED: &str = "FailedCalls";
/// The count in an entry's metadata.
const COUNT: &str = "suppressed_before";

/// Refused calls that have no entry, of one kind.
pub(crate) struct Suppressed {
    operation: &'static str,
    actor: &'static str,
    why: &'static str,
    entries: TokenBucket,
    count: AtomicU64,
    refused: Counter,
}

impl Suppressed {
    /// Calls without a valid credential; none so far.
    pub(crate) fn credentials(metrics: &Metrics) -> Self {
        let refused = metrics.counter(
            "prism_admin_credentials_refused_total",
            "Admin calls that were refused because they had no valid credential.",
        );
        let why = "calls without a valid credential were refused; these have no entries of their own";
        Self::new((CREDENTIALS, "anonymous", why), refused)
    }

    /// Calls that were one too many; none so far.
    pub(crate) fn calls(metrics: &Metrics) -> Self {
        let refused = metrics.counter(
            "prism_admin_calls_refused_total",
            "Admin calls that were refused because their credential, or all together, had too many.",
        );
        Self::new((CALLS, "prism", "calls beyond a bound were refused; these have no entries of their own"), refused)
    }

    /// Calls of which the server could not find out what their credential proves; none so far.
    pub(crate) fn failures(metrics: &Metrics) -> Self {
        let failed = metrics.counter(
            "prism_admin_calls_failed_total",
            "Admin calls that failed before it was known whether their credential is valid.",
        );
        let why =
            "calls failed before it was known whether their credential is valid; these have no entries of their own";
        Self::new((FAILED, "prism", why), failed)
    }

    fn new((operation, actor, why): (&'static str, &'static str, &'static str), refused: Counter) -> Self {
        let entries = TokenBucket::new(ENTRIES_PER_SECOND, ENTRIES_BURST);
        Self { operation, actor, why, entries, count: AtomicU64::new(0), refused }
    }

    /// Counts a refusal that will have no entry, or takes the count for the entry that it may have.
    fn counted(&self) -> Option<u64> {
        self.refused.increment();
        if self.may_write() {
            return Some(self.count.swap(0, Ordering::Relaxed));
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        None
    }

    fn may_write(&self) -> bool {
        self.entries.take(Instant::now()).is_ok()
    }
}

impl Door {
    /// Leaves the entry of a call without a valid credential, in bounded number, and gives back the refusal.
    pub(crate) async fn refuse_anonymous(&self, mut draft: EntryDraft, refused: Refused) -> Result<Error> {
        "anonymous".clone_into(&mut draft.actor);
        "none".clone_into(&mut draft.auth_method);
        draft.credential_id = refused.credential_id;
        self.refuse_counted(&self.suppressed, draft, refused.error).await
    }

    /// Leaves the entry of a call that failed before it was known what its credential proves, in bounded number, and gives back the
    /// failure.
    pub(crate) async fn fail_unproven(&self, draft: EntryDraft, failed: Error) -> Result<Error> {
        self.refuse_counted(&self.failures, draft, failed).await
    }

    /// Leaves the entry of a call whose credential is valid and has too many, in bounded number, and gives back the refusal.
    pub(crate) async fn refuse_excess(&self, draft: EntryDraft, refused: Error) -> Result<Error> {
        self.refuse_counted(&self.excess, draft, refused).await
    }

    async fn refuse_counted(&self, suppressed: &Suppressed, mut draft: EntryDraft, refused: Error) -> Result<Error> {
        let Some(counted) = suppressed.counted() else { return Ok(refused) };
        note(&mut draft, &refused);
        self.record_refused(suppressed, draft, (counted, 1)).await.map(|()| refused).map_err(cannot_record)
    }

    /// Leaves an entry of the refused calls of each kind that have none, if there are any and the bound on such entries allows
    /// another; at the end of the server it always does.
    pub(crate) async fn record_suppressed(&self, at_the_end: bool) -> Result<()> {
        for suppressed in [&self.suppressed, &self.excess, &self.failures] {
            if suppressed.count.load(Ordering::Relaxed) == 0 || !(suppressed.may_write() || at_the_end) {
                continue;
            }
            let counted = suppressed.count.swap(0, Ordering::Relaxed);
            if counted == 0 {
                // An entry of that moment has them.
                continue;
            }
            let draft = EntryDraft {
                actor: suppressed.actor.to_owned(),
                auth_method: "none".to_owned(),
                operation: suppressed.operation.to_owned(),
                error: Some(suppressed.why.to_owned()),
                ..EntryDraft::default()
            };
            self.record_refused(suppressed, draft, (counted, 0)).await?;
        }
        Ok(())
    }

    /// Writes an entry that tells of `counted` calls beside its own; when it cannot be written, they and the `own` ones of it
    /// stay counted.
    async fn record_refused(
        &self,
        suppressed: &Suppressed,
        mut draft: EntryDraft,
        (counted, own): (u64, u64),
    ) -> Result<()> {
        if counted > 0 {
            draft.metadata.insert(COUNT.to_owned(), counted.to_string());
        }
        let written = self.services.store.write(move |tx| tx.append_entry(draft)).await;
        if written.is_err() {
            suppressed.count.fetch_add(counted + own, Ordering::Relaxed);
        }
        written.map(drop)
    }
}

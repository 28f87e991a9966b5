//! GetAuditLog: the log as it stood when the call came, or as it grows.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use prism_core::permission::Reach;
use prism_core::{Error, NamespaceName, Result};
use prism_proto::admin::v1 as wire;
use prism_rpc::convert::from_timestamp;
use prism_store::{EntryFilter, Order, Store, Tx};

use crate::convert;
use crate::op::{Answer, Caller, Done, Op, Place, Services};

/// Entries when the request asks for 0 and neither follows nor resumes.
const DEFAULT_LIMIT: usize = 100;
/// Most entries of one answer; a larger `limit` is taken as this.
const MAX_LIMIT: usize = 10_000;
/// How often a stream that waits looks whether its credential still holds.
const RECHECK: Duration = Duration::from_millis(500);
/// Entries read at a time.
const CHUNK: usize = 256;

/// `GetAuditLog`.
#[derive(Clone)]
pub struct GetAuditLog {
    filter: EntryFilter,
    limit: Option<usize>,
    follow: bool,
    resume_after: Option<String>,
}

/// Where a stream of entries begins, once its own entry is written.
pub struct AuditCursor {
    filter: EntryFilter,
    reach: Reach,
    order: Order,
    /// How many at most; `None` = no limit.
    left: Option<usize>,
    /// Entries after this one are not for this stream; `None` = it follows.
    until: Option<u64>,
    /// The key that a stream stands on; empty for the server itself.
    credential_id: String,
}

impl Answer for AuditCursor {
    fn encode(&self) -> Option<Vec<u8>> {
        None
    }

    fn decode(_: &[u8]) -> Result<Self> {
        Err(Error::internal("an audit stream is never stored"))
    }
}

impl Op for GetAuditLog {
    type Request = wire::GetAuditLogRequest;
    type Response = AuditCursor;
    const RPC: &'static str = "prism.admin.v1.AdminService/GetAuditLog";

    fn resource(_: &Self::Request) -> String {
        "audit".to_owned()
    }

    fn namespace(request: &Self::Request) -> String {
        request.namespace.clone().unwrap_or_default()
    }

    fn place(request: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(request.namespace.clone().map_or(Place::Visible, Place::Namespace))
    }

    fn parse(request: Self::Request, _: &Services) -> Result<Self> {
        let start = request.start_time.as_ref().map(|at| from_timestamp("start_time", at)).transpose();
        let end = request.end_time.as_ref().map(|at| from_timestamp("end_time", at)).transpose();
        let namespace =
            request.namespace.as_deref().map_or(Ok(()), |name| NamespaceName::parse("namespace", name).map(|_| ()));
        let limit = usize::try_from(request.limit).map_err(|_| Error::invalid("limit", "must not be negative"));
        let order = match (&start, &end) {
            (Ok(Some(start)), Ok(Some(end))) if start > end => {
                Err(Error::invalid("end_time", "must not be before start_time"))
            }
            _ => Ok(()),
        };
        convert::all_of([
            namespace,
            start.as_ref().map(|_| ()).map_err(Clone::clone),
            end.as_ref().map(|_| ()).map_err(Clone::clone),
            order,
            limit.as_ref().map(|_| ()).map_err(Clone::clone),
        ])?;
        let onwards = request.follow || request.resume_after.is_some();
        let limit = match limit? {
            0 if onwards => None,
            0 => Some(DEFAULT_LIMIT),
            limit => Some(limit.min(MAX_LIMIT)),
        };
        Ok(Self {
            filter: EntryFilter {
                namespace: request.namespace,
                actor: request.actor,
                operation: request.operation,
                start: start?,
                end: end?,
            },
            limit,
            follow: request.follow,
            resume_after: request.resume_after,
        })
    }

    fn execute(self, tx: &mut Tx<'_>, caller: &Caller) -> Result<Done<AuditCursor>> {
        // The entry of this very call comes next; who looks at the log wants to see what was there before.
        let last = tx.last_sequence()?;
        let order = match &self.resume_after {
            Some(id) => Order::OldestAfter(tx.entry_sequence(id, &caller.reach)?),
            None if self.follow => Order::OldestAfter(last),
            None => Order::NewestBefore(last + 1),
        };
        Ok(Done::new(AuditCursor {
            filter: self.filter,
            reach: caller.reach.clone(),
            order,
            left: self.limit,
            until: (!self.follow).then_some(last as u64),
            credential_id: caller.identity.credential_id.clone(),
        }))
    }
}

impl AuditCursor {
    /// Whether this stream waits for new entries.
    pub fn follows(&self) -> bool {
        self.until.is_none()
    }

    /// The entries. A stream that follows ends with its limit, or when its caller goes away.
    pub fn stream(self, store: Arc<Store>) -> impl Stream<Item = Result<wire::AuditLogEntry>> + Send + 'static {
        let progress = store.audit_progress();
        let reader = Reader { cursor: self, store, progress, ready: VecDeque::new(), done: false };
        futures::stream::try_unfold(reader, |mut reader| async move {
            Ok(reader.next().await?.map(|entry| (entry, reader)))
        })
    }
}

struct Reader {
    cursor: AuditCursor,
    store: Arc<Store>,
    progress: tokio::sync::watch::Receiver<i64>,
    ready: VecDeque<wire::AuditLogEntry>,
    done: bool,
}

impl Reader {
    async fn next(&mut self) -> Result<Option<wire::AuditLogEntry>> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                return Ok(Some(entry));
            }
            if self.done || self.cursor.left == Some(0) {
                return Ok(None);
            }
            self.require_credential()?;
            self.read().await?;
            if self.ready.is_empty() && !self.done {
                // A grant that was taken away ends the stream also when nothing happens that it would tell.
                if let Ok(Err(_)) = tokio::time::timeout(RECHECK, self.progress.changed()).await {
                    return Ok(None);
                }
            }
        }
    }

    fn require_credential(&self) -> Result<()> {
        let id = &self.cursor.credential_id;
        if id.is_empty() || self.store.is_valid_api_key(id) {
            return Ok(());
        }
        Err(Error::unauthenticated("CREDENTIAL_INVALID", "the admin credential is no longer valid"))
    }

    async fn read(&mut self) -> Result<()> {
        // What is published from here on wakes the wait that may follow.
        let last = *self.progress.borrow_and_update();
        let cursor = &mut self.cursor;
        let chunk = cursor.left.map_or(CHUNK, |left| left.min(CHUNK));
        let mut entries =
            self.store.audit_entries(cursor.filter.clone(), cursor.reach.clone(), cursor.order, chunk).await?;
        if let Some(until) = cursor.until {
            let beyond = entries.last().is_some_and(|entry| entry.sequence >= until);
            let forwards = matches!(cursor.order, Order::OldestAfter(_));
            self.done = entries.len() < chunk || (forwards && beyond);
            entries.retain(|entry| entry.sequence <= until);
        }
        match (&mut cursor.order, entries.last()) {
            (Order::NewestBefore(at) | Order::OldestAfter(at), Some(entry)) => *at = entry.sequence as i64,
            // Nothing up to here matched; the next read need not look at it again.
            (Order::OldestAfter(at), None) => *at = (*at).max(last),
            (Order::NewestBefore(_), None) => self.done = true,
        }
        if let Some(left) = &mut cursor.left {
            *left -= entries.len();
        }
        self.ready.extend(entries);
        Ok(())
    }
}

//! GetAuditLog: the log as it stood when the call came, or as it grows.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures::Stream;
use prism_core::permission::{self, Permission, Reach};
use prism_core::{Error, Kind, NamespaceName, Result, UnixMillis};
use prism_proto::admin::v1 as wire;
use prism_rpc::convert::from_timestamp;
use prism_store::{Credential, EntryChunk, EntryFilter, EntryQuery, Order, Store, Tx};
use prost::bytes::Bytes;
use tokio_util::task::AbortOnDropHandle;

use crate::convert;
use crate::op::{Answer, Caller, Done, Op, Place, Scope, Services};

/// Entries when the request asks for 0 and reads newest first.
const DEFAULT_LIMIT: usize = 100;
/// Most entries of one answer; a larger `limit` is taken as this.
const MAX_LIMIT: usize = 10_000;
/// How often a stream looks whether what it stands on still holds, beside each time that it reads.
const RECHECK: Duration = Duration::from_millis(500);
/// What a stream stands on.
const PERMISSION: &str = "audit:read";

/// `GetAuditLog`.
#[derive(Clone)]
pub struct GetAuditLog {
    filter: EntryFilter,
    limit: Option<usize>,
    follow: bool,
    resume_after: Option<String>,
    oldest_first: bool,
}

/// Where a stream of entries begins, once its own entry is written.
pub struct AuditCursor {
    /// What to read; its limit is how many at most.
    query: EntryQuery,
    /// Whether it waits for new entries.
    follow: bool,
    /// What the stream stands on.
    credential: Credential,
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
    const SCOPE: Scope = Scope::Filtered;

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
        let onwards = request.follow || request.resume_after.is_some() || request.oldest_first;
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
            oldest_first: request.oldest_first,
        })
    }

    fn execute(self, tx: &mut Tx<'_>, caller: &Caller) -> Result<Done<AuditCursor>> {
        // The entry of this very call comes next; who looks at the log wants to see what was there before.
        let last = tx.last_sequence()?;
        let order = match &self.resume_after {
            Some(id) => Order::OldestAfter(tx.entry_sequence(id, &caller.reach)?),
            None if self.oldest_first => Order::OLDEST,
            None if self.follow => Order::OldestAfter(last),
            None => Order::NewestBefore { sequence: last + 1, timestamp: UnixMillis(i64::MAX) },
        };
        Ok(Done::new(AuditCursor {
            query: EntryQuery {
                filter: self.filter,
                reach: caller.reach.clone(),
                order,
                until: (!self.follow).then_some(last),
                limit: self.limit.unwrap_or(usize::MAX),
            },
            follow: self.follow,
            credential: caller.identity.credential.clone(),
        }))
    }
}

impl AuditCursor {
    /// The entries, as they are stored. A stream that follows ends with its limit, or when its caller goes away.
    ///
    /// UNAUTHENTICATED `CREDENTIAL_INVALID` and PERMISSION_DENIED when what the stream stands on is taken away, within
    /// [`RECHECK`]; ABORTED `AUDIT_LOG_CUT` when retention removed entries before they were read.
    pub fn stream(self, store: Arc<Store>) -> impl Stream<Item = Result<Bytes>> + Send + 'static {
        let standing = Standing {
            store: Arc::clone(&store),
            credential: self.credential,
            reach: self.query.reach.clone(),
            namespace: self.query.filter.namespace.clone(),
            checked: Instant::now(),
        };
        let (progress, standing_of_reader) = (store.audit_progress(), standing.clone());
        let (query, follow) = (self.query, self.follow);
        let reader = Reader { query, follow, standing: standing_of_reader, store, progress, ahead: None, end: false };
        let chunks = futures::stream::try_unfold(reader, |mut reader| async move {
            Ok(reader.next().await?.map(|chunk| (chunk, reader)))
        });
        Entries { chunks, ready: Vec::new().into_iter(), standing }
    }
}

/// What a stream stands on.
#[derive(Clone)]
struct Standing {
    store: Arc<Store>,
    credential: Credential,
    reach: Reach,
    namespace: Option<String>,
    checked: Instant,
}

impl Standing {
    fn check(&mut self) -> Result<()> {
        self.checked = Instant::now();
        let Some(grants) = self.store.standing(&self.credential) else {
            return Err(Error::unauthenticated("CREDENTIAL_INVALID", "the admin credential is no longer valid"));
        };
        let permission = Permission::parse(PERMISSION).ok_or_else(|| Error::internal("not a permission"))?;
        let now = permission::reach(&grants, &permission);
        let holds = match (&self.namespace, &self.reach) {
            (Some(namespace), _) => now.includes(Some(namespace)),
            (None, Reach::Installation) => now.includes(None),
            (None, Reach::Namespaces(names)) => names.iter().all(|name| now.includes(Some(name.as_str()))),
            (None, Reach::Nowhere) => false,
        };
        if holds {
            return Ok(());
        }
        let message = format!("this needs the permission {PERMISSION}, which was taken from your credential");
        Err(Error::new(Kind::PermissionDenied, "PERMISSION_DENIED", message).with("permission", PERMISSION))
    }

    fn check_now_and_then(&mut self) -> Result<()> {
        if self.checked.elapsed() < RECHECK { Ok(()) } else { self.check() }
    }
}

/// Reads chunk after chunk, each while the one before is sent.
struct Reader {
    query: EntryQuery,
    follow: bool,
    standing: Standing,
    store: Arc<Store>,
    progress: tokio::sync::watch::Receiver<i64>,
    ahead: Option<AbortOnDropHandle<Result<EntryChunk>>>,
    /// Whether the last chunk reached the end of the log.
    end: bool,
}

impl Reader {
    /// The next entries; never none of them, but at the end.
    async fn next(&mut self) -> Result<Option<Vec<Bytes>>> {
        loop {
            if self.query.limit == 0 || (self.end && !self.follow) {
                return Ok(None);
            }
            self.standing.check()?;
            if self.end && !self.grown().await? {
                return Ok(None);
            }
            let chunk = self.read().await?;
            self.query.order = chunk.next;
            self.query.limit = self.query.limit.saturating_sub(chunk.entries.len());
            self.end = chunk.end;
            if !chunk.entries.is_empty() {
                if !self.end && self.query.limit > 0 {
                    self.ahead = Some(self.begin());
                }
                return Ok(Some(chunk.entries));
            }
        }
    }

    fn begin(&mut self) -> AbortOnDropHandle<Result<EntryChunk>> {
        // What is published from here on wakes the wait that may follow.
        self.progress.mark_unchanged();
        let (store, query) = (Arc::clone(&self.store), self.query.clone());
        AbortOnDropHandle::new(tokio::spawn(async move { store.audit_chunk(query).await }))
    }

    async fn read(&mut self) -> Result<EntryChunk> {
        let mut reading = match self.ahead.take() {
            Some(reading) => reading,
            None => self.begin(),
        };
        loop {
            match tokio::time::timeout(RECHECK, &mut reading).await {
                Ok(read) => return read.map_err(Error::internal)?,
                Err(_) => self.standing.check()?,
            }
        }
    }

    /// Waits for new entries; `false` when there will be none.
    async fn grown(&mut self) -> Result<bool> {
        loop {
            match tokio::time::timeout(RECHECK, self.progress.changed()).await {
                Ok(changed) => return Ok(changed.is_ok()),
                // A grant that was taken away ends the stream also when nothing happens that it would tell.
                Err(_) => self.standing.check()?,
            }
        }
    }
}

pin_project_lite::pin_project! {
    /// Entries one by one. Those of a chunk wait for a slow caller, but not beyond the end of their grant.
    struct Entries<S> {
        #[pin]
        chunks: S,
        ready: std::vec::IntoIter<Bytes>,
        standing: Standing,
    }
}

impl<S: Stream<Item = Result<Vec<Bytes>>>> Stream for Entries<S> {
    type Item = Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut this = self.project();
        loop {
            if let Some(entry) = this.ready.next() {
                return Poll::Ready(Some(this.standing.check_now_and_then().map(|()| entry)));
            }
            match ready!(this.chunks.as_mut().poll_next(context)) {
                Some(Ok(chunk)) => *this.ready = chunk.into_iter(),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}

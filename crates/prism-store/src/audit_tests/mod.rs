//! The audit log as a whole: signed, read, cut, verified.

mod checkpoint;
mod query;
mod retention;

use std::path::Path;
use std::time::Duration;

use prism_core::limits::SessionPolicy;
use prism_core::permission::Reach;
use prism_core::secret::Random;
use prism_core::{Clock, Error, UnixMillis};
use prism_proto::admin::v1::AuditLogEntry;
use prost::Message as _;
use rusqlite::Connection;
use tempfile::TempDir;

use crate::{EntryDraft, EntryFilter, EntryQuery, Order, Store};

/// When the tests begin.
const START: UnixMillis = UnixMillis(1_760_000_000_000);

/// A store whose clock stands still until it is moved.
struct World {
    folder: TempDir,
    clock: Clock,
    store: Store,
}

impl World {
    async fn new() -> Self {
        let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::manual(START));
        let store = open(folder.path(), &clock).await.unwrap();
        Self { folder, clock, store }
    }

    /// Closes the store, lets somebody change the database, and opens it again.
    async fn tampered(self, sql: &str) -> Self {
        let Self { folder, clock, store } = self;
        drop(store);
        Connection::open(folder.path().join("prism.db")).unwrap().execute_batch(sql).unwrap();
        let store = open(folder.path(), &clock).await.unwrap();
        Self { folder, clock, store }
    }

    async fn reopened(self) -> Self {
        self.tampered("").await
    }

    /// Appends `count` entries of one actor, in one commit.
    async fn append(&self, actor: &str, count: usize) {
        let draft = EntryDraft {
            actor: actor.to_owned(),
            operation: "GetConfig".to_owned(),
            resource: "config:orders".to_owned(),
            namespace: "shop".to_owned(),
            request_id: "0190a1b2-0000-7000-8000-000000000001".to_owned(),
            source_address: "127.0.0.1:50000".to_owned(),
            auth_method: "api_key".to_owned(),
            credential_id: "0123456789abcdef".to_owned(),
            ..EntryDraft::default()
        };
        let append =
            move |tx: &mut crate::Tx<'_>| (0..count).try_for_each(|_| tx.append_entry(draft.clone()).map(drop));
        self.store.write(append).await.unwrap();
    }

    fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }

    /// Everything that matches, oldest first.
    async fn log(&self, filter: EntryFilter) -> Vec<AuditLogEntry> {
        let first = self.sql::<i64>("SELECT min(sequence) - 1 FROM audit").await;
        self.read(filter, Order::OldestAfter(first), usize::MAX).await.unwrap()
    }

    async fn read(&self, filter: EntryFilter, order: Order, limit: usize) -> Result<Vec<AuditLogEntry>, Error> {
        let mut query = EntryQuery { filter, reach: Reach::Installation, order, until: None, limit };
        let mut out = Vec::new();
        loop {
            let chunk = self.store.audit_chunk(query.clone()).await?;
            query.limit -= chunk.entries.len();
            query.order = chunk.next;
            out.extend(chunk.entries.iter().map(|encoded| AuditLogEntry::decode(encoded.clone()).unwrap()));
            if chunk.end || query.limit == 0 {
                return Ok(out);
            }
        }
    }

    async fn sql<T: rusqlite::types::FromSql + Send + 'static>(&self, sql: &str) -> T {
        let sql = sql.to_owned();
        let read = move |connection: &Connection| Ok(connection.query_row(&sql, [], |row| row.get(0)).unwrap());
        self.store.database.readers.run(read).await.unwrap()
    }

    /// The sequence that verification finds broken.
    async fn broken_at(&self) -> Option<String> {
        self.store.verify_audit().await.err().map(|error| error.metadata()["sequence"].clone())
    }
}

async fn open(folder: &Path, clock: &Clock) -> Result<Store, Error> {
    Store::open(folder, SessionPolicy::default(), clock.clone(), Random::system()).await
}

fn newest(sequence: i64) -> Order {
    Order::NewestBefore { sequence, timestamp: UnixMillis(i64::MAX) }
}

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use prism_core::storage::{Charge, StorageMeter};
use prism_core::{Clock, Error, NamespaceName, Result};
use prism_sqlite::{Database, Hook, error};
use rusqlite::Connection;

use super::{key_value, queue, transact};
use crate::driver::namespace_removed;

/// Schema of a namespace's file. Scripts are only ever appended.
const MIGRATIONS: &[&str] = &[USAGE, key_value::SCHEMA, queue::SCHEMA, transact::SCHEMA];

/// Bytes stored for the namespace, kept in the same transaction as the data.
const USAGE: &str = "
    CREATE TABLE _prism_usage (bytes INTEGER NOT NULL) STRICT;
    INSERT INTO _prism_usage VALUES (0);
";

/// Most scans that run at the same time; more wait. Reads of single messages and keys never wait for them.
const MAX_SCANS: usize = 2;
/// How long closing waits for the write that runs.
const CLOSES_WITHIN: Duration = Duration::from_secs(10);

const OPEN: u8 = 0;
const CLOSED: u8 = 1;
const REMOVED: u8 = 2;

/// The part of an instance that belongs to one namespace: a database file of its own, so that no statement can reach
/// another's data, and a deletion is the removal of a file.
pub(crate) struct Space {
    pub(crate) namespace: NamespaceName,
    pub(crate) clock: Clock,
    database: Database<Growth>,
    /// A pool of their own for queries that a client wrote, which may take long.
    scans: prism_sqlite::Readers,
    state: Arc<AtomicU8>,
}

/// Growth of the batch that is being written: charged before its commit, kept with it, given back without it.
struct Growth {
    meter: Arc<StorageMeter>,
    bytes: i64,
    charges: Vec<Charge>,
}

impl Hook for Growth {
    fn before_commit(&mut self, connection: &Connection) -> Result<()> {
        if self.bytes != 0 {
            connection
                .prepare_cached("UPDATE _prism_usage SET bytes = bytes + ?1")
                .and_then(|mut statement| statement.execute([self.bytes]))
                .map_err(error)?;
        }
        Ok(())
    }

    fn committed(&mut self, _connection: &Connection) {
        // What shrank is given back only now that it is durable.
        let charged: i64 = self.charges.drain(..).map(Charge::keep).sum();
        self.meter.adjust(self.bytes - charged);
        self.bytes = 0;
    }

    fn rolled_back(&mut self, _connection: &Connection) {
        self.charges.clear();
        self.bytes = 0;
    }
}

impl Space {
    /// Opens or makes the file. What it already stores has been told to the meter at start (`Backend::stored`).
    pub(crate) fn open(path: &Path, namespace: NamespaceName, meter: Arc<StorageMeter>, clock: Clock) -> Result<Self> {
        let name = format!("data:{namespace}");
        let growth = |_: &Connection| Ok(Growth { meter, bytes: 0, charges: Vec::new() });
        let database = Database::open(path, &name, MIGRATIONS, growth)?;
        let scans = prism_sqlite::Readers::new(path.to_owned(), MAX_SCANS);
        Ok(Self { namespace, clock, database, scans, state: Arc::new(AtomicU8::new(OPEN)) })
    }

    /// Runs `work` in the next group commit. It returns its result and by how many bytes the stored data grew (negative:
    /// shrank); growth is charged against the namespace's quota before the commit and given back when the commit fails.
    /// Durable when it returns.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<(T, i64)> + Send + 'static,
    ) -> Result<T> {
        let state = Arc::clone(&self.state);
        self.database
            .writer
            .run(move |connection, growth| {
                // Asked on the writer thread, so that what waits in its queue when the space closes is refused too.
                admit(&state)?;
                let (value, grown) = work(connection)?;
                if grown > 0 {
                    growth.charges.push(growth.meter.charge(grown)?);
                }
                growth.bytes += grown;
                Ok(value)
            })
            .await
    }

    /// Readers that see every answered write, for what is quick.
    pub(crate) fn readers(&self) -> Readers<'_> {
        Readers { space: self, pool: &self.database.readers }
    }

    /// Readers for what may take long.
    pub(crate) fn scans(&self) -> Readers<'_> {
        Readers { space: self, pool: &self.scans }
    }

    /// Refuses reads and writes from now on, and returns when the write that runs is done. `removed`: the namespace's data
    /// is about to be removed, otherwise the backend is shutting down.
    ///
    /// UNAVAILABLE `NAMESPACE_BUSY` when that write takes longer than 10 s; the refusals stand.
    pub(crate) async fn close(&self, removed: bool) -> Result<()> {
        self.state.fetch_max(if removed { REMOVED } else { CLOSED }, Ordering::SeqCst);
        // A barrier: its answer comes after the batch before it. It fails only when the writer is gone, which is as good.
        let barrier = self.database.writer.run(|_, _| Ok(()));
        match tokio::time::timeout(CLOSES_WITHIN, barrier).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::unavailable("NAMESPACE_BUSY", "a write of the namespace takes too long; try again")),
        }
    }
}

/// Readers of a space, for as long as it is open.
pub(crate) struct Readers<'a> {
    space: &'a Space,
    pool: &'a prism_sqlite::Readers,
}

impl Readers<'_> {
    /// Runs `read` on a read-only connection off the async threads. It sees every write that was answered before the call.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let state = Arc::clone(&self.space.state);
        self.pool
            .run(move |connection| {
                // Asked after the connection was opened: once a namespace is removed, its path may belong to a new one.
                admit(&state)?;
                read(connection)
            })
            .await
    }

    /// Connections in use.
    pub(crate) fn active(&self) -> usize {
        self.pool.active()
    }

    /// Connections open and unused.
    pub(crate) fn idle(&self) -> usize {
        self.pool.idle()
    }

    /// Connections allowed.
    pub(crate) fn capacity(&self) -> usize {
        self.pool.capacity()
    }
}

fn admit(state: &AtomicU8) -> Result<()> {
    match state.load(Ordering::SeqCst) {
        OPEN => Ok(()),
        REMOVED => Err(namespace_removed()),
        _ => Err(Error::unavailable("STORAGE_CLOSED", "the storage is shutting down")),
    }
}

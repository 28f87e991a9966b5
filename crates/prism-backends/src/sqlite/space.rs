use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

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

const OPEN: u8 = 0;
const CLOSED: u8 = 1;
const REMOVED: u8 = 2;

/// The part of an instance that belongs to one namespace: a database file of its own, so that no statement can reach
/// another's data, and a deletion is the removal of a file.
pub(crate) struct Space {
    pub(crate) namespace: NamespaceName,
    pub(crate) clock: Clock,
    database: Database<Growth>,
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
        Ok(Self { namespace, clock, database, state: Arc::new(AtomicU8::new(OPEN)) })
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

    /// Readers that see every answered write.
    pub(crate) fn readers(&self) -> Readers<'_> {
        Readers(self)
    }

    /// Refuses reads and writes from now on, and returns when the write that runs is done. `removed`: the namespace's data
    /// is about to be removed, otherwise the backend is shutting down.
    pub(crate) async fn close(&self, removed: bool) {
        self.state.fetch_max(if removed { REMOVED } else { CLOSED }, Ordering::SeqCst);
        // A barrier: its answer comes after the batch before it. It fails only when the writer is gone, which is as good.
        let _ = self.database.writer.run(|_, _| Ok(())).await;
    }
}

/// The readers of a space, for as long as it is open.
pub(crate) struct Readers<'a>(&'a Space);

impl Readers<'_> {
    /// Runs `read` on a read-only connection off the async threads. It sees every write that was answered before the call.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let state = Arc::clone(&self.0.state);
        self.0
            .database
            .readers
            .run(move |connection| {
                // Asked after the connection was opened: once a namespace is removed, its path may belong to a new one.
                admit(&state)?;
                read(connection)
            })
            .await
    }

    /// Connections in use.
    pub(crate) fn active(&self) -> usize {
        self.0.database.readers.active()
    }

    /// Connections open and unused.
    pub(crate) fn idle(&self) -> usize {
        self.0.database.readers.idle()
    }

    /// Connections allowed.
    pub(crate) fn capacity(&self) -> usize {
        self.0.database.readers.capacity()
    }
}

fn admit(state: &AtomicU8) -> Result<()> {
    match state.load(Ordering::SeqCst) {
        OPEN => Ok(()),
        REMOVED => Err(namespace_removed()),
        _ => Err(Error::unavailable("STORAGE_CLOSED", "the storage is shutting down")),
    }
}

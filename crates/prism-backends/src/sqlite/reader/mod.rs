//! PAGED_READER on the embedded backend.

mod cursor;
mod page;
mod sql;
pub(in crate::sqlite) mod table;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use prism_core::{Error, Kind, Result};
use rusqlite::{Connection, InterruptHandle};

use super::space::Space;
use crate::driver::{Filter, ReadPage, ReadRequest, Reader};

/// Reads the allowed tables and views of one namespace.
pub(crate) struct SqliteReader {
    space: Arc<Space>,
    collections: Vec<String>,
}

impl SqliteReader {
    /// Serves `collections` of `space`.
    pub(crate) fn new(space: Arc<Space>, collections: Vec<String>) -> Self {
        Self { space, collections }
    }

    fn allow(&self, collection: &str) -> Result<()> {
        if self.collections.iter().any(|allowed| allowed == collection) && !table::is_internal(collection) {
            return Ok(());
        }
        Err(Error::new(
            Kind::PermissionDenied,
            "COLLECTION_NOT_ALLOWED",
            "the config's backend option `collections` does not list this collection",
        ))
    }

    /// Runs `read` until it is done or nobody waits for it any more.
    async fn run<T: Send + 'static>(&self, read: impl FnOnce(&Connection) -> Result<T> + Send + 'static) -> Result<T> {
        let caller = Caller(Arc::default());
        let waits = Arc::clone(&caller.0);
        self.space
            .scans()
            .run(move |connection| {
                if !waits.lock().unwrap_or_else(PoisonError::into_inner).start(connection) {
                    return Err(Error::new(Kind::Aborted, "CANCELLED", "the caller has gone"));
                }
                let result = read(connection);
                // From here on an interrupt would meet the connection's next query.
                waits.lock().unwrap_or_else(PoisonError::into_inner).query = None;
                result
            })
            .await
    }
}

#[async_trait]
impl Reader for SqliteReader {
    async fn read(&self, request: ReadRequest) -> Result<ReadPage> {
        self.allow(&request.collection)?;
        self.run(move |connection| page::read(connection, &request)).await
    }

    async fn count(&self, collection: &str, filter: Option<Filter>) -> Result<i64> {
        self.allow(collection)?;
        let collection = collection.to_owned();
        self.run(move |connection| page::count(connection, &collection, filter.as_ref())).await
    }
}

/// Whether somebody waits for a query, and the query while it runs.
#[derive(Default)]
struct Waits {
    gone: bool,
    query: Option<InterruptHandle>,
}

impl Waits {
    fn start(&mut self, connection: &Connection) -> bool {
        if !self.gone {
            self.query = Some(connection.get_interrupt_handle());
        }
        !self.gone
    }
}

/// Dropped with the call; a query that still runs then is stopped, because few can run at the same time.
struct Caller(Arc<Mutex<Waits>>);

impl Drop for Caller {
    fn drop(&mut self) {
        let mut waits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waits.gone = true;
        if let Some(query) = waits.query.take() {
            query.interrupt();
        }
    }
}

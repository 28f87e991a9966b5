use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use prism_core::{Error, Result};
use rusqlite::Connection;
use tokio::sync::Semaphore;

use crate::{error, open_reader};

/// Read-only connections of one database, opened on demand and kept.
#[derive(Clone)]
pub struct Readers(Arc<Inner>);

struct Inner {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
    capacity: usize,
}

impl Readers {
    /// Readers of the database at `path`: at most `capacity` read at the same time, more wait.
    pub fn new(path: PathBuf, capacity: usize) -> Self {
        let permits = Arc::new(Semaphore::new(capacity));
        Self(Arc::new(Inner { path, idle: Mutex::new(Vec::new()), permits, capacity }))
    }

    /// Runs `read` on a connection off the async threads. It sees every commit that was answered before the call.
    pub async fn run<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let permit = Arc::clone(&self.0.permits).acquire_owned().await.map_err(Error::internal)?;
        let inner = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || {
            // Held by the query, not by the caller, who may go away while it runs.
            let _permit = permit;
            let kept = inner.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let connection = match kept {
                Some(connection) => connection,
                None => open_reader(&inner.path).map_err(error)?,
            };
            let result = read(&connection);
            if connection.is_autocommit() {
                inner.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
            }
            result
        })
        .await
        .map_err(Error::internal)?
    }

    /// Connections open and unused.
    pub fn idle(&self) -> usize {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Connections in use.
    pub fn active(&self) -> usize {
        self.0.capacity.saturating_sub(self.0.permits.available_permits())
    }

    /// Connections allowed.
    pub fn capacity(&self) -> usize {
        self.0.capacity
    }
}

//! The embedded SQLite backend: one database file for each namespace.

mod health;
mod key_value;
mod queue;
mod reader;
mod schema_option;
mod space;
mod transact;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as StdMutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use prism_core::config::{AccessPattern, BackendType, Config};
use prism_core::storage::StorageMeter;
use prism_core::{Clock, Error, InstanceName, NamespaceName, Result};
use prism_sqlite::error;
use tokio::sync::Mutex;
use tracing::{error, warn};

use crate::driver::{Backend, HealthCheck, Route};
use space::Space;

/// How often what has expired is looked for in the namespaces that are open.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// One instance of the embedded backend: a folder with one file `<namespace>.db` for each namespace that has data.
pub struct SqliteBackend {
    name: InstanceName,
    folder: PathBuf,
    clock: Clock,
    slots: StdMutex<HashMap<NamespaceName, Slot>>,
    health: Arc<health::Probe>,
}

/// The place of one namespace. Its lock orders opening and removal of the file against each other.
type Slot = Arc<Mutex<Option<Opened>>>;

/// What is shared by all sessions of a namespace.
#[derive(Clone)]
struct Opened {
    space: Arc<Space>,
    /// Made by the first session that queues: deliveries in flight are known in one place only.
    queue: Option<Arc<queue::Coordinator>>,
}

impl SqliteBackend {
    /// Opens the instance `name` in `folder`, which is made with mode 0700 when it does not exist.
    ///
    /// UNAVAILABLE `STORAGE_UNAVAILABLE` when that is not possible. Must be called within a Tokio runtime.
    pub async fn open(name: InstanceName, folder: PathBuf, clock: Clock) -> Result<Arc<Self>> {
        let made = folder.clone();
        blocking(move || make_folder(&made)).await?;
        let health = Arc::new(health::Probe::new(folder.join("_health.db")));
        let backend = Arc::new(Self { name, folder, clock, slots: StdMutex::default(), health });
        tokio::spawn(sweep_until_dropped(Arc::downgrade(&backend)));
        Ok(backend)
    }

    fn path(&self, namespace: &NamespaceName) -> PathBuf {
        self.folder.join(format!("{namespace}.db"))
    }

    fn slot(&self, namespace: &NamespaceName) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(namespace.clone()).or_default())
    }

    fn all_slots(&self) -> Vec<Slot> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    async fn space(&self, namespace: &NamespaceName, meter: &Arc<StorageMeter>) -> Result<Arc<Space>> {
        let mut slot = self.slot(namespace).lock_owned().await;
        if let Some(opened) = slot.as_ref() {
            return Ok(Arc::clone(&opened.space));
        }
        let (path, namespace) = (self.path(namespace), namespace.clone());
        let (meter, clock) = (Arc::clone(meter), self.clock.clone());
        // The lock goes along: when the caller is cancelled, nobody opens the file a second time meanwhile.
        blocking(move || {
            let space = Arc::new(Space::open(&path, namespace, meter, clock)?);
            *slot = Some(Opened { space: Arc::clone(&space), queue: None });
            Ok(space)
        })
        .await
    }

    async fn queue(&self, namespace: &NamespaceName, meter: &Arc<StorageMeter>) -> Result<Arc<queue::Coordinator>> {
        let space = self.space(namespace, meter).await?;
        let mut slot = self.slot(namespace).lock_owned().await;
        let opened = slot.as_mut().filter(|opened| Arc::ptr_eq(&opened.space, &space));
        // Removed or closed since: the space's own refusal is the answer.
        let Some(opened) = opened else { return queue::Coordinator::open(space) };
        if let Some(coordinator) = &opened.queue {
            return Ok(Arc::clone(coordinator));
        }
        let coordinator = queue::Coordinator::open(space)?;
        opened.queue = Some(Arc::clone(&coordinator));
        Ok(coordinator)
    }

    /// Removes what has expired in the namespaces that are open, and gives its bytes back.
    async fn sweep(&self) {
        for slot in self.all_slots() {
            let space = slot.lock().await.as_ref().map(|opened| Arc::clone(&opened.space));
            if let Some(space) = space
                && let Err(cause) = key_value::sweep(&space).await
            {
                warn!(namespace = %space.namespace, reason = cause.reason(), "expired keys could not be removed");
            }
        }
    }
}

async fn sweep_until_dropped(backend: Weak<SqliteBackend>) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        match backend.upgrade() {
            Some(backend) => backend.sweep().await,
            None => return,
        }
    }
}

#[async_trait]
impl Backend for SqliteBackend {
    fn kind(&self) -> BackendType {
        BackendType::Sqlite
    }

    fn name(&self) -> &InstanceName {
        &self.name
    }

    fn endpoint(&self) -> String {
        self.folder.display().to_string()
    }

    async fn open(&self, config: &Config, meter: &Arc<StorageMeter>) -> Result<Route> {
        let namespace = &config.namespace;
        Ok(match config.pattern {
            AccessPattern::KeyValue => {
                Route::KeyValue(Arc::new(key_value::SqliteKeyValue::new(self.space(namespace, meter).await?)))
            }
            AccessPattern::Queue => Route::Queue(self.queue(namespace, meter).await?.handle(config)),
            AccessPattern::PagedReader => {
                let collections = config.option_names("collections");
                Route::Reader(Arc::new(reader::SqliteReader::new(self.space(namespace, meter).await?, collections)))
            }
            AccessPattern::TransactWrite => {
                let tables = config.option_names("tables");
                Route::Transact(Arc::new(transact::SqliteTransact::new(self.space(namespace, meter).await?, tables)))
            }
            AccessPattern::PubSub => return Err(Error::invalid("config.pattern", "sqlite does not serve PUBSUB")),
        })
    }

    async fn check(&self, config: &Config) -> Result<()> {
        let Some(schema) = schema_option::of(config)? else { return Ok(()) };
        // The tables that are there already decide whether an index fits; a namespace without a file has none.
        let path = self.path(&config.namespace);
        blocking(move || schema_option::rehearse(&schema, &path)).await
    }

    async fn prepare(&self, config: &Config, meter: &Arc<StorageMeter>) -> Result<()> {
        let Some(schema) = schema_option::of(config)? else { return Ok(()) };
        self.check(config).await?;
        let space = self.space(&config.namespace, meter).await?;
        space.write(move |connection| schema_option::apply(&schema, connection).map(|()| ((), 0))).await
    }

    async fn stored(&self) -> Result<Vec<(NamespaceName, i64)>> {
        let folder = self.folder.clone();
        blocking(move || stored_in(&folder)).await
    }

    async fn health(&self) -> HealthCheck {
        let (mut active, mut idle, mut pool) = (0, 0, 0);
        for slot in self.all_slots() {
            // A slot that is being opened or removed counts next time; health must not wait for it.
            if let Ok(opened) = slot.try_lock()
                && let Some(opened) = opened.as_ref()
            {
                for readers in [opened.space.readers(), opened.space.scans()] {
                    active += readers.active();
                    idle += readers.idle();
                    pool += readers.capacity();
                }
                // The writer, which is always open.
                active += 1;
                pool += 1;
            }
        }
        let (health, message) = health::Probe::check(&self.health).await;
        let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        HealthCheck {
            health,
            message,
            active_connections: count(active),
            pool_size: count(pool),
            idle_connections: count(idle),
        }
    }

    async fn remove_namespace(&self, namespace: &NamespaceName) -> Result<()> {
        // Held until the files are gone, even when the caller is cancelled: nobody opens a file that is being removed.
        let mut slot = self.slot(namespace).lock_owned().await;
        let path = self.path(namespace);
        let removal = tokio::spawn(async move {
            if let Some(opened) = slot.as_ref() {
                // Where it stays busy the slot keeps it, for the next try.
                opened.space.close(true).await?;
            }
            if let Some(opened) = slot.take() {
                release(opened).await;
            }
            let removed = blocking(move || remove_files(&path)).await;
            drop(slot);
            removed
        });
        removal.await.map_err(Error::internal)?
    }

    async fn close(&self) {
        futures::future::join_all(self.all_slots().into_iter().map(shut)).await;
    }
}

/// Closes one namespace at shutdown, which must end whatever the namespace does.
async fn shut(slot: Slot) {
    let Some(opened) = slot.lock().await.take() else { return };
    match opened.space.close(false).await {
        Ok(()) => release(opened).await,
        Err(busy) => {
            let namespace = &opened.space.namespace;
            error!(%namespace, reason = busy.reason(), "a namespace did not close; its last write is not waited for");
            // The runtime would wait for one of its own threads.
            std::thread::spawn(move || drop(opened));
        }
    }
}

/// Drops off the async threads: the last reference waits for the writer thread and closes the file.
async fn release(opened: Opened) {
    let _ = tokio::task::spawn_blocking(move || drop(opened)).await;
}

/// Runs `work`, which does file operations, off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(Error::internal)?
}

fn storage(cause: std::io::Error) -> Error {
    Error::unavailable("STORAGE_UNAVAILABLE", "the data folder of the embedded backend cannot be used").caused_by(cause)
}

#[cfg(unix)]
fn make_folder(folder: &Path) -> Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(storage)?;
    // A folder that was there before may be open to others.
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)).map_err(storage)
}

#[cfg(not(unix))]
fn make_folder(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(storage)
}

fn stored_in(folder: &Path) -> Result<Vec<(NamespaceName, i64)>> {
    let mut stored = Vec::new();
    for file in std::fs::read_dir(folder).map_err(storage)? {
        let path = file.map_err(storage)?.path();
        if path.extension() != Some(OsStr::new("db")) {
            continue;
        }
        let stem = path.file_stem().and_then(OsStr::to_str).unwrap_or_default();
        let Ok(namespace) = NamespaceName::parse("namespace", stem) else { continue };
        match usage(&path) {
            Ok(bytes) => stored.push((namespace, bytes)),
            // One broken file must not keep all other namespaces from being served; its own sessions are refused.
            Err(cause) => error!(%namespace, cause = ?cause.cause(), "the namespace's database cannot be read"),
        }
    }
    Ok(stored)
}

fn usage(path: &Path) -> Result<i64> {
    let connection = prism_sqlite::open_reader(path).map_err(error)?;
    let made: bool = connection
        .query_row("SELECT count(*) FROM sqlite_schema WHERE name = '_prism_usage'", [], |row| row.get(0))
        .map_err(error)?;
    // A file without it is one whose first opening was cut short; it stores nothing.
    if made {
        connection.query_row("SELECT bytes FROM _prism_usage", [], |row| row.get(0)).map_err(error)
    } else {
        Ok(0)
    }
}

fn remove_files(path: &Path) -> Result<()> {
    for suffix in ["", "-wal", "-shm"] {
        let mut file = path.as_os_str().to_owned();
        file.push(suffix);
        match std::fs::remove_file(&file) {
            Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => return Err(storage(cause)),
            _ => {}
        }
    }
    // Without this the file could be back after a power cut.
    #[cfg(unix)]
    if let Some(folder) = path.parent() {
        std::fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(storage)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;

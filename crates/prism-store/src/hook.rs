use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use arc_swap::{ArcSwap, ArcSwapOption};
use immutable_chunkmap::map::Map;
use prism_core::access::Access;
use prism_core::control::Snapshot;
use prism_core::secret::SecretId;
use prism_core::{ConfigName, NamespaceName, Result, UnixMillis};
use prism_proto::admin::v1::AuditCheckpoint;
use prism_sqlite::Hook;
use rusqlite::Connection;
use tokio::sync::watch;
use tracing::error;

use crate::checkpoint::newest_entry;
use crate::key::{ApiKeyRow, ClientKeyRow, read_api_key, read_client_key};
use crate::operations::{MAINTENANCE, read_maintenance};
use crate::tx::{Change, Guard, Known, Touched, Tx, all};

/// Keys that are not revoked by public id, for authentication without a query. A change copies a few entries of it, however
/// many there are.
pub(crate) type Keys<K> = ArcSwap<Map<SecretId, Arc<K>, 64>>;

/// What the store keeps in memory, always derived from what is durable: readers never wait and never see a change that
/// could still be rolled back.
pub(crate) struct Published {
    pub(crate) snapshot: watch::Sender<Arc<Snapshot>>,
    pub(crate) api_keys: Keys<ApiKeyRow>,
    pub(crate) client_keys: Keys<ClientKeyRow>,
    pub(crate) access: ArcSwap<Access>,
    /// The newest audit sequence, for those who follow the log.
    pub(crate) audit: watch::Sender<i64>,
    /// Sequence and hash of the newest audit entry that is durable.
    pub(crate) head: ArcSwapOption<(i64, [u8; 32])>,
    /// The newest checkpoint of the log.
    pub(crate) checkpoint: ArcSwapOption<AuditCheckpoint>,
    /// Whether a node has ever joined.
    pub(crate) has_nodes: AtomicBool,
}

/// The writer thread's hook: publishes what a batch changed, after its commit and before its callers hear of it.
pub(crate) struct Publisher {
    pub(crate) touched: Touched,
    pub(crate) published: Arc<Published>,
}

impl Publisher {
    /// Loads everything.
    pub(crate) fn load(connection: &Connection) -> Result<(Self, Arc<Published>)> {
        let nodes = all(connection, "SELECT 1 FROM nodes LIMIT 1", [], |_| Ok(()))?;
        let shared = Arc::new(Published {
            snapshot: watch::Sender::new(Arc::default()),
            api_keys: ArcSwap::default(),
            client_keys: ArcSwap::default(),
            access: ArcSwap::default(),
            audit: watch::Sender::new(0),
            head: ArcSwapOption::empty(),
            checkpoint: ArcSwapOption::empty(),
            has_nodes: AtomicBool::new(!nodes.is_empty()),
        });
        let names = |sql: &str| {
            all(connection, sql, [], |row| row.get::<_, String>(0))
                .map(|names| names.into_iter().collect::<BTreeSet<_>>())
        };
        let touched = Touched {
            configs: names("SELECT name FROM configs")?.into_iter().map(|name| (name, Change::Unknown)).collect(),
            namespaces: names("SELECT name FROM namespaces")?,
            operations: true,
            api_keys: names("SELECT id FROM api_keys WHERE revoked_at IS NULL")?,
            client_keys: names("SELECT id FROM client_keys WHERE revoked_at IS NULL")?,
            audit: true,
            checkpoints: true,
            access: true,
            client_access: true,
            current_access: None,
            known: Known::default(),
        };
        let mut publisher = Self { touched, published: Arc::clone(&shared) };
        publisher.publish(connection)?;
        Ok((publisher, shared))
    }

    fn publish(&mut self, connection: &Connection) -> Result<()> {
        let mut touched = std::mem::take(&mut self.touched);
        self.touched.known = std::mem::take(&mut touched.known);
        self.touched.known.at_most.counted = false;
        // Times do not matter to what is read here.
        let mut unused = Touched::default();
        let (touched_here, published) = (&mut unused, &*self.published);
        let now = UnixMillis(i64::MIN);
        let tx = Tx { connection, touched: touched_here, published, guard: Guard::Savepoint, now };
        // Before the snapshot, which wakes those who follow.
        refresh(&tx, &self.published.api_keys, &touched.api_keys, "api_keys", read_api_key)?;
        refresh(&tx, &self.published.client_keys, &touched.client_keys, "client_keys", read_client_key)?;
        if touched.access {
            self.published.access.store(Arc::new(tx.load_access()?));
        }
        if touched.changes_snapshot() {
            let mut next = Snapshot::clone(&self.published.snapshot.borrow());
            next.revision += 1;
            for (name, change) in std::mem::take(&mut touched.configs) {
                let current = match change {
                    Change::Stored(revision) => Some(revision),
                    Change::Deleted => None,
                    Change::Unknown => tx.stored_config(&name)?.map(|row| Arc::new(row.into())),
                };
                match current {
                    Some(revision) => drop(next.configs.insert_cow(revision.config.name.clone(), revision)),
                    None => drop(ConfigName::try_from(name).map(|name| next.configs.remove_cow(&name))),
                }
            }
            for name in &touched.namespaces {
                match tx.namespace(name)? {
                    Some(row) => next.namespaces.insert(row.namespace.name.clone(), Arc::new(row.namespace)),
                    None => next.namespaces.remove(name.as_str()),
                };
            }
            if touched.operations {
                load_operations(&tx, &mut next)?;
            }
            if touched.client_access {
                next.client_access = Arc::new(tx.load_client_access()?);
            }
            self.published.snapshot.send_replace(Arc::new(next));
        }
        if touched.checkpoints {
            self.published.checkpoint.store(tx.newest_checkpoint()?.map(Arc::new));
        }
        if touched.audit {
            let head = match self.touched.known.chain {
                Some(head) => Some(head),
                // What somebody made unreadable is found by verification, and does not keep the server from working.
                None => newest_entry(connection)
                    .inspect_err(|error| error!(cause = ?error.cause(), "the newest audit entry cannot be read"))
                    .unwrap_or_default(),
            };
            let last = match head {
                Some((sequence, _)) => sequence,
                None => tx.last_sequence()?,
            };
            self.published.head.store(head.map(Arc::new));
            self.published.audit.send_replace(last);
        }
        Ok(())
    }
}

fn load_operations(tx: &Tx<'_>, snapshot: &mut Snapshot) -> Result<()> {
    snapshot.maintenance = None;
    snapshot.namespace_maintenance.clear();
    for (scope, maintenance) in tx.all(MAINTENANCE, [], read_maintenance)? {
        match NamespaceName::try_from(scope) {
            Ok(namespace) => drop(snapshot.namespace_maintenance.insert(namespace, Arc::new(maintenance))),
            Err(_) => snapshot.maintenance = Some(Arc::new(maintenance)),
        }
    }
    snapshot.drains = tx.drains()?;
    Ok(())
}

fn refresh<K>(
    tx: &Tx<'_>,
    keys: &Keys<K>,
    touched: &std::collections::BTreeSet<String>,
    table: &str,
    read: fn(&rusqlite::Row<'_>) -> rusqlite::Result<K>,
) -> Result<()>
where
    K: Clone,
{
    if touched.is_empty() {
        return Ok(());
    }
    let mut next = Map::clone(&keys.load());
    let sql = format!("SELECT * FROM {table} WHERE id = ?1 AND revoked_at IS NULL");
    for name in touched {
        let Some(id) = SecretId::parse(name) else { continue };
        match tx.one(&sql, [name], read)? {
            Some(key) => drop(next.insert_cow(id, Arc::new(key))),
            None => drop(next.remove_cow(&id)),
        }
    }
    keys.store(Arc::new(next));
    Ok(())
}

impl Hook for Publisher {
    fn committed(&mut self, connection: &Connection) {
        if let Err(failed) = self.publish(connection) {
            // What is durable and what is served now differ; only a restart brings them together for certain.
            error!(reason = failed.reason(), cause = ?failed.cause(), "the control state could not be read back after a commit; stopping");
            std::process::abort();
        }
    }

    fn undone(&mut self) {
        self.touched.undone();
    }

    fn rolled_back(&mut self, _connection: &Connection) {
        self.touched = Touched::default();
    }
}

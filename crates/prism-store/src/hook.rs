use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use prism_core::control::Snapshot;
use prism_core::secret::SecretId;
use prism_core::{NamespaceName, Result, UnixMillis};
use prism_sqlite::Hook;
use rusqlite::Connection;
use tokio::sync::watch;
use tracing::error;

use crate::config::Wanted;
use crate::key::{ApiKeyRow, ClientKeyRow, read_api_key, read_client_key};
use crate::operations::{MAINTENANCE, read_maintenance};
use crate::tx::{Touched, Tx, all};

/// Valid and revoked keys by public id, for authentication without a query.
pub(crate) type Keys<K> = ArcSwap<HashMap<SecretId, Arc<K>>>;

/// What the store keeps in memory, always derived from what is durable: readers never wait and never see a change that
/// could still be rolled back.
pub(crate) struct Published {
    pub(crate) snapshot: watch::Sender<Arc<Snapshot>>,
    pub(crate) api_keys: Keys<ApiKeyRow>,
    pub(crate) client_keys: Keys<ClientKeyRow>,
    /// The newest audit sequence, for those who follow the log.
    pub(crate) audit: watch::Sender<i64>,
}

/// The writer thread's hook: publishes what a batch changed, after its commit and before its callers hear of it.
pub(crate) struct Publisher {
    pub(crate) touched: Touched,
    published: Arc<Published>,
}

impl Publisher {
    /// Loads everything.
    pub(crate) fn load(connection: &Connection) -> Result<(Self, Arc<Published>)> {
        let shared = Arc::new(Published {
            snapshot: watch::Sender::new(Arc::default()),
            api_keys: ArcSwap::default(),
            client_keys: ArcSwap::default(),
            audit: watch::Sender::new(0),
        });
        let names = |sql: &str| {
            all(connection, sql, [], |row| row.get::<_, String>(0)).map(|names| names.into_iter().collect())
        };
        let touched = Touched {
            configs: names("SELECT name FROM configs")?,
            namespaces: names("SELECT name FROM namespaces")?,
            operations: true,
            api_keys: names("SELECT id FROM api_keys")?,
            client_keys: names("SELECT id FROM client_keys")?,
            audit: true,
        };
        let mut publisher = Self { touched, published: Arc::clone(&shared) };
        publisher.publish(connection)?;
        Ok((publisher, shared))
    }

    fn publish(&mut self, connection: &Connection) -> Result<()> {
        let touched = std::mem::take(&mut self.touched);
        // Times do not matter to what is read here.
        let mut unused = Touched::default();
        let tx = Tx { connection, touched: &mut unused, now: UnixMillis(i64::MIN) };
        if !touched.configs.is_empty() || !touched.namespaces.is_empty() || touched.operations {
            let mut next = Snapshot::clone(&self.published.snapshot.borrow());
            next.revision += 1;
            for name in &touched.configs {
                match tx.config(name, &Wanted::Current)? {
                    Some(row) => next.configs.insert(row.config.name.clone(), Arc::new(row.into())),
                    None => next.configs.remove(name.as_str()),
                };
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
            self.published.snapshot.send_replace(Arc::new(next));
        }
        refresh(&tx, &self.published.api_keys, &touched.api_keys, "api_keys", read_api_key, |key| key.id)?;
        refresh(&tx, &self.published.client_keys, &touched.client_keys, "client_keys", read_client_key, |key| key.id)?;
        if touched.audit {
            let last = tx.last_sequence()?;
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
    id: fn(&K) -> SecretId,
) -> Result<()> {
    if touched.is_empty() {
        return Ok(());
    }
    let mut next = HashMap::clone(&keys.load());
    for name in touched {
        if let Some(key) = tx.one(&format!("SELECT * FROM {table} WHERE id = ?1"), [name], read)? {
            next.insert(id(&key), Arc::new(key));
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

    fn rolled_back(&mut self, _connection: &Connection) {
        self.touched = Touched::default();
    }
}

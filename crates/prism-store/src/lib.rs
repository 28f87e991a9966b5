//! Control state in embedded SQLite: namespaces, configs, sessions, keys, maintenance, and the audit chain, changed only
//! through [`Store::write`], where many operations share one fsync.

mod audit;
mod bootstrap;
mod config;
mod control;
mod hook;
mod idempotency;
mod key;
mod namespace;
mod operations;
mod schema;
mod session;
mod tx;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use prism_core::limits::{IDEMPOTENCY_WINDOW, SessionPolicy};
use prism_core::permission::Reach;
use prism_core::secret::{PresentedSecret, Random, SecretId};
use prism_core::{Clock, Result};
use prism_proto::admin::v1::AuditLogEntry;
use prism_sqlite::Database;
use tokio::sync::watch;

use hook::{Published, Publisher};

pub use audit::{EntryDraft, EntryFilter, Order};
pub use config::{ConfigRow, Wanted};
pub use idempotency::{IdempotencyKey, Remembered};
pub use key::{ApiKeyRow, ClientKeyRow, KeyLife};
pub use namespace::{Dependants, NamespaceRow};
pub use operations::DrainId;
pub use session::SessionSummary;
pub use tx::Tx;

/// The control state of one installation.
pub struct Store {
    database: Database<Publisher>,
    published: Arc<Published>,
    clock: Clock,
    random: Random,
    policy: SessionPolicy,
}

impl Store {
    /// Opens or makes `prism.db` in `data_dir`, brings its schema up to date, and answers for what a crash interrupted.
    ///
    /// On the first start it makes the first admin key and writes it to `admin.token`.
    pub async fn open(data_dir: &Path, policy: SessionPolicy, clock: Clock, random: Random) -> Result<Self> {
        let mut shared = None;
        let database = Database::open(&data_dir.join("prism.db"), "state", schema::MIGRATIONS, |connection| {
            let (hook, published) = Publisher::load(connection)?;
            shared = Some(published);
            Ok(hook)
        })?;
        let published = shared.ok_or_else(|| prism_core::Error::internal("the store was opened without its hook"))?;
        let store = Self { database, published, clock, random, policy };
        let interrupted = store.write(|tx: &mut Tx<'_>| -> Result<usize> { tx.settle_interrupted_drains() }).await?;
        if interrupted > 0 {
            tracing::warn!(drains = interrupted, "drains were interrupted by a crash; their sessions are active again");
        }
        store.bootstrap(data_dir).await?;
        Ok(store)
    }

    /// Runs `work` as one operation of the next group commit; durable and published when this returns.
    pub async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let now = self.clock.now();
        self.database
            .writer
            .run(move |connection, publisher: &mut Publisher| {
                work(&mut Tx { connection, touched: &mut publisher.touched, now })
            })
            .await
    }

    /// Reads at most `limit` audit entries off the writer thread.
    pub async fn audit_entries(
        &self,
        filter: EntryFilter,
        reach: Reach,
        order: Order,
        limit: usize,
    ) -> Result<Vec<AuditLogEntry>> {
        self.database
            .readers
            .run(move |connection| audit::read_entries(connection, &filter, &reach, order, limit))
            .await
    }

    /// The newest audit sequence, as it grows.
    pub fn audit_progress(&self) -> watch::Receiver<i64> {
        self.published.audit.subscribe()
    }

    /// Checks the whole audit chain and returns the number of entries.
    pub async fn verify_audit(&self) -> Result<i64> {
        self.database.readers.run(audit::verify).await
    }

    /// The API key that `presented` proves, if it is valid now.
    pub fn authenticate(&self, presented: &PresentedSecret<'_>) -> Option<Arc<ApiKeyRow>> {
        let keys = self.published.api_keys.load();
        keys.get(&presented.id)
            .filter(|key| key.hash.matches(presented) && key.life.is_valid(self.clock.now()))
            .cloned()
    }

    /// Whether the API key with this id is valid now.
    pub fn is_valid_api_key(&self, id: &str) -> bool {
        let keys = self.published.api_keys.load();
        let key = SecretId::parse(id).and_then(|id| keys.get(&id).cloned());
        key.is_some_and(|key| key.life.is_valid(self.clock.now()))
    }

    /// Removes what is past its time: ended sessions after `retain_ended`, idempotency keys after a day. Called now and then.
    pub async fn sweep(&self) -> Result<()> {
        let retain = self.policy.retain_ended;
        self.write(move |tx| {
            let before = |age: Duration| (tx.now - age).0;
            tx.execute("DELETE FROM sessions WHERE ended_at IS NOT NULL AND ended_at <= ?1", [before(retain)])?;
            tx.execute("DELETE FROM idempotency WHERE created_at <= ?1", [before(IDEMPOTENCY_WINDOW)])?;
            tx.execute("DELETE FROM maintenance WHERE ends_at IS NOT NULL AND ends_at <= ?1", [tx.now.0])?;
            Ok(())
        })
        .await
    }

    /// Life of sessions.
    pub fn policy(&self) -> &SessionPolicy {
        &self.policy
    }

    /// The clock in use.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The source of randomness in use.
    pub fn random(&self) -> &Random {
        &self.random
    }
}

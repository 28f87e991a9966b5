//! Control state in embedded SQLite: namespaces, configs, sessions, keys, maintenance, and the audit chain, changed only
//! through [`Store::write`], where many operations share one fsync.

#[cfg(test)]
mod access_tests;
mod administrators;
mod audit;
mod audit_query;
#[cfg(test)]
mod audit_tests;
mod audit_verify;
mod authority;
mod binding;
mod bootstrap;
mod certificate;
mod checkpoint;
#[cfg(test)]
mod cluster_tests;
mod config;
mod control;
mod credential;
mod hook;
mod idempotency;
mod join_token;
mod key;
mod lineage;
#[cfg(test)]
mod link_tests;
mod namespace;
mod node;
mod operations;
mod retention;
mod role;
mod schema;
#[cfg(test)]
mod schema_tests;
mod session;
mod signer;
mod tx;
#[cfg(test)]
mod undo_tests;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use prism_core::access::Access;
use prism_core::limits::{IDEMPOTENCY_WINDOW, SessionPolicy};
use prism_core::secret::{PresentedSecret, Random};
use prism_core::{Clock, Error, Result};
use prism_proto::admin::v1::AuditCheckpoint;
use prism_sqlite::Database;
use tokio::sync::watch;

use hook::{Published, Publisher};
use tx::{Guard, Touched};

pub use administrators::OPERATOR_ON_THE_BOX;
pub use audit::EntryDraft;
pub use audit_query::{EntryChunk, EntryFilter, EntryQuery, Order};
pub use authority::StandingCertificates;
pub use binding::{BindingRow, ClientBindingRow};
pub use certificate::{CertificateOrigin, CertificateRow};
pub use checkpoint::{MAX_CHECKPOINTS, Witness};
pub use config::{ConfigRow, Wanted};
pub use credential::Credential;
pub use idempotency::{Earlier, IdempotencyKey, Remembered};
pub use join_token::{JoinTokenRow, JoinTokenStatus, Redemption};
pub use key::{ApiKeyRow, ClientKeyRow, KeyLife, PreviousToken};
pub use lineage::LineageEntries;
pub use namespace::{Dependants, NamespaceRow};
pub use node::NodeRow;
pub use operations::DrainId;
pub use retention::{AuditSettings, AuditUpkeep, OnReadFailure};
pub use role::RoleRemoval;
pub use session::SessionSummary;
pub use signer::{AUDIT_KEY, Signer};
pub use tx::Tx;

/// Keys stay listed for this long after they were revoked or have ended.
const RETAIN_DEAD_KEYS: Duration = Duration::from_hours(30 * 24);

/// Most pages that the write-ahead log gathers before they go into the database: 64 MiB. What is written often goes there once.
const CHECKPOINT_PAGES: u32 = 16_384;
/// Most pages of the database that the writer keeps in memory: 16 MiB.
const CACHED_PAGES: u32 = 4096;

fn broken_off() -> Error {
    Error::internal("an operation without a savepoint failed after it had changed something")
}

/// The control state of one installation.
pub struct Store {
    database: Database<Publisher>,
    published: Arc<Published>,
    clock: Clock,
    random: Random,
    policy: SessionPolicy,
    cluster: String,
    signer: Arc<Signer>,
    /// The head of the log as it was signed last.
    signed_head: ArcSwapOption<AuditCheckpoint>,
}

impl Store {
    /// Opens or makes `prism.db` in `data_dir`, brings its schema up to date, and answers for what a crash interrupted.
    ///
    /// On the first start it makes the first admin key, written to `admin.token`, and the key that signs the audit log,
    /// `audit.key`.
    pub async fn open(data_dir: &Path, policy: SessionPolicy, clock: Clock, random: Random) -> Result<Self> {
        let mut shared = None;
        let database = Database::open(&data_dir.join("prism.db"), "state", schema::MIGRATIONS, |connection| {
            for (pragma, value) in [("wal_autocheckpoint", CHECKPOINT_PAGES), ("cache_size", CACHED_PAGES)] {
                connection.pragma_update(None, pragma, value).map_err(prism_sqlite::error)?;
            }
            let (hook, published) = Publisher::load(connection)?;
            shared = Some(published);
            Ok(hook)
        })?;
        let published = shared.ok_or_else(|| prism_core::Error::internal("the store was opened without its hook"))?;
        let (signed_before, contradicted) = database.readers.run(checkpoint::signed_before).await?;
        if let Some(sequence) = contradicted {
            tracing::error!(
                sequence,
                "the audit log does not hold what was signed of it; somebody changed the database"
            );
        }
        let signer = Arc::new(Signer::load_or_create(data_dir, signed_before)?);
        let mut store = Self {
            database,
            published,
            clock,
            random,
            policy,
            cluster: String::new(),
            signer,
            signed_head: ArcSwapOption::empty(),
        };
        store.index_earlier_lineage().await?;
        let interrupted = store.write(|tx: &mut Tx<'_>| -> Result<usize> { tx.settle_interrupted_drains() }).await?;
        if interrupted > 0 {
            tracing::warn!(drains = interrupted, "drains were interrupted by a crash; their sessions are active again");
        }
        store.bootstrap(data_dir).await?;
        store.cluster = store.named_cluster().await?;
        if let Err(failed) = store.make_checkpoint().await {
            tracing::warn!(reason = failed.reason(), cause = ?failed.cause(), "the audit log could not be signed");
        }
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
                let Publisher { touched, published } = publisher;
                work(&mut Tx { connection, touched, published, guard: Guard::Savepoint, now })
            })
            .await
    }

    /// As [`Store::write`], without savepoints: for `work` that proves everything before its first change. What fails after a
    /// change, here or in [`Tx::attempt`], undoes the whole batch; the others in it get UNAVAILABLE `BATCH_UNDONE`.
    pub async fn write_unguarded<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let now = self.clock.now();
        self.database
            .writer
            .run_unguarded(move |connection, publisher: &mut Publisher| {
                let Publisher { touched, published } = publisher;
                let mut tx = Tx { connection, touched, published, guard: Guard::Batch, now };
                let result = work(&mut tx);
                match tx.guard {
                    Guard::Broken => Err(broken_off()),
                    Guard::Batch | Guard::Savepoint => result,
                }
            })
            .await
    }

    /// Runs `work` on what is committed, off the writer thread. Nothing can be changed by it.
    pub async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (now, published) = (self.clock.now(), Arc::clone(&self.published));
        self.database
            .readers
            .run(move |connection| {
                let snapshot = connection.unchecked_transaction().map_err(prism_sqlite::error)?;
                let mut touched = Touched::default();
                let (touched, published) = (&mut touched, &*published);
                work(&mut Tx { connection: &snapshot, touched, published, guard: Guard::Savepoint, now })
            })
            .await
    }

    /// Reads audit entries off the writer thread, at most some 2000 or a mebibyte at a time.
    ///
    /// ABORTED `AUDIT_LOG_CUT` when retention removed what comes next.
    pub async fn audit_chunk(&self, query: EntryQuery) -> Result<EntryChunk> {
        self.database.readers.run(move |connection| audit_query::read_chunk(connection, &query)).await
    }

    /// The newest audit sequence, as it grows.
    pub fn audit_progress(&self) -> watch::Receiver<i64> {
        self.published.audit.subscribe()
    }

    /// Checks the whole audit chain, against itself and against every checkpoint, and returns the number of entries; those
    /// that retention removed are covered by a signed cut. INTERNAL names the first bad `sequence` in its metadata.
    pub async fn verify_audit(&self) -> Result<i64> {
        let signer = Arc::clone(&self.signer);
        self.database.readers.run(move |connection| audit_verify::verify(connection, &signer)).await
    }

    /// The API key that `presented` proves, if it is valid now, and what its caller's rights stand on.
    pub fn authenticate(&self, presented: &PresentedSecret<'_>) -> Option<(Arc<ApiKeyRow>, Credential)> {
        let keys = self.published.api_keys.load();
        let key = keys.get(&presented.id)?;
        let hash = key.proven(presented, self.clock.now())?;
        Some((Arc::clone(key), Credential::ApiKey { id: key.id, hash }))
    }

    /// Roles, bindings and revoked certificates as they were last published.
    pub fn access(&self) -> Arc<Access> {
        self.published.access.load_full()
    }

    /// Name of the installation in the URIs of its certificates.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Removes what is past its time: ended sessions after `retain_ended`, idempotency keys after a day; and ends the sessions that
    /// no node can serve any more. Called now and then.
    pub async fn sweep(&self) -> Result<()> {
        let retain = self.policy.retain_ended;
        self.write(move |tx| {
            let before = |age: Duration| (tx.now - age).0;
            tx.execute("DELETE FROM sessions WHERE ended_at IS NOT NULL AND ended_at <= ?1", [before(retain)])?;
            tx.execute("DELETE FROM idempotency WHERE created_at <= ?1", [before(IDEMPOTENCY_WINDOW)])?;
            tx.end_overdue_sessions()?;
            tx.forget_keys(tx.now - RETAIN_DEAD_KEYS)?;
            tx.forget_nodes()?;
            tx.forget_join_tokens()?;
            tx.forget_node_certificates()?;
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

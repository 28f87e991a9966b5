//! What a backend must do, one trait per access pattern. A handle is bound to one namespace when a session opens its route,
//! so that no call can name another (contract §9 "data of a namespace").

mod key_value;
mod pub_sub;
mod queue;
mod reader;
mod transact;
mod value;

use std::sync::Arc;

use async_trait::async_trait;
use prism_core::config::{BackendType, Config};
use prism_core::control::Health;
use prism_core::storage::StorageMeter;
use prism_core::{Error, InstanceName, NamespaceName, Result};

pub use key_value::{
    ENTRY_OVERHEAD, Entry, KeyPage, KeyValue, MAX_BATCH_BYTES, PutEntry, batch_too_large, entry_bytes, version_mismatch,
};
pub use pub_sub::{Event, PubSub, PubSubSubscription, topic_matches, validate_topic, validate_topic_pattern};
pub use queue::{
    ConsumerId, Delivery, PartitionInfo, Publication, Published, Queue, QueueSubscription, StartPosition,
    SubscribeRequest, TopicInfo,
};
pub use reader::{Direction, Filter, LogicalOperator, Operator, ReadPage, ReadRequest, Reader, Sort};
pub use transact::{
    DataResult, DataWrite, Isolation, MailboxEntry, MailboxResult, MailboxWrite, Transact, TransactOptions, WriteMode,
    WriteOutcome, WriteSet,
};
pub use value::{Record, Value};

/// The route of a session: the driver handle of its pattern.
#[derive(Clone)]
pub enum Route {
    /// KEY_VALUE.
    KeyValue(Arc<dyn KeyValue>),
    /// QUEUE.
    Queue(Arc<dyn Queue>),
    /// PUBSUB.
    PubSub(Arc<dyn PubSub>),
    /// PAGED_READER.
    Reader(Arc<dyn Reader>),
    /// TRANSACT_WRITE.
    Transact(Arc<dyn Transact>),
}

/// The outcome of a health check.
#[derive(Clone, Debug)]
pub struct HealthCheck {
    /// Healthy, degraded or not.
    pub health: Health,
    /// How it was checked, or what is wrong.
    pub message: String,
    /// Connections in use.
    pub active_connections: i32,
    /// Connections allowed.
    pub pool_size: i32,
    /// Connections open and unused.
    pub idle_connections: i32,
}

/// One configured backend instance.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Its type.
    fn kind(&self) -> BackendType;

    /// Its name.
    fn name(&self) -> &InstanceName;

    /// Where it is: a path or an address without credentials.
    fn endpoint(&self) -> String;

    /// Opens the handle that serves `config`'s pattern in `config.namespace`; stored bytes are charged to `meter`.
    async fn open(&self, config: &Config, meter: &Arc<StorageMeter>) -> Result<Route>;

    /// Checks what only the driver can tell of a config, without any effect; INVALID_ARGUMENT with its field path.
    async fn check(&self, config: &Config) -> Result<()>;

    /// Makes what an accepted config needs (embedded tables); may be repeated.
    async fn prepare(&self, config: &Config, meter: &Arc<StorageMeter>) -> Result<()>;

    /// Namespaces that have data here, with the bytes stored for each; asked once at start.
    async fn stored(&self) -> Result<Vec<(NamespaceName, i64)>>;

    /// Checks health by a real operation.
    async fn health(&self) -> HealthCheck;

    /// Removes all data of `namespace`, and refuses its open handles from then on.
    async fn remove_namespace(&self, namespace: &NamespaceName) -> Result<()>;

    /// Finishes what waits and closes everything.
    async fn close(&self);
}

/// FAILED_PRECONDITION `NAMESPACE_REMOVED`: what handles of a removed namespace answer.
pub fn namespace_removed() -> Error {
    Error::precondition("NAMESPACE_REMOVED", "the namespace was deleted")
}

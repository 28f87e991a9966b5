//! Client configs: pattern, backend and namespace of a session (contract §3, §5, §9).

mod draft;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::name::{ConfigName, InstanceName, NamespaceName};

pub use draft::{BackendDraft, ConfigDraft, MAX_OPTIONS, MAX_SCHEMA_BYTES, MAX_TABLES, is_table_name};

/// How an application uses its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessPattern {
    /// Keys, values, versions, time to live.
    KeyValue,
    /// Durable topics with consumer groups.
    Queue,
    /// Transient topics, at most once.
    PubSub,
    /// Filtered reading of tables, page by page.
    PagedReader,
    /// Transactional writes with a mailbox.
    TransactWrite,
}

impl AccessPattern {
    /// All patterns, in the order of contract §3.
    pub const ALL: [Self; 5] = [Self::KeyValue, Self::Queue, Self::PubSub, Self::PagedReader, Self::TransactWrite];

    /// The name used in contract §3.
    pub fn name(self) -> &'static str {
        match self {
            Self::KeyValue => "KEY_VALUE",
            Self::Queue => "QUEUE",
            Self::PubSub => "PUBSUB",
            Self::PagedReader => "PAGED_READER",
            Self::TransactWrite => "TRANSACT_WRITE",
        }
    }
}

impl fmt::Display for AccessPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What kind of system holds the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendType {
    /// PostgreSQL.
    Postgres,
    /// Embedded SQLite.
    Sqlite,
    /// Apache Kafka.
    Kafka,
    /// NATS with JetStream.
    Nats,
    /// Redis.
    Redis,
    /// The memory of this process; not durable.
    Memory,
}

impl BackendType {
    /// All types, in the order of contract §3.
    pub const ALL: [Self; 6] = [Self::Postgres, Self::Sqlite, Self::Kafka, Self::Nats, Self::Redis, Self::Memory];

    /// Lower-case name, as in seed A's `GetBackendStatusRequest.backend_type`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Sqlite => "sqlite",
            Self::Kafka => "kafka",
            Self::Nats => "nats",
            Self::Redis => "redis",
            Self::Memory => "memory",
        }
    }

    /// The type with this lower-case name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether this backend can serve `pattern` (contract §5).
    pub fn serves(self, pattern: AccessPattern) -> bool {
        use AccessPattern::{KeyValue, PagedReader, PubSub, Queue, TransactWrite};
        match self {
            Self::Sqlite => matches!(pattern, KeyValue | Queue | PagedReader | TransactWrite),
            Self::Memory => matches!(pattern, KeyValue | PubSub),
            Self::Postgres => true,
            Self::Kafka => matches!(pattern, Queue | PubSub),
            Self::Nats | Self::Redis => matches!(pattern, KeyValue | Queue | PubSub),
        }
    }

    /// The patterns it serves.
    pub fn patterns(self) -> impl Iterator<Item = AccessPattern> {
        AccessPattern::ALL.into_iter().filter(move |pattern| self.serves(*pattern))
    }
}

impl fmt::Display for BackendType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Connection pool settings; 0 leaves the choice to the driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Least connections kept, 0 to 1000.
    pub min_connections: i32,
    /// Most connections, 0 to 1000.
    pub max_connections: i32,
    /// Idle connections close after this, 0 to 86400 s.
    pub idle_timeout_seconds: i32,
}

/// Wished consistency of reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConsistencyLevel {
    /// The backend's own default.
    #[default]
    Unspecified,
    /// Reads may lag.
    Eventual,
    /// Reads see every acknowledged write.
    Strong,
    /// Reads lag by a bounded time.
    BoundedStaleness,
}

/// Consistency settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Consistency {
    /// Wished level.
    pub level: ConsistencyLevel,
    /// Longest time one operation may take, 0 (no limit of its own) to 600000 ms.
    pub timeout_ms: i32,
}

/// Cache settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cache {
    /// Whether reads may be cached.
    pub enabled: bool,
    /// Life of a cached entry, 0 to 86400 s.
    pub ttl_seconds: i32,
    /// Size of the cache, 0 to 65536 MiB.
    pub max_size_mb: i32,
}

/// Rate limit of all sessions of one config together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimit {
    /// Operations per second, 0 = unlimited, at most 10000000.
    pub requests_per_second: i32,
    /// Burst, 0 = one second's worth, at most 10000000.
    pub burst: i32,
}

/// Backend part of a config.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// Type of the backend.
    pub kind: BackendType,
    /// Options as given; each one is known and in range.
    pub options: BTreeMap<String, String>,
    /// Pool settings, when given.
    pub pool: Option<Pool>,
}

/// A config whose every field is within its bounds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Unique name.
    pub name: ConfigName,
    /// Version, any text the client chooses.
    pub version: String,
    /// Access pattern.
    pub pattern: AccessPattern,
    /// Backend.
    pub backend: Backend,
    /// Instance that `backend` resolves to.
    pub instance: InstanceName,
    /// Consistency settings, when given.
    pub consistency: Option<Consistency>,
    /// Cache settings, when given.
    pub cache: Option<Cache>,
    /// Rate limit, when given.
    pub rate_limit: Option<RateLimit>,
    /// Namespace.
    pub namespace: NamespaceName,
}

impl Config {
    /// The option's integer value, or `default` when it is absent.
    pub fn option_i64(&self, option: &str, default: i64) -> i64 {
        self.backend.options.get(option).and_then(|value| value.trim().parse().ok()).unwrap_or(default)
    }

    /// The option's comma-separated names; empty when it is absent.
    pub fn option_names(&self, option: &str) -> Vec<String> {
        self.backend
            .options
            .get(option)
            .map(|list| list.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect())
            .unwrap_or_default()
    }
}

/// One backend instance of the server's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendInstance {
    /// Its name.
    pub name: InstanceName,
    /// Its type.
    pub kind: BackendType,
}

/// The server's configured backend instances.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    /// Instances in the order of configuration.
    pub instances: Vec<BackendInstance>,
}

impl Catalog {
    /// The instance that `wanted`, or the type alone, names.
    pub fn resolve(&self, kind: BackendType, wanted: Option<&str>) -> Result<&BackendInstance, String> {
        let mut of_type = self.instances.iter().filter(|instance| instance.kind == kind);
        match wanted {
            Some(name) => of_type
                .find(|instance| instance.name.as_str() == name)
                .ok_or_else(|| format!("no {kind} backend instance named {name:?} is configured on this server")),
            None => match (of_type.next(), of_type.next()) {
                (Some(only), None) => Ok(only),
                (None, _) => Err(format!("no {kind} backend is configured on this server")),
                (Some(_), Some(_)) => {
                    Err(format!("several {kind} backends are configured; name one with the option \"instance\""))
                }
            },
        }
    }
}

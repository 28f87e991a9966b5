//! A namespace of its own for a test, with a client key and one config per pattern.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use prism_proto::config::v1::{AccessPattern, BackendConfig, BackendType, ClientConfig};
use prism_proto::session::v1::CreateSessionRequest;
use tonic::Status;
use tonic::transport::Channel;

use crate::admin::Admin;
use crate::data::{self, Session};
use crate::server::Prism;

static NAMES: AtomicU32 = AtomicU32::new(1);

/// The table of the reader and transact configs.
pub const ITEMS: &str =
    "CREATE TABLE IF NOT EXISTS items (id TEXT PRIMARY KEY, name TEXT, quantity INTEGER, price REAL)";

/// A pattern on a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// KEY_VALUE on SQLITE.
    KeyValue,
    /// KEY_VALUE on MEMORY.
    MemoryKeyValue,
    /// QUEUE on SQLITE.
    Queue,
    /// PUBSUB on MEMORY.
    PubSub,
    /// PAGED_READER on SQLITE.
    Reader,
    /// TRANSACT_WRITE on SQLITE.
    Transact,
}

/// A name that no other test of this process uses.
pub fn unique(prefix: &str) -> String {
    format!("{prefix}-{}", NAMES.fetch_add(1, Ordering::Relaxed))
}

/// A config with nothing but what is required.
pub fn config(name: &str, namespace: &str, pattern: Pattern) -> ClientConfig {
    let (access, backend, options): (_, _, &[(&str, &str)]) = match pattern {
        Pattern::KeyValue => (AccessPattern::KeyValue, BackendType::Sqlite, &[]),
        Pattern::MemoryKeyValue => (AccessPattern::KeyValue, BackendType::Memory, &[]),
        Pattern::Queue => (AccessPattern::Queue, BackendType::Sqlite, &[]),
        Pattern::PubSub => (AccessPattern::Pubsub, BackendType::Memory, &[]),
        Pattern::Reader => {
            (AccessPattern::PagedReader, BackendType::Sqlite, &[("collections", "items"), ("schema", ITEMS)])
        }
        Pattern::Transact => {
            (AccessPattern::TransactWrite, BackendType::Sqlite, &[("tables", "items"), ("schema", ITEMS)])
        }
    };
    ClientConfig {
        name: name.to_owned(),
        version: "1".to_owned(),
        pattern: access.into(),
        backend: Some(BackendConfig {
            r#type: backend.into(),
            options: options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            pool: None,
        }),
        namespace: namespace.to_owned(),
        ..ClientConfig::default()
    }
}

/// The config with an option more.
#[must_use]
pub fn with_option(mut config: ClientConfig, key: &str, value: &str) -> ClientConfig {
    config.backend.get_or_insert_default().options.insert(key.to_owned(), value.to_owned());
    config
}

/// A namespace of a server.
pub struct Site {
    /// The server.
    pub server: Arc<Prism>,
    /// Its operator.
    pub admin: Admin,
    /// The namespace.
    pub namespace: String,
    /// A client key that may read and write.
    pub key: String,
    /// A connection to the data plane.
    pub channel: Channel,
}

impl Site {
    /// Makes a namespace and a client key.
    pub async fn new(server: Arc<Prism>) -> Self {
        let admin = server.admin();
        let namespace = unique("ns");
        admin.create_namespace(&namespace).await;
        let key = admin.create_client_key(&namespace, &["read", "write"]).await;
        let channel = server.data_channel();
        Self { server, admin, namespace, key, channel }
    }

    /// Makes a config of this namespace; gives its name.
    pub async fn config(&self, pattern: Pattern) -> String {
        self.configure(config(&unique("config"), &self.namespace, pattern)).await
    }

    /// Makes this config; gives its name.
    pub async fn configure(&self, config: ClientConfig) -> String {
        self.admin.create_config(config).await.name
    }

    /// A session from a new config.
    pub async fn session(&self, pattern: Pattern) -> Session {
        let config = self.config(pattern).await;
        self.session_of(&config).await
    }

    /// A session from a config.
    pub async fn session_of(&self, config: &str) -> Session {
        self.open(data::named(&self.key, config)).await.expect("a session")
    }

    /// Asks for a session.
    pub async fn open(&self, request: CreateSessionRequest) -> Result<Session, Status> {
        data::create(&self.channel, request).await
    }
}

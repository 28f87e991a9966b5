//! What `prism serve --dev` sets up, through the door like everything else.

use std::sync::Arc;

use prism_core::{Kind, Result};
use prism_proto::admin::v1 as wire;
use prism_proto::config::v1::{AccessPattern, BackendConfig, BackendType, ClientConfig};

use crate::door::{Call, Door};
use crate::identity::Identity;
use crate::ops::{client_key::CreateClientKey, config::CreateConfig, namespace::CreateNamespace};

/// The namespace that `--dev` makes.
pub const DEV_NAMESPACE: &str = "default";

const ITEMS: &str = "CREATE TABLE IF NOT EXISTS items (id TEXT PRIMARY KEY, name TEXT, quantity INTEGER, price REAL)";

fn config(name: &str, pattern: AccessPattern, backend: BackendType, options: &[(&str, &str)]) -> ClientConfig {
    ClientConfig {
        name: name.to_owned(),
        version: "1".to_owned(),
        pattern: pattern.into(),
        backend: Some(BackendConfig {
            r#type: backend.into(),
            options: options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            pool: None,
        }),
        namespace: DEV_NAMESPACE.to_owned(),
        ..ClientConfig::default()
    }
}

fn dev_configs() -> [ClientConfig; 5] {
    use AccessPattern::{KeyValue, PagedReader, Pubsub, Queue, TransactWrite};
    use BackendType::{Memory, Sqlite};
    [
        config("dev-key-value", KeyValue, Sqlite, &[]),
        config("dev-queue", Queue, Sqlite, &[]),
        config("dev-pubsub", Pubsub, Memory, &[]),
        config("dev-reader", PagedReader, Sqlite, &[("collections", "items"), ("schema", ITEMS)]),
        config("dev-transact", TransactWrite, Sqlite, &[("tables", "items"), ("schema", ITEMS)]),
    ]
}

/// What exists already was made by an earlier start, or changed by the developer since; it stays.
fn unless_there<T>(result: Result<T>) -> Result<()> {
    match result {
        Err(error) if error.kind() == Kind::AlreadyExists => Ok(()),
        other => other.map(|_| ()),
    }
}

impl Door {
    /// Makes the namespace and the configs of `--dev`. May be repeated: what exists stays as it is.
    pub async fn provision_dev(self: &Arc<Self>) -> Result<()> {
        let identity = || Arc::new(Identity::server("prism-dev"));
        let snapshot = self.services.snapshot();
        if !snapshot.namespaces.contains_key(DEV_NAMESPACE) {
            let request = wire::CreateNamespaceRequest {
                name: DEV_NAMESPACE.to_owned(),
                description: "made by prism serve --dev".to_owned(),
                quota: None,
            };
            unless_there(self.call_as::<CreateNamespace>(identity(), Call::default(), request).await)?;
        }
        for config in dev_configs().into_iter().filter(|config| snapshot.configs.get(config.name.as_str()).is_none()) {
            let request = wire::CreateConfigRequest { config: Some(config), overwrite: false, validate_only: false };
            unless_there(self.call_as::<CreateConfig>(identity(), Call::default(), request).await)?;
        }
        Ok(())
    }

    /// A new client key with read and write on the namespace of `--dev`; the token is shown this once.
    pub async fn dev_client_key(self: &Arc<Self>) -> Result<String> {
        let identity = Arc::new(Identity::server("prism-dev"));
        let request = wire::CreateClientKeyRequest {
            name: "client.token".to_owned(),
            namespace: DEV_NAMESPACE.to_owned(),
            permissions: vec!["read".to_owned(), "write".to_owned()],
            ttl: None,
        };
        Ok(self.call_as::<CreateClientKey>(identity, Call::default(), request).await?.token)
    }
}

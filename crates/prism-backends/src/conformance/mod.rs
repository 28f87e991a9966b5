//! One suite per access pattern that every driver which serves the pattern must pass. It is public, behind the feature
//! `conformance`, so that drivers elsewhere can be held to it.
//!
//! Each check works in a namespace of its own and panics when the driver does not behave.

pub mod key_value;
pub mod key_value_model;
pub mod pub_sub;
pub mod queue;
pub mod reader;
pub mod transact;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use prism_core::config::{self, AccessPattern, Config};
use prism_core::storage::StorageMeter;
use prism_core::{Clock, ConfigName, NamespaceName};

use crate::driver::{Backend, Route};

/// The backend under test.
pub struct Subject {
    /// The backend.
    pub backend: Arc<dyn Backend>,
    /// The clock that the backend was given. A backend that keeps its own time needs the system's clock here.
    pub clock: Clock,
}

impl Subject {
    /// A valid config for `pattern` in `namespace`, with `options`.
    pub fn config(&self, namespace: &str, pattern: AccessPattern, options: &[(&str, &str)]) -> Config {
        let options: BTreeMap<_, _> =
            options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Config {
            name: ConfigName::parse("name", "conformance").unwrap(),
            version: "1".to_owned(),
            pattern,
            backend: config::Backend { kind: self.backend.kind(), options, pool: None },
            instance: self.backend.name().clone(),
            consistency: None,
            cache: None,
            rate_limit: None,
            namespace: NamespaceName::parse("namespace", namespace).unwrap(),
        }
    }

    /// Prepares and opens a route in `namespace`, whose storage is counted by the meter returned.
    pub async fn open(
        &self,
        namespace: &str,
        pattern: AccessPattern,
        options: &[(&str, &str)],
    ) -> (Route, Arc<StorageMeter>) {
        let config = self.config(namespace, pattern, options);
        let meter = StorageMeter::new(config.namespace.clone());
        self.backend.check(&config).await.unwrap();
        self.backend.prepare(&config, &meter).await.unwrap();
        (self.backend.open(&config, &meter).await.unwrap(), meter)
    }

    /// Lets time pass: on a manual clock at once, on the system's clock by waiting.
    pub async fn pass(&self, time: Duration) {
        let before = self.clock.now();
        self.clock.advance(time);
        let moved = self.clock.now().since(before);
        tokio::time::sleep(time.saturating_sub(moved)).await;
    }
}

#[cfg(test)]
mod tests;

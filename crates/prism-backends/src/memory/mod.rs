//! The embedded memory backend: fast, counted against the quota, not durable.

mod key_value;
mod pub_sub;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use prism_core::config::{AccessPattern, BackendType, Config};
use prism_core::control::Health;
use prism_core::storage::StorageMeter;
use prism_core::{Clock, Error, InstanceName, NamespaceName, Result};

use crate::driver::{Backend, HealthCheck, Route};
use key_value::MemoryKeyValue;
use pub_sub::MemoryPubSub;

/// How often what has expired is removed from namespaces at rest.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// One instance of the memory backend. Its data end with the process.
pub struct MemoryBackend {
    name: InstanceName,
    clock: Clock,
    spaces: Mutex<HashMap<NamespaceName, Space>>,
    /// Itself, for the task that sweeps; it starts with the first session, because only then is there a runtime.
    this: Weak<Self>,
    sweeping: AtomicBool,
}

/// What all sessions of a namespace share.
#[derive(Clone)]
struct Space {
    key_value: Arc<MemoryKeyValue>,
    pub_sub: Arc<MemoryPubSub>,
}

impl MemoryBackend {
    /// Makes an empty instance.
    pub fn new(name: InstanceName, clock: Clock) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            name,
            clock,
            spaces: Mutex::default(),
            this: Weak::clone(this),
            sweeping: AtomicBool::new(false),
        })
    }

    fn space(&self, namespace: &NamespaceName, meter: &Arc<StorageMeter>) -> Space {
        let mut spaces = self.spaces.lock().unwrap_or_else(PoisonError::into_inner);
        let made = || Space {
            key_value: Arc::new(MemoryKeyValue::new(self.clock.clone(), Arc::clone(meter))),
            pub_sub: Arc::new(MemoryPubSub::new(self.clock.clone())),
        };
        spaces.entry(namespace.clone()).or_insert_with(made).clone()
    }

    fn all_spaces(&self) -> Vec<(NamespaceName, Space)> {
        let spaces = self.spaces.lock().unwrap_or_else(PoisonError::into_inner);
        spaces.iter().map(|(namespace, space)| (namespace.clone(), space.clone())).collect()
    }

    fn start_sweeping(&self) {
        if !self.sweeping.swap(true, Ordering::Relaxed) {
            tokio::spawn(sweep_until_dropped(Weak::clone(&self.this)));
        }
    }
}

async fn sweep_until_dropped(backend: Weak<MemoryBackend>) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        let Some(backend) = backend.upgrade() else { return };
        for (_, space) in backend.all_spaces() {
            // In small steps, so that neither other tasks nor other writers wait for long.
            while space.key_value.sweep() {
                tokio::task::yield_now().await;
            }
        }
    }
}

#[async_trait]
impl Backend for MemoryBackend {
    fn kind(&self) -> BackendType {
        BackendType::Memory
    }

    fn name(&self) -> &InstanceName {
        &self.name
    }

    fn endpoint(&self) -> String {
        "memory".to_owned()
    }

    async fn open(&self, config: &Config, meter: &Arc<StorageMeter>) -> Result<Route> {
        self.start_sweeping();
        let space = self.space(&config.namespace, meter);
        match config.pattern {
            AccessPattern::KeyValue => Ok(Route::KeyValue(space.key_value)),
            AccessPattern::PubSub => Ok(Route::PubSub(space.pub_sub)),
            other => Err(Error::invalid("config.pattern", format!("memory does not serve {other}"))),
        }
    }

    async fn check(&self, _config: &Config) -> Result<()> {
        Ok(())
    }

    async fn prepare(&self, _config: &Config, _meter: &Arc<StorageMeter>) -> Result<()> {
        Ok(())
    }

    async fn stored(&self) -> Result<Vec<(NamespaceName, i64)>> {
        Ok(self.all_spaces().into_iter().map(|(namespace, space)| (namespace, space.key_value.stored())).collect())
    }

    async fn health(&self) -> HealthCheck {
        let begun = Instant::now();
        let (health, outcome) = match key_value::round_trip(&self.clock) {
            Ok(()) => (Health::Healthy, "write and read back in"),
            Err(_) => (Health::Unhealthy, "write and read back failed after"),
        };
        let micros = begun.elapsed().as_secs_f64() * 1e6;
        let message = format!("{outcome} {micros:.1} µs");
        HealthCheck { health, message, active_connections: 0, pool_size: 0, idle_connections: 0 }
    }

    async fn remove_namespace(&self, namespace: &NamespaceName) -> Result<()> {
        let removed = self.spaces.lock().unwrap_or_else(PoisonError::into_inner).remove(namespace);
        if let Some(space) = removed {
            space.close();
        }
        Ok(())
    }

    async fn close(&self) {
        let spaces = std::mem::take(&mut *self.spaces.lock().unwrap_or_else(PoisonError::into_inner));
        for space in spaces.into_values() {
            space.close();
        }
    }
}

impl Space {
    /// Refuses what comes, ends subscriptions, frees the data.
    fn close(&self) {
        self.key_value.close();
        self.pub_sub.close();
    }
}

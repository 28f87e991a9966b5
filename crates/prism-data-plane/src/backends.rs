//! The configured backend instances.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use prism_backends::driver::{Backend, HealthCheck, Route};
use prism_core::config::{BackendInstance, BackendType, Catalog, Config};
use prism_core::control::{BackendReport, Health};
use prism_core::storage::StorageMeter;
use prism_core::{Clock, Error, InstanceName, NamespaceName, Result};
use prism_rpc::Metrics;

/// How long a health check may take.
const HEALTH_WITHIN: Duration = Duration::from_secs(5);
/// Over which time a report's rate and latency are taken.
const REPORT_WINDOW: Duration = Duration::from_mins(1);

/// The configured backend instances.
pub struct Backends(Vec<Arc<dyn Backend>>);

impl Backends {
    /// Of these instances.
    pub fn new(instances: Vec<Arc<dyn Backend>>) -> Self {
        Self(instances)
    }

    /// All of them.
    pub fn all(&self) -> &[Arc<dyn Backend>] {
        &self.0
    }

    /// Their names and types.
    pub fn catalog(&self) -> Catalog {
        let instances =
            self.0.iter().map(|backend| BackendInstance { name: backend.name().clone(), kind: backend.kind() });
        Catalog { instances: instances.collect() }
    }

    fn get(&self, kind: BackendType, name: &InstanceName) -> Result<&Arc<dyn Backend>> {
        self.0.iter().find(|backend| backend.kind() == kind && backend.name() == name).ok_or_else(|| {
            Error::unavailable(
                "BACKEND_NOT_CONFIGURED",
                format!("the {kind} backend {name} is not configured on this server"),
            )
        })
    }

    /// Opens the route of `config`.
    pub async fn open(&self, config: &Config, meter: &Arc<StorageMeter>) -> Result<Route> {
        self.get(config.backend.kind, &config.instance)?.open(config, meter).await
    }

    /// Checks what only the driver can tell of a config.
    pub async fn check(&self, config: &Config) -> Result<()> {
        self.get(config.backend.kind, &config.instance)?.check(config).await
    }

    /// Makes what an accepted config needs.
    pub async fn prepare(&self, config: &Config, meter: &Arc<StorageMeter>) -> Result<()> {
        self.get(config.backend.kind, &config.instance)?.prepare(config, meter).await
    }

    /// Removes all data of a namespace everywhere; the first failure is told after all were tried.
    pub async fn remove_namespace(&self, namespace: &NamespaceName) -> Result<()> {
        let removals = self.0.iter().map(|backend| backend.remove_namespace(namespace));
        join_all(removals).await.into_iter().collect()
    }

    /// Checks all instances at the same time.
    pub async fn report(&self, metrics: &Metrics, clock: &Clock) -> Vec<BackendReport> {
        let figures = metrics.backend_figures(REPORT_WINDOW);
        let checks = self.0.iter().map(|backend| async {
            let checked = tokio::time::timeout(HEALTH_WITHIN, backend.health()).await;
            let check = checked.unwrap_or_else(|_| no_answer());
            let figures =
                figures.get(&(backend.kind(), backend.name().as_str().to_owned())).copied().unwrap_or_default();
            BackendReport {
                kind: backend.kind(),
                instance: backend.name().as_str().to_owned(),
                endpoint: backend.endpoint(),
                health: check.health,
                message: check.message,
                checked_at: clock.now(),
                active_connections: check.active_connections,
                pool_size: check.pool_size,
                idle_connections: check.idle_connections,
                // An embedded backend shares this process; its part cannot be told apart.
                cpu_percent: 0.0,
                memory_percent: 0.0,
                requests_per_second: figures.requests_per_second.round() as i64,
                avg_latency_ms: figures.latency_p50_ms,
                patterns: backend.kind().patterns().collect(),
            }
        });
        join_all(checks).await
    }
}

fn no_answer() -> HealthCheck {
    HealthCheck {
        health: Health::Unhealthy,
        message: format!("no answer in {} s", HEALTH_WITHIN.as_secs()),
        active_connections: 0,
        pool_size: 0,
        idle_connections: 0,
    }
}

//! What the control plane may ask of this node.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use prism_core::config::{BackendType, Catalog, Config};
use prism_core::control::{
    BackendReport, DataNode, DrainOutcome, DrainScope, NamespaceDemand, NamespaceFigures, NodeFigures, RequestFigures,
    Termination,
};
use prism_core::session::{SessionId, SessionRecord, SessionReport};
use prism_core::{NamespaceName, NodeId, Result, UnixMillis};

use tonic_health::ServingStatus;

use crate::DataPlane;
use crate::cause::EndCause;
use crate::sessions::Verdict;

/// Over which time a namespace's rate is taken.
const NAMESPACE_WINDOW: Duration = Duration::from_secs(10);

/// How long to wait for a snapshot.
const CATCH_UP: Duration = Duration::from_secs(1);

#[async_trait]
impl DataNode for DataPlane {
    fn node_id(&self) -> &NodeId {
        &self.plane.node
    }

    async fn caught_up(&self, revision: u64) {
        let gate = &self.plane.gate;
        let wait = async {
            loop {
                // In one process the snapshot is there already, and this is all there is to do.
                gate.follow();
                if gate.namespaces.snapshot().revision >= revision || !gate.namespaces.wait().await {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(CATCH_UP, wait).await;
    }

    fn take_reports(&self) -> Vec<SessionReport> {
        self.plane.take_reports()
    }

    fn catalog(&self) -> Catalog {
        self.plane.backends.catalog()
    }

    async fn check_config(&self, config: &Config) -> Result<()> {
        self.plane.backends.check(config).await
    }

    async fn prepare_config(&self, config: &Config) -> Result<()> {
        self.plane.gate.follow();
        let runtime = self.plane.gate.namespaces.runtime(&config.namespace);
        self.plane.backends.prepare(config, runtime.meter()).await
    }

    async fn terminate(&self, id: SessionId, force: bool, reason: &str) -> Termination {
        let verdict = Verdict { force, reason: reason.to_owned() };
        let Some(session) = self.plane.gate.sessions.find_to_terminate(id, &verdict) else {
            return Termination::default();
        };
        let running;
        if force {
            running = session.running();
            self.plane.cut(&session, EndCause::Terminated(verdict.reason));
        } else {
            let first = session.terminate_gently(verdict.reason);
            running = session.running();
            if running == 0 {
                self.plane.end(&session, session.termination()).await;
            } else if first {
                self.plane.end_when_settled(&session, session.termination());
            }
        }
        Termination { pending_operations: i32::try_from(running).unwrap_or(i32::MAX) }
    }

    async fn drain(&self, scope: &DrainScope, timeout: Duration, force: bool) -> DrainOutcome {
        self.plane.drain(scope, timeout, force).await
    }

    fn drain_preview(&self, scope: &DrainScope) -> DrainOutcome {
        self.plane.drain_preview(scope)
    }

    fn figures(&self, window: Duration) -> NodeFigures {
        let metrics = &self.plane.metrics;
        let mut figures = NodeFigures {
            total: metrics.total_figures(window),
            namespaces: metrics.namespace_figures(window),
            backends: metrics.backend_figures(window),
        };
        let mut backends: BTreeMap<(BackendType, String), (i64, i64)> = BTreeMap::new();
        for session in self.plane.gate.sessions.all() {
            let streams = i64::from(session.streams());
            add(&mut figures.total, streams);
            add(figures.namespaces.entry(session.namespace().name().as_str().to_owned()).or_default(), streams);
            let config = session.config();
            let backend = backends.entry((config.backend.kind, config.instance.as_str().to_owned())).or_default();
            *backend = (backend.0 + 1, backend.1 + streams);
        }
        for (instance, (sessions, streams)) in backends {
            let figures = figures.backends.entry(instance).or_default();
            (figures.active_sessions, figures.active_streams) = (sessions, streams);
        }
        figures
    }

    async fn namespace_figures(&self, namespace: &NamespaceName) -> NamespaceFigures {
        let requests = self.plane.metrics.namespace(namespace.as_str(), NAMESPACE_WINDOW);
        NamespaceFigures {
            storage_bytes_used: self.plane.gate.namespaces.known(namespace).map_or(0, |known| known.meter().used()),
            requests_per_second: requests.requests_per_second.round() as i64,
        }
    }

    async fn backends(&self) -> Vec<BackendReport> {
        self.plane.backends.report(&self.plane.metrics, &self.plane.gate.clock).await
    }

    async fn remove_namespace(&self, namespace: &NamespaceName) -> Result<()> {
        let gate = &self.plane.gate;
        gate.follow();
        self.plane.end_all(gate.sessions.of_namespace(namespace), &EndCause::NamespaceDeleted).await;
        self.plane.backends.remove_namespace(namespace).await?;
        gate.namespaces.forget(namespace);
        // Those whose admission was under way at the first look.
        self.plane.end_all(gate.sessions.of_namespace(namespace), &EndCause::NamespaceDeleted).await;
        Ok(())
    }

    async fn take_up(&self, record: SessionRecord) {
        self.plane.take_up(record).await;
    }

    async fn let_go(&self, id: SessionId, reason: &str) {
        if let Some(session) = self.plane.gate.sessions.by_id(id) {
            self.plane.let_go(&session, EndCause::Terminated(reason.to_owned()));
        }
    }

    async fn set_revoked(&self, revoked: bool) {
        let gate = &self.plane.gate;
        // Before the cut: what comes into the map after it sees this.
        gate.set_revoked(revoked);
        if revoked {
            for session in gate.sessions.all() {
                self.plane.let_go(&session, EndCause::NodeRevoked);
            }
        }
        if !gate.is_leaving() {
            let status = if revoked { ServingStatus::NotServing } else { ServingStatus::Serving };
            crate::report_health(&self.health, status).await;
        }
    }

    fn extend(&self, id: SessionId, expires_at: UnixMillis) {
        if let Some(session) = self.plane.gate.sessions.by_id(id) {
            session.extend(expires_at);
        }
    }

    fn demand(&self) -> Vec<NamespaceDemand> {
        let gate = &self.plane.gate;
        let mut asked = BTreeMap::new();
        gate.sessions.for_each(|session| {
            let namespace = session.namespace();
            if namespace.policy().quota.max_rps > 0 && !asked.contains_key(namespace.name()) {
                asked.insert(namespace.name().clone(), namespace.asked());
            }
        });
        asked.into_iter().map(|(namespace, asked)| NamespaceDemand { namespace, asked }).collect()
    }

    fn share_rates(&self, with_others: bool) {
        self.plane.gate.namespaces.share_rates(with_others);
    }

    fn share(&self, namespace: &NamespaceName, millis: u64) {
        self.plane.gate.namespaces.share(namespace, millis);
    }
}

fn add(figures: &mut RequestFigures, streams: i64) {
    figures.active_sessions += 1;
    figures.active_streams += streams;
}

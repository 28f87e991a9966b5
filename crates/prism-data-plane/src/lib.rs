//! The data plane: the gate of architecture law 3, one file per service, and what the control plane asks of a node.
//!
//! A call passes [`dispatch`], its service decodes it and enters the [`gate`], which yields a permit or a refusal; the fields
//! are checked, and the session's driver is called. The store is never touched on this path.

mod admission;
mod backends;
mod call;
mod cause;
mod credential;
mod decision;
mod dispatch;
mod drain;
mod elsewhere;
mod fields;
mod gate;
mod namespaces;
mod node;
mod plane;
mod revocation;
mod rpc;
mod services;
mod session;
mod sessions;
mod stream;
mod sweeper;
mod values;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures::StreamExt;
use prism_backends::driver::Backend;
use prism_core::control::ControlPlane;
use prism_core::limits::{Limits, SessionPolicy};
use prism_core::session::SessionRecord;
use prism_core::{Clock, Error, NamespaceName, NodeId, Result};
use prism_identity::{ClientTrust, FailureLimiter, Issuers};
use prism_rpc::{Connections, Metrics, Table};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::backends::Backends;
use crate::cause::EndCause;
use crate::credential::Credentials;
use crate::gate::Gate;
use crate::namespaces::Namespaces;
use crate::plane::Plane;
use crate::revocation::Revocations;
use crate::rpc::Methods;
use crate::session::Session;

pub use crate::dispatch::{Call, DataService, SERVICES};

/// Sessions that are taken up at the same time at start.
const RESTORED_AT_ONCE: usize = 64;
/// How often a shutdown looks whether something still runs.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What a data plane is made of.
pub struct DataPlaneOptions {
    /// This node.
    pub node: NodeId,
    /// The control plane.
    pub control: Arc<dyn ControlPlane>,
    /// The configured backend instances.
    pub backends: Vec<Arc<dyn Backend>>,
    /// Bounds.
    pub limits: Limits,
    /// Life of sessions.
    pub policy: SessionPolicy,
    /// Where the time comes from.
    pub clock: Clock,
    /// Where calls are counted.
    pub metrics: Metrics,
    /// The rules of the RPCs.
    pub table: Arc<Table>,
    /// Whether gRPC reflection is served.
    pub reflection: bool,
    /// Whether gRPC health is served.
    pub health: bool,
    /// Whose JWTs open sessions.
    pub issuers: Issuers,
    /// Whose client certificates do; `None` = nobody's.
    pub trust: Option<Arc<ArcSwap<ClientTrust>>>,
    /// The connections of the listener that serves this plane.
    pub connections: Connections,
    /// Failed credentials of one source or key that are answered without delay, in a minute.
    pub auth_failures: u32,
}

/// The data plane of one node.
pub struct DataPlane {
    plane: Arc<Plane>,
    service: DataService,
    health: HealthReporter,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl DataPlane {
    /// Takes up the sessions that the control plane knows for this node, and starts what runs beside the calls. Needs a
    /// runtime; its calls run wherever the listener runs them.
    ///
    /// Fails when an RPC has no rule, or the control plane or a backend cannot tell what it has.
    pub async fn start(options: DataPlaneOptions) -> Result<Arc<Self>> {
        let methods = Methods::load(&options.table).map_err(Error::internal)?;
        let namespaces = Namespaces::new(options.control.snapshot(), options.metrics.clone());
        let (control, clock) = (options.control, options.clock);
        let failures = FailureLimiter::new(options.auth_failures);
        let trust = options.trust;
        let credentials =
            Credentials::new(Arc::clone(&control), options.issuers, trust.clone(), failures, clock.clone());
        let gate = Gate::new(methods, namespaces, options.metrics.clone(), clock, options.policy, options.limits);
        let gate = gate.trusting(trust);
        let backends = Backends::new(options.backends);
        let plane = Arc::new(Plane::new(gate, control, credentials, backends, options.node, options.metrics));
        plane.gate.belongs_to(&plane);
        fill_meters(&plane).await?;
        restore(&plane).await?;
        gauges(&plane);
        let (health, others) = others(options.reflection, options.health)?;
        report_health(&health, ServingStatus::Serving).await;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(sweeper::sweep(Arc::clone(&plane), stop.clone()));
        tasks.spawn(sweeper::follow(Arc::clone(&plane), stop.clone()));
        tasks.spawn(Revocations::new(&plane, options.connections).enforce(stop.clone()));
        let service = DataService::new(&plane, others);
        Ok(Arc::new(Self { plane, service, health, stop, tasks }))
    }

    /// All services, health and reflection included.
    pub fn service(&self) -> DataService {
        self.service.clone()
    }

    /// Takes nothing new, lets what runs finish until `deadline`, cuts the rest with UNAVAILABLE `DRAINING`, and reports what
    /// is to report. The sessions stay alive: after a restart their tokens go on working. The backends stay open.
    pub async fn shutdown(&self, deadline: Instant) {
        self.plane.gate.leave();
        report_health(&self.health, ServingStatus::NotServing).await;
        loop {
            let sessions = self.plane.gate.sessions.all();
            for session in &sessions {
                session.drain();
            }
            if Instant::now() >= deadline || sessions.iter().all(|session| session.running() == 0) {
                break;
            }
            tokio::time::sleep(LOOK_EVERY.min(deadline.saturating_duration_since(Instant::now()))).await;
        }
        self.stop.cancel();
        self.tasks.close();
        let most = deadline.max(Instant::now() + Duration::from_secs(1));
        let _ = tokio::time::timeout_at(most.into(), async {
            self.tasks.wait().await;
            self.plane.changed().await;
            self.plane.save_ends().await;
            self.plane.report().await;
        })
        .await;
        for session in self.plane.gate.sessions.all() {
            self.plane.cut(&session, EndCause::Drained);
        }
    }
}

/// Says of the whole and of each service whether it serves.
async fn report_health(health: &HealthReporter, status: ServingStatus) {
    for service in std::iter::once("").chain(SERVICES) {
        health.set_service_status(service, status).await;
    }
}

/// Charges what the backends hold already.
async fn fill_meters(plane: &Plane) -> Result<()> {
    for backend in plane.backends.all() {
        for (namespace, bytes) in backend.stored().await? {
            plane.gate.namespaces.runtime(&namespace).meter().adjust(bytes);
        }
    }
    Ok(())
}

/// Takes up the live sessions of this node.
async fn restore(plane: &Arc<Plane>) -> Result<()> {
    let records = plane.control.live_sessions(&plane.node).await?;
    let count = records.len();
    let restores = records.into_iter().map(|record| restore_one(plane, record));
    futures::stream::iter(restores).buffer_unordered(RESTORED_AT_ONCE).collect::<()>().await;
    if count > 0 {
        tracing::info!(count, "sessions taken up");
    }
    Ok(())
}

async fn restore_one(plane: &Arc<Plane>, record: SessionRecord) {
    let config = Arc::clone(&record.config);
    let runtime = plane.gate.namespaces.runtime(&config.namespace);
    let route = plane.backends.open(&config, runtime.meter()).await;
    if let Err(error) = &route {
        tracing::warn!(session.id = %record.id, namespace = %config.namespace, %error, "a session has lost its backend");
    }
    let session = plane.assemble(record, route);
    let verdict = plane.gate.sessions.insert(&session);
    if plane.gate.is_revoked() {
        plane.let_go(&session, EndCause::NodeRevoked);
    } else if let Some(verdict) = verdict {
        // The termination was quicker than the session.
        if verdict.force {
            plane.cut(&session, EndCause::Terminated(verdict.reason));
            return;
        }
        session.terminate_gently(verdict.reason);
        plane.end_when_settled(&session, session.termination());
    } else if session.record().terminating.is_some() {
        plane.end_when_settled(&session, session.termination());
    } else if !runtime.policy().exists {
        plane.end(&session, EndCause::NamespaceDeleted).await;
    } else if !plane.gate.upholds(&session) {
        // Its credential fell while this node was down.
        plane.end(&session, EndCause::CredentialRevoked).await;
    }
}

/// Gauges of what the gate knows. They hold the plane weakly, as it holds the figures.
fn gauges(plane: &Arc<Plane>) {
    type Count = fn(&Session) -> f64;
    let of_sessions: [(&'static str, &'static str, Count); 2] = [
        ("prism_data_sessions", "Live sessions of this node by namespace.", |_| 1.0),
        ("prism_data_streams", "Open streams of this node by namespace.", |session| f64::from(session.streams())),
    ];
    let labels = |namespace: &NamespaceName| vec![("namespace", namespace.as_str().to_owned())];
    for (name, help, count) in of_sessions {
        let weak: Weak<Plane> = Arc::downgrade(plane);
        let read = move || {
            let mut sums: BTreeMap<NamespaceName, f64> = BTreeMap::new();
            for session in weak.upgrade().map(|plane| plane.gate.sessions.all()).unwrap_or_default() {
                *sums.entry(session.namespace().name().clone()).or_default() += count(&session);
            }
            sums.iter().map(|(namespace, sum)| (labels(namespace), *sum)).collect()
        };
        plane.metrics.gauge_fn(name, help, Box::new(read));
    }
    let weak: Weak<Plane> = Arc::downgrade(plane);
    let read = move || {
        let namespaces = weak.upgrade().map(|plane| plane.gate.namespaces.all()).unwrap_or_default();
        namespaces.iter().map(|namespace| (labels(namespace.name()), namespace.meter().used() as f64)).collect()
    };
    let help = "Bytes stored on this node by namespace.";
    plane.metrics.gauge_fn("prism_data_storage_bytes", help, Box::new(read));
}

/// Health and reflection, as far as they are served.
fn others(reflection: bool, health: bool) -> Result<(HealthReporter, Routes)> {
    let (reporter, server) = tonic_health::server::health_reporter();
    let mut routes = Routes::builder();
    if health {
        routes.add_service(server);
    }
    if reflection {
        let own = health.then_some(tonic_health::pb::health_server::SERVICE_NAME);
        let builder = || {
            let builder = tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(prism_proto::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
            // Only what this port serves; the descriptors know more.
            SERVICES.into_iter().chain(own).fold(builder, tonic_reflection::server::Builder::with_service_name)
        };
        routes.add_service(builder().build_v1().map_err(Error::internal)?);
        routes.add_service(builder().build_v1alpha().map_err(Error::internal)?);
    }
    Ok((reporter, routes.routes()))
}

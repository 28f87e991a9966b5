//! The two planes and what they share, built in order: store, backends, data plane, admin plane.

use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use prism_admin_plane::op::Enrolment;
use prism_admin_plane::{AdminOptions, AdminPlane};
use prism_backends::driver::Backend;
use prism_backends::memory::MemoryBackend;
use prism_backends::sqlite::SqliteBackend;
use prism_core::limits::LOCAL_NODE;
use prism_core::secret::Random;
use prism_core::{Clock, NodeId};
use prism_data_plane::{DataPlane, DataPlaneOptions, DataService};
use prism_identity::{CertificateKind, Issuers, own_identity};
use prism_link::{Certifier, Fleet, FleetOptions};
use prism_rpc::tls::{NodeCertificate, SigningRequest, server_names};
use prism_rpc::{CertificateAuthority, Connections, Metrics, Shutdown, Table};
use prism_store::Store;
use tokio::runtime::Handle;
use tokio::time::{Instant, MissedTickBehavior};

use super::trust::Trust;
use crate::Failure;
use crate::cli::Role;
use crate::settings::{BackendKind, BackendSettings, Settings};

/// Name of a controller without a data plane; no node may have it.
const CONTROLLER: &str = "controller";

/// The running planes.
pub struct Planes {
    store: Arc<Store>,
    backends: Vec<Arc<dyn Backend>>,
    data: Option<Arc<DataPlane>>,
    fleet: Arc<Fleet>,
    admin: AdminPlane,
    trust: Arc<Trust>,
    connections: PlaneConnections,
}

/// Open connections of each plane's listener.
#[derive(Clone, Debug, Default)]
pub struct PlaneConnections {
    /// Of the data plane.
    pub data: Connections,
    /// Of the admin plane.
    pub admin: Connections,
}

/// What the planes are made of.
pub struct Ground<'a> {
    /// Settings.
    pub settings: &'a Settings,
    /// Where the control state is.
    pub folder: &'a Path,
    /// The runtime of the data plane.
    pub data: &'a Handle,
    /// Figures.
    pub metrics: &'a Metrics,
    /// Prism's own CA.
    pub authority: &'a CertificateAuthority,
    /// Whose access tokens are believed.
    pub issuers: &'a Issuers,
}

impl Planes {
    /// Opens the store, then starts the data plane on its runtime, then puts the admin plane over both. Streams of the admin plane
    /// that follow end with `admin_shutdown`.
    pub async fn start(ground: &Ground<'_>, admin_shutdown: Shutdown) -> Result<Self, Failure> {
        let Ground { settings, folder, data, metrics, authority, issuers } = *ground;
        let clock = Clock::system();
        let table = Arc::new(Table::load()?);
        let store = Store::open(folder, settings.session.clone(), clock.clone(), Random::system()).await;
        let store = Arc::new(store.map_err(|error| failed("the control state cannot be opened", &error))?);
        let recovered = prism_admin_plane::recover_authority(&store, authority).await;
        recovered.map_err(|error| failed("a change of the CA that was cut short cannot be finished", &error))?;
        let trust = Trust::load(store.cluster(), authority.trusted(), &settings.client_ca).map_err(Failure::Usage)?;
        let trust = Arc::new(trust);
        let connections = PlaneConnections::default();
        let (followed, cut) = (Arc::downgrade(&trust), connections.admin.clone());
        authority.on_change(move |own| {
            if let Some(trust) = followed.upgrade() {
                trust.rotate(own, &cut);
            }
        });
        let id = if settings.role == Role::Admin { CONTROLLER } else { LOCAL_NODE };
        let node = NodeId::parse("node", id).map_err(|error| failed("no node", &error))?;
        let fleet = FleetOptions {
            control: store.clone(),
            id: node.clone(),
            cluster: store.cluster().to_owned(),
            epoch: epoch(),
            clock: clock.clone(),
            certifier: Some(Arc::new(DataPorts {
                authority: authority.clone(),
                cluster: store.cluster().to_owned(),
                life: settings.node_certificate_ttl,
            })),
        };
        let fleet = Fleet::start(fleet).await.map_err(|error| failed("the nodes cannot be looked up", &error))?;
        let fleet = Arc::new(fleet);
        tokio::spawn(tell_authorities(authority.clone(), Arc::downgrade(&fleet)));

        let (backends, data) = if settings.role == Role::Admin {
            (Vec::new(), None)
        } else {
            let (instances, opening) = (settings.backends.clone(), clock.clone());
            let backends = on(data, async move { open_backends(instances, &opening).await }).await??;
            let options = DataPlaneOptions {
                node,
                control: store.clone(),
                backends: backends.clone(),
                limits: settings.limits.clone(),
                policy: settings.session.clone(),
                clock,
                metrics: metrics.clone(),
                table: table.clone(),
                reflection: settings.reflection,
                health: settings.health,
                issuers: issuers.clone(),
                trust: settings.data_tls.is_some().then(|| trust.data()),
                connections: connections.data.clone(),
                auth_failures: settings.auth_failures,
            };
            let started = on(data, async move { DataPlane::start(options).await }).await?;
            let plane = started.map_err(|error| failed("the data plane cannot start", &error))?;
            fleet.attach(plane.clone());
            (backends, Some(plane))
        };
        let admin = AdminPlane::new(AdminOptions {
            store: store.clone(),
            fleet: fleet.clone(),
            catalog: settings.catalog(),
            metrics: metrics.clone(),
            table,
            reflection: settings.reflection,
            health: settings.health,
            shutdown: admin_shutdown,
            issuers: issuers.clone(),
            trust: trust.admin(),
            authority: authority.clone(),
            connections: connections.admin.clone(),
            auth_failures: settings.auth_failures,
            admin_rps: settings.admin_rps,
            audit: settings.audit.clone(),
            enrolment: Enrolment {
                certificate_ttl: settings.node_certificate_ttl,
                server_names: server_names(&settings.names),
            },
        });
        Ok(Self { store, backends, data, fleet, admin, trust, connections })
    }

    /// Whose client certificates may come in.
    pub fn trust(&self) -> &Arc<Trust> {
        &self.trust
    }

    /// Open connections of the planes.
    pub fn connections(&self) -> &PlaneConnections {
        &self.connections
    }

    /// The control state.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The admin plane.
    pub fn admin(&self) -> &AdminPlane {
        &self.admin
    }

    /// What the data plane's listener serves, if there is a data plane.
    pub fn data_service(&self) -> Option<DataService> {
        self.data.as_ref().map(|data| data.service())
    }

    /// Takes nothing new, and lets what runs finish until `deadline`. Sessions stay alive for the next start.
    pub async fn drain(&self, deadline: Instant) {
        if let Some(data) = &self.data {
            data.shutdown(deadline.into_std()).await;
        }
    }

    /// Ends the links to data nodes, which go on without this controller.
    pub fn end_links(&self) {
        self.fleet.end();
    }

    /// Writes what waits in the backends.
    pub async fn close(&self, data: &Handle) {
        let backends = self.backends.clone();
        let closed = on(data, async move {
            for backend in backends {
                backend.close().await;
            }
        });
        if let Err(error) = closed.await {
            tracing::error!(error, "the backends were not closed in order");
        }
    }

    /// Removes what is past its time from the control state, every `period`.
    pub fn spawn_sweeps(&self, period: Duration, until: Shutdown) {
        let (store, door) = (self.store.clone(), Arc::clone(self.admin.door()));
        self.spawn_removals(period, until.clone());
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = ticks.tick() => {}
                    () = until.announced() => return,
                }
                if let Err(error) = door.services.settle_authority().await {
                    tracing::error!(%error, "a change of the CA has not taken effect yet");
                }
                if let Err(error) = store.sweep().await {
                    tracing::warn!(%error, "what is past its time was not removed");
                }
            }
        });
    }

    /// Finishes removals of data, every `period`: by themselves, as nodes may take their time over them.
    fn spawn_removals(&self, period: Duration, until: Shutdown) {
        let door = Arc::clone(self.admin.door());
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = ticks.tick() => {}
                    () = until.announced() => return,
                }
                if let Err(error) = door.services.finish_removals().await {
                    tracing::warn!(%error, "data of deleted namespaces was not looked for");
                }
            }
        });
    }
}

/// The cluster's CA, for the data ports of nodes.
struct DataPorts {
    authority: CertificateAuthority,
    cluster: String,
    life: Duration,
}

impl Certifier for DataPorts {
    fn server_certificate(&self, node: &NodeId, csr_pem: &[u8]) -> prism_core::Result<Vec<u8>> {
        let key = SigningRequest::parse(csr_pem)?;
        let uri = own_identity(&self.cluster, CertificateKind::Node, node.as_str());
        let uri = uri.ok_or_else(|| prism_core::Error::internal(format!("{node} is no name of an identity")))?;
        let wanted = NodeCertificate { uri, node_id: node.to_string(), life: self.life };
        self.authority.issue_node_server(&wanted, &key).map(String::into_bytes)
    }
}

/// Tells the nodes the cluster's CA, and each change of it when it is in force, as long as there is a fleet.
async fn tell_authorities(authority: CertificateAuthority, fleet: Weak<Fleet>) {
    let mut changes = authority.changes();
    loop {
        changes.borrow_and_update();
        let Some(fleet) = fleet.upgrade() else { return };
        fleet.tell_authorities(&authority.certificate_pem());
        drop(fleet);
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// A number that no other life of a controller has, for its revisions.
fn epoch() -> u64 {
    let mut bytes = [0; 8];
    Random::system().fill(&mut bytes);
    u64::from_be_bytes(bytes).max(1)
}

pub fn failed(what: &str, error: &prism_core::Error) -> String {
    let cause = error.cause().map(|cause| format!(" ({cause})")).unwrap_or_default();
    format!("{what}: {}{cause}", error.message())
}

/// Runs `work` on another runtime.
pub async fn on<T: Send + 'static>(
    runtime: &Handle,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, String> {
    runtime.spawn(work).await.map_err(|error| format!("the server cannot start: {error}"))
}

pub async fn open_backends(instances: Vec<BackendSettings>, clock: &Clock) -> Result<Vec<Arc<dyn Backend>>, String> {
    let mut out: Vec<Arc<dyn Backend>> = Vec::new();
    for BackendSettings { name, kind } in instances {
        out.push(match kind {
            BackendKind::Memory => MemoryBackend::new(name, clock.clone()),
            BackendKind::Sqlite { folder } => {
                let opened = SqliteBackend::open(name.clone(), folder, clock.clone()).await;
                opened.map_err(|error| failed(&format!("the backend {name} cannot be opened"), &error))?
            }
        });
    }
    Ok(out)
}

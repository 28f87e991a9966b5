//! The life of a data node: its identity, the link to a controller, and a data plane over it.

mod authorities;
mod connector;
mod data_port;
mod renewal;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use prism_backends::driver::Backend;
use prism_core::secret::Random;
use prism_core::{Clock, NamespaceName, NodeId};
use prism_data_plane::{DataPlane, DataPlaneOptions};
use prism_identity::Issuers;
use prism_link::{BackendIdentity, Files, NodeLink, NodeLinkOptions};
use prism_rpc::convert::timestamp;
use prism_rpc::{Connections, Metrics, ServerTls, Shutdown, Table};
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::expiry::Certificates;
use super::listeners::{Listeners, Parts, Security, Serving};
use super::planes::{failed, on, open_backends};
use super::trust::Trust;
use super::{DRAIN_TIMEOUT, LINGER, process, self_check};
use crate::data_dir::DataDir;
use crate::join::identity::{Identity, NodeFiles};
use crate::monitoring::{Phase, Readiness};
use crate::settings::{Certificate, ClientCa, Settings};
use crate::signals::Signals;
use crate::{Failure, endpoints, monitoring};
use authorities::Authorities;
use connector::Connector;
use data_port::DataPort;
use renewal::Renewal;

/// How long a controller may take until the node starts by what is on its disk.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether a start still makes sense.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What runs.
struct Node {
    link: Arc<NodeLink>,
    plane: Arc<DataPlane>,
    backends: Vec<Arc<dyn Backend>>,
}

/// Serves until a signal asks for the end. The data plane and its link run on `data`.
pub async fn run(settings: Settings, issuers: Issuers, directory: &DataDir, data: Handle) -> Result<(), Failure> {
    let mut signals = Signals::listen().map_err(|error| format!("signals cannot be received: {error}"))?;
    let folder = directory.path();
    endpoints::remove(folder).map_err(|error| format!("a stale endpoints.json cannot be removed: {error}"))?;
    let readiness = Readiness::default();
    let (background, until_the_end) = Shutdown::new();
    let start = start(&settings, issuers, folder, &data, &readiness, until_the_end);
    let (node, mut serving) = tokio::select! {
        started = start => started?,
        received = signals.next() => {
            tracing::info!(signal = ?received, "asked to stop while starting");
            return Ok(());
        }
    };
    let received = tokio::select! {
        received = signals.next() => received,
        fault = serving.broken() => return Err(fault.into()),
    };
    tracing::info!(signal = ?received, "draining; a second signal ends at once");
    signals.end_at_the_next();
    readiness.enter(Phase::Draining);
    let Node { link, plane, backends } = node;
    plane.shutdown((Instant::now() + DRAIN_TIMEOUT).into_std()).await;
    serving.end_data(Instant::now() + LINGER).await;
    serving.end_admin(Instant::now() + LINGER).await;
    background.now();
    if let Err(error) = link.flush().await {
        tracing::error!(%error, "the node's state was not written for the last time");
    }
    link.end();
    let closed = on(&data, async move {
        for backend in backends {
            backend.close().await;
        }
    });
    if let Err(error) = closed.await {
        tracing::error!(error, "the backends were not closed in order");
    }
    endpoints::remove(folder).map_err(|error| format!("endpoints.json cannot be removed: {error}"))?;
    tracing::info!("stopped");
    Ok(())
}

/// Looks for an identity before anything is made in a folder that has none.
pub fn require_identity(folder: &Path) -> Result<(), Failure> {
    if NodeFiles::are_in(folder) { Ok(()) } else { Err(no_identity(folder)) }
}

fn no_identity(folder: &Path) -> Failure {
    let shown = folder.display();
    Failure::Usage(format!(
        "{shown} holds no identity of a node; run prism join with a token of prism-admin token create"
    ))
}

/// Everything up to the moment when `/ready` says so.
async fn start(
    settings: &Settings,
    issuers: Issuers,
    folder: &Path,
    data: &Handle,
    readiness: &Readiness,
    until_the_end: Shutdown,
) -> Result<(Node, Serving), Failure> {
    let clock = Clock::system();
    let files = NodeFiles::open(folder)?;
    let identity = files.read()?.ok_or_else(|| no_identity(folder))?;
    let id = NodeId::parse("node_id", &identity.node_id).map_err(|error| failed("node.json", &error))?;
    // The cluster's own CAs, and the operator's bundle.
    let bundles = ClientCa { admin: None, data: settings.client_ca.data.clone() };
    let trust = Trust::load(&identity.cluster, files.authorities()?, &bundles).map_err(Failure::Usage)?;
    let trust = Arc::new(trust);
    let metrics = Metrics::new();
    process::register(&metrics);
    metrics.spawn_history(until_the_end.clone());
    let listeners = Listeners::bind(settings).await?;
    let addresses = listeners.endpoints();
    let table = Arc::new(Table::load()?);

    let (backends, stored) = open(settings, &clock, data).await?;
    let connector = Arc::new(Connector::new(files.clone(), id.as_str()));
    let options = link_options(settings, &files, (&identity, &id), connector.clone(), (stored, addresses.data));
    let started = on(data, async move { NodeLink::start(options).await }).await?;
    let link = Arc::new(started.map_err(|error| failed("the node cannot start", &error))?);
    tracing::info!(node.id = %id, "waiting for a controller, or for what is on the disk");
    let mut own = settings.clone();
    let port = (own.data_tls == Some(Certificate::Auto)).then(|| DataPort::new(files.folder(), &link));
    let certificate = prepared(&link, port.as_ref(), &files, &identity).await?;
    own.data_tls = certificate.or(own.data_tls);
    let renews_port = port.is_some();
    let authorities = Authorities::new(files.clone(), &identity.cluster, trust.clone(), link.authorities())?;
    let renewal = Renewal {
        controllers: controllers(settings, &identity),
        files: files.clone(),
        identity,
        connector,
        link: link.clone(),
        data: port,
        authorities,
        jitter: jitter(),
    };
    tokio::spawn(renewal.run(until_the_end.clone()));
    let settings = &own;
    let security = Security::load(settings, None)?;
    let data_tls = security.data.as_ref().map(|plane| plane.tls.clone());
    let certificates = Certificates::of_node(files.clone(), data_tls.clone(), renews_port, &trust);
    certificates.register(&metrics);
    readiness.unless(move || data_tls.as_ref().and_then(ended));

    let connections = Connections::default();
    let options = DataPlaneOptions {
        node: id,
        control: link.clone(),
        backends: backends.clone(),
        limits: settings.limits.clone(),
        policy: settings.session.clone(),
        clock,
        metrics: metrics.clone(),
        table,
        reflection: settings.reflection,
        health: settings.health,
        issuers: issuers.clone(),
        trust: settings.data_tls.is_some().then(|| trust.data()),
        connections: connections.clone(),
        auth_failures: settings.auth_failures,
    };
    let started = on(data, async move { DataPlane::start(options).await }).await?;
    let plane = started.map_err(|error| failed("the data plane cannot start", &error))?;
    link.attach(plane.clone());

    let routes = monitoring::routes(metrics.clone(), readiness.clone());
    let parts = Parts {
        settings,
        security: &security,
        data: Some((plane.service(), connections)),
        admin: None,
        metrics: &metrics,
    };
    let serving = listeners.serve(parts, routes, data, Shutdown::new()).await?;
    if let Some(address) = addresses.data {
        self_check::data_plane(address, &security, None).await?;
    }
    security.spawn_renewal(&until_the_end);
    tokio::spawn(trust.follow(Connections::default(), until_the_end.clone()));
    tokio::spawn(certificates.warn(Clock::system(), until_the_end.clone()));
    let revocation_until = until_the_end.clone();
    tokio::spawn(async move { issuers.keep_fresh(until_the_end.announced()).await });
    addresses.write(folder).map_err(|error| format!("endpoints.json cannot be written: {error}"))?;
    readiness.enter(Phase::Ready);
    tokio::spawn(follow_standing(Arc::clone(&link), readiness.clone(), revocation_until));
    tracing::info!(data = ?addresses.data, metrics = %addresses.metrics, "ready");
    Ok((Node { link, plane, backends }, serving))
}

/// What is wrong with a data port whose clients refuse its certificate.
fn ended(tls: &ServerTls) -> Option<String> {
    let ends = tls.expires_at();
    let is_over = ends <= Clock::system().now();
    is_over.then(|| format!("the certificate of the data port has ended at {}", timestamp(ends)))
}

/// `/ready` says whether the controllers have put this node out. It knows what to do with it: the link has cut everything.
async fn follow_standing(link: Arc<NodeLink>, readiness: Readiness, until: Shutdown) {
    let follow = async {
        loop {
            link.revoked(true).await;
            readiness.change(Phase::Ready, Phase::Revoked);
            link.revoked(false).await;
            readiness.change(Phase::Revoked, Phase::Ready);
        }
    };
    tokio::select! {
        () = follow => {}
        () = until.announced() => {}
    }
}

/// The backends, and the namespaces that they have data of.
async fn open(
    settings: &Settings,
    clock: &Clock,
    data: &Handle,
) -> Result<(Vec<Arc<dyn Backend>>, Vec<NamespaceName>), Failure> {
    let (instances, opening) = (settings.backends.clone(), clock.clone());
    let backends = on(data, async move { open_backends(instances, &opening).await }).await??;
    let looked = backends.clone();
    let names = on(data, async move {
        let mut names = Vec::new();
        for backend in looked {
            names.extend(backend.stored().await?.into_iter().map(|(name, _)| name));
        }
        Ok(names)
    });
    let names: prism_core::Result<Vec<NamespaceName>> = names.await?;
    let names = names.map_err(|error| failed("it cannot be looked what is stored", &error))?;
    Ok((backends, names))
}

/// The link of a node that has data of the namespaces `stored`, and serves at an address.
fn link_options(
    settings: &Settings,
    files: &NodeFiles,
    (identity, id): (&Identity, &NodeId),
    connector: Arc<Connector>,
    (stored, address): (Vec<NamespaceName>, Option<SocketAddr>),
) -> NodeLinkOptions {
    NodeLinkOptions {
        node: id.clone(),
        process: process(),
        controllers: controllers(settings, identity),
        connector,
        storage: Arc::new(Files::new(files.folder())),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        backends: identities(settings, id),
        stored,
        data_endpoint: address.map(|address| address.to_string()).unwrap_or_default(),
        clock: Clock::system(),
        jitter: jitter(),
    }
}

/// Those of the settings, else those that the node joined through.
fn controllers(settings: &Settings, identity: &Identity) -> Vec<String> {
    if settings.controllers.is_empty() { identity.controllers.clone() } else { settings.controllers.clone() }
}

/// Waits until there is something to serve by, and a certificate for the data port if it is to be one of the cluster's CA.
async fn prepared(
    link: &NodeLink,
    port: Option<&DataPort>,
    files: &NodeFiles,
    identity: &Identity,
) -> Result<Option<Certificate>, Failure> {
    let prepared = async {
        link.ready(PATIENCE).await;
        match port {
            Some(port) => Some(port.certificate().await),
            None => None,
        }
    };
    tokio::select! {
        biased;
        certificate = prepared => Ok(certificate),
        () = slept_past_the_end(files) => {
            let what = renewal::way_back(&identity.node_id, files);
            let why = "the node's certificate has ended, and nothing here can be served without a controller";
            Err(format!("{why}; {what}").into())
        }
    }
}

/// Returns when the node's certificate is over and nobody has given it another one for a while.
async fn slept_past_the_end(files: &NodeFiles) {
    loop {
        // With what is on the disk it may serve all the same.
        tokio::time::sleep(PATIENCE + LOOK_EVERY).await;
        if files.life().is_ok_and(|life| life.expires_at <= Clock::system().now()) {
            return;
        }
    }
}

/// An embedded backend is this node's own; nobody else has its data.
fn identities(settings: &Settings, node: &NodeId) -> Vec<BackendIdentity> {
    let of = |backend: &crate::settings::BackendSettings| BackendIdentity {
        instance: backend.name.to_string(),
        kind: backend.kind().name().to_owned(),
        identity: format!("embedded:{node}:{}", backend.name),
    };
    settings.backends.iter().map(of).collect()
}

/// A number that no other process has.
fn process() -> u64 {
    let mut bytes = [0; 8];
    Random::system().fill(&mut bytes);
    u64::from_be_bytes(bytes)
}

/// Up to a fifth more or less.
fn jitter() -> prism_link::Jitter {
    let random = Random::system();
    Box::new(move |pause| {
        let mut byte = [0; 1];
        random.fill(&mut byte);
        pause.mul_f64(0.8 + 0.4 * f64::from(byte[0]) / 255.0)
    })
}

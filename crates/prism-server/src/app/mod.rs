//! The life of the server: build, bind, serve, prove that it answers, wait, drain.

mod expiry;
mod listeners;
pub mod node;
mod planes;
mod process;
mod self_check;
mod trust;

use std::time::Duration;

use prism_core::Clock;
use prism_identity::Issuers;
use prism_rpc::{CertificateAuthority, Metrics, Shutdown};
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::data_dir::DataDir;
use crate::monitoring::{Phase, Readiness};
use crate::settings::Settings;
use crate::signals::Signals;
use crate::{Failure, dev, endpoints, monitoring};
use expiry::Certificates;
use listeners::{Listeners, Parts, Serving};
use planes::{Ground, Planes};

/// How long operations and streams of sessions may take to finish once the server was asked to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long answers may take to leave after that. What is open longer (a health watch for one) never ends by itself.
const LINGER: Duration = Duration::from_secs(2);
/// How often what is past its time is removed from the control state: at least a second apart, at most a minute.
const SWEEP_EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));

/// Serves until a signal asks for the end. The caller's runtime is the admin plane's; the data plane runs on `data`, so that
/// neither can starve the other (architecture, law 7).
pub async fn run(settings: Settings, issuers: Issuers, directory: &DataDir, data: Handle) -> Result<(), Failure> {
    let mut signals = Signals::listen().map_err(|error| format!("signals cannot be received: {error}"))?;
    let folder = directory.path();
    endpoints::remove(folder).map_err(|error| format!("a stale endpoints.json cannot be removed: {error}"))?;
    let readiness = Readiness::default();
    let (background, until_the_end) = Shutdown::new();
    let start = start(&settings, issuers, directory, &data, &readiness, until_the_end);
    let (planes, mut serving) = tokio::select! {
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
    planes.drain(Instant::now() + DRAIN_TIMEOUT).await;
    serving.end_data(Instant::now() + LINGER).await;
    planes.end_links();
    serving.end_admin(Instant::now() + LINGER).await;
    background.now();
    planes.admin().close_audit_log().await;
    planes.close(&data).await;
    endpoints::remove(folder).map_err(|error| format!("endpoints.json cannot be removed: {error}"))?;
    tracing::info!("stopped");
    Ok(())
}

/// Everything up to the moment when `/ready` says so.
async fn start(
    settings: &Settings,
    issuers: Issuers,
    directory: &DataDir,
    data: &Handle,
    readiness: &Readiness,
    until_the_end: Shutdown,
) -> Result<(Planes, Serving), Failure> {
    let folder = directory.path();
    let metrics = Metrics::new();
    process::register(&metrics);
    metrics.spawn_history(until_the_end.clone());
    let authority = CertificateAuthority::load_or_create(folder).map_err(|error| error.message().to_owned())?;
    let (admin_trigger, admin_shutdown) = Shutdown::new();
    let ground = Ground { settings, folder, data, metrics: &metrics, authority: &authority, issuers: &issuers };
    let planes = Planes::start(&ground, admin_shutdown.clone()).await?;
    let listeners = Listeners::bind(settings).await?;
    let addresses = listeners.endpoints();
    let security = listeners::Security::load(settings, Some(&authority))?;
    let certificates = Certificates::new(&authority, &security, planes.trust());
    certificates.register(&metrics);
    register_key_ages(&metrics, issuers.clone());
    let routes = monitoring::routes(metrics.clone(), readiness.clone());
    let connections = planes.connections();
    let parts = Parts {
        settings,
        security: &security,
        data: planes.data_service().map(|service| (service, connections.data.clone())),
        admin: Some((planes.admin(), connections.admin.clone())),
        metrics: &metrics,
    };
    let serving = listeners.serve(parts, routes, data, (admin_trigger, admin_shutdown)).await?;
    if let Some(address) = addresses.data {
        self_check::data_plane(address, &security, Some(&authority)).await?;
    }
    if let Some(address) = addresses.admin {
        self_check::admin_plane(address, &security, &authority).await?;
    }
    let (often, seldom) = SWEEP_EVERY;
    planes.spawn_sweeps(settings.session.retain_ended.clamp(often, seldom), until_the_end.clone());
    planes.admin().spawn_audit_upkeep(until_the_end.clone());
    security.spawn_renewal(&until_the_end);
    tokio::spawn(planes.trust().clone().follow(planes.connections().admin.clone(), until_the_end.clone()));
    tokio::spawn(certificates.warn(Clock::system(), until_the_end.clone()));
    tokio::spawn(async move { issuers.keep_fresh(until_the_end.announced()).await });
    if settings.dev {
        dev::provision(planes.admin(), planes.store(), folder).await?;
    }
    addresses.write(folder).map_err(|error| format!("endpoints.json cannot be written: {error}"))?;
    readiness.enter(Phase::Ready);
    tracing::info!(data = ?addresses.data, admin = ?addresses.admin, metrics = %addresses.metrics, "ready");
    if settings.dev {
        dev::print_next_steps(&addresses, folder);
    }
    Ok((planes, serving))
}

/// Keys that get old though the issuer is asked every ten minutes show that it is away.
fn register_key_ages(metrics: &Metrics, issuers: Issuers) {
    let read = move || {
        let ages = issuers.key_ages().into_iter();
        ages.map(|(issuer, age)| (vec![("issuer", issuer)], age.as_secs_f64())).collect()
    };
    metrics.gauge_fn(
        "prism_oidc_keys_age_seconds",
        "Time since the keys of an issuer were last fetched; since the start, while they never were.",
        Box::new(read),
    );
}

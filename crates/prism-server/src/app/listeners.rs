//! The three sockets: bound before anything is served, and closed in order, the admin plane's last.

use std::time::Duration;

use axum::Router;
use prism_admin_plane::AdminPlane;
use prism_core::secret::Random;
use prism_core::source::PlaceBounds;
use prism_data_plane::DataService;
use prism_rpc::{
    BoundListener, CertificateAuthority, Connections, Metrics, RequestIdService, RequestIds, ServeOptions, ServerTls,
    Shutdown, ShutdownTrigger, serve,
};
use tokio::runtime::Handle;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;

use crate::cli::Role;
use crate::endpoints::Endpoints;
use crate::monitoring;
use crate::settings::{Certificate, Settings};

/// An admin connection without an open request for this long makes room for others: operators must always find a place.
const ADMIN_IDLE_TIMEOUT: Duration = Duration::from_mins(5);

/// Streams of a revoked certificate have this long to say why they end.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// Most connections of one source on the admin port, and never more than a quarter of all: who has no credential can hold
/// connections, too, and must not hold them all.
const ADMIN_CONNECTIONS_PER_SOURCE: usize = 2048;
/// Connections of the admin port that are kept for callers on the machine itself, and never more than an eighth of all.
const ADMIN_CONNECTIONS_FOR_LOOPBACK: usize = 64;

fn admin_places(all: usize) -> PlaceBounds {
    PlaceBounds {
        all,
        per_source: ADMIN_CONNECTIONS_PER_SOURCE.min(all / 4).max(1),
        kept_for_loopback: ADMIN_CONNECTIONS_FOR_LOOPBACK.min(all / 8),
    }
}

/// Bound sockets that nobody serves yet.
pub struct Listeners {
    data: Option<BoundListener>,
    admin: Option<BoundListener>,
    metrics: BoundListener,
}

/// TLS of the two planes.
pub struct Security {
    /// `None` = clear text.
    pub data: Option<PlaneTls>,
    /// `None` = there is no admin plane.
    pub admin: Option<PlaneTls>,
}

/// TLS of one plane.
#[derive(Clone)]
pub struct PlaneTls {
    /// What its listener uses.
    pub tls: ServerTls,
    /// Whether its certificate is one of Prism's CA.
    pub own_authority: bool,
}

impl Security {
    /// Loads or makes the certificates that `settings` ask for; without an authority, from files only.
    pub fn load(settings: &Settings, authority: Option<&CertificateAuthority>) -> Result<Self, String> {
        let load = |certificate: &Certificate| {
            let tls = match certificate {
                Certificate::Auto => match authority {
                    Some(authority) => authority.server_tls(&settings.names),
                    None => return Err("a data node has no CA of its own".to_owned()),
                },
                Certificate::Files { cert, key } => ServerTls::from_files(cert, key),
            };
            let tls = tls.map_err(|error| error.message().to_owned())?;
            Ok::<_, String>(PlaneTls { tls, own_authority: *certificate == Certificate::Auto })
        };
        let mut data = match settings.role {
            Role::Admin => None,
            _ => settings.data_tls.as_ref().map(load).transpose()?,
        };
        if let Some(data) = &mut data {
            data.tls = data.tls.http2_only();
        } else if settings.role != Role::Admin && !settings.bind.is_loopback() {
            tracing::warn!(bind = %settings.bind, "the data plane is served in clear text to the network");
        }
        let admin = match (settings.role, &settings.admin_tls, authority) {
            (Role::Data, ..) => None,
            // Nodes trust the cluster's CA only, whatever operators see.
            (_, Certificate::Files { cert, key }, Some(authority)) => {
                let tls = ServerTls::from_files_with(cert, key, authority, &settings.names);
                let tls = tls.map_err(|error| error.message().to_owned())?;
                Some(PlaneTls { tls, own_authority: false })
            }
            (_, certificate, _) => Some(load(certificate)?),
        };
        Ok(Self { data, admin })
    }

    /// Keeps the certificates up to date until the end is announced.
    pub fn spawn_renewal(&self, until: &Shutdown) {
        for plane in self.data.iter().chain(&self.admin) {
            tokio::spawn(plane.tls.clone().keep_fresh(until.clone()));
        }
    }
}

/// What the listeners serve, and under which bounds.
pub struct Parts<'a> {
    /// Bounds.
    pub settings: &'a Settings,
    /// TLS.
    pub security: &'a Security,
    /// The data plane and the connections of its listener.
    pub data: Option<(DataService, Connections)>,
    /// The admin plane and the connections of its listener.
    pub admin: Option<(&'a AdminPlane, Connections)>,
    /// Figures.
    pub metrics: &'a Metrics,
}

impl Listeners {
    /// Binds those of the role, or none; the error names the port and the flag.
    pub async fn bind(settings: &Settings) -> Result<Self, String> {
        let bind = async |what: &str, port: u16, flag: &str, variable: &str| {
            let address = settings.address(port);
            BoundListener::bind(address).await.map_err(|error| {
                format!("the {what} cannot listen on {address}: {error}; choose another port with {flag} or {variable}")
            })
        };
        Ok(Self {
            data: match settings.role {
                Role::Admin => None,
                _ => Some(bind("data plane", settings.data_port, "--data-port", "PRISM_DATA_PORT").await?),
            },
            admin: match settings.role {
                Role::Data => None,
                _ => Some(bind("admin plane", settings.admin_port, "--admin-port", "PRISM_ADMIN_PORT").await?),
            },
            metrics: bind("metrics listener", settings.metrics_port, "--metrics-port", "PRISM_METRICS_PORT").await?,
        })
    }

    /// Where they are.
    pub fn endpoints(&self) -> Endpoints {
        let address = |listener: &Option<BoundListener>| listener.as_ref().map(BoundListener::local_addr);
        Endpoints { data: address(&self.data), admin: address(&self.admin), metrics: self.metrics.local_addr() }
    }

    /// Serves all three; the data plane on the runtime `data`, the others on the caller's until `admin_end`.
    pub async fn serve(
        self,
        parts: Parts<'_>,
        monitoring_routes: Router,
        data: &Handle,
        admin_end: (ShutdownTrigger, Shutdown),
    ) -> Result<Serving, String> {
        let Parts { settings, security, data: data_plane, admin: admin_plane, metrics } = parts;
        let ids = RequestIds::new(&Random::system());
        let refused =
            metrics.counter("prism_connections_refused_total", "Connections closed because there were too many.");
        let data_options = ServeOptions {
            tls: security.data.as_ref().map(|plane| plane.tls.config()),
            places: PlaceBounds::shared(settings.limits.max_connections),
            connections: data_plane.as_ref().map(|(_, connections)| connections.clone()).unwrap_or_default(),
            refused: refused.clone(),
            ..ServeOptions::new("data")
        };
        let admin_options = ServeOptions {
            tls: security.admin.as_ref().map(|plane| plane.tls.config()),
            http1: true,
            places: admin_places(settings.limits.max_connections),
            connections: admin_plane.as_ref().map(|(_, connections)| connections.clone()).unwrap_or_default(),
            idle_timeout: Some(ADMIN_IDLE_TIMEOUT),
            last_words: LAST_WORDS,
            refused: refused.clone(),
            ..ServeOptions::new("admin")
        };
        let monitoring_options = ServeOptions { refused, ..monitoring::options() };
        count_connections(metrics, [&data_options, &admin_options, &monitoring_options]);

        let (data_trigger, data_shutdown) = Shutdown::new();
        let (admin_trigger, admin_shutdown) = admin_end;
        let data_task = match (self.data, data_plane) {
            (Some(listener), Some((service, _))) => {
                let service = RequestIdService::new(service, ids.clone());
                Some(data.spawn(serve(listener, data_options, service, data_shutdown)))
            }
            _ => None,
        };
        let admin_task = match (self.admin, admin_plane) {
            (Some(listener), Some((plane, _))) => {
                let service = plane.service().await;
                let service = service.map_err(|error| format!("the admin plane cannot start: {}", error.message()))?;
                let service = RequestIdService::new(service, ids);
                Some(tokio::spawn(serve(listener, admin_options, service, admin_shutdown.clone())))
            }
            _ => None,
        };
        Ok(Serving {
            data_task,
            admin_task,
            metrics_task: tokio::spawn(serve(self.metrics, monitoring_options, monitoring_routes, admin_shutdown)),
            data_trigger,
            admin_trigger,
        })
    }
}

fn count_connections(metrics: &Metrics, listeners: [&ServeOptions; 3]) {
    let counts = listeners.map(|options| (options.name, options.connections.clone()));
    let read = move || {
        let count = |(name, connections): &(&'static str, Connections)| {
            (vec![("listener", (*name).to_owned())], connections.open() as f64)
        };
        counts.iter().map(count).collect()
    };
    metrics.gauge_fn("prism_connections", "Open connections.", Box::new(read));
}

/// The listeners at work.
pub struct Serving {
    data_task: Option<JoinHandle<()>>,
    data_trigger: ShutdownTrigger,
    admin_task: Option<JoinHandle<()>>,
    metrics_task: JoinHandle<()>,
    admin_trigger: ShutdownTrigger,
}

impl Serving {
    /// Returns when a listener has ended though nobody asked for it: a defect, after which the process cannot go on.
    pub async fn broken(&mut self) -> String {
        let name = tokio::select! {
            () = over(&mut self.data_task) => "data plane",
            () = over(&mut self.admin_task) => "admin plane",
            _ = &mut self.metrics_task => "metrics listener",
        };
        format!("the {name} has stopped unexpectedly")
    }

    /// Closes the data plane's listener; calls may finish until `deadline`.
    pub async fn end_data(&mut self, deadline: Instant) {
        self.data_trigger.announce(deadline);
        if let Some(task) = &mut self.data_task {
            ended("data plane", task.await);
        }
    }

    /// Closes the other two; calls may finish until `deadline`.
    pub async fn end_admin(&mut self, deadline: Instant) {
        self.admin_trigger.announce(deadline);
        if let Some(task) = &mut self.admin_task {
            ended("admin plane", task.await);
        }
        ended("metrics listener", (&mut self.metrics_task).await);
    }
}

/// Waits for the end of a listener; there is none to wait for where there is no listener.
async fn over(task: &mut Option<JoinHandle<()>>) {
    match task {
        Some(task) => drop(task.await),
        None => std::future::pending().await,
    }
}

fn ended(name: &str, result: Result<(), JoinError>) {
    if let Err(error) = result {
        tracing::error!(listener = name, %error, "a listener did not end in order");
    }
}

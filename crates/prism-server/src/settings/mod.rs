//! What the server runs with: flags before environment before file before default (contract §1).

mod file;
mod oidc;
mod value;

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use prism_core::config::{BackendInstance, BackendType, Catalog};
use prism_core::limits::{Limits, SessionPolicy};
use prism_core::{Clock, InstanceName};
use prism_identity::Issuers;
use prism_link::bounds::MAX_CONTROLLERS;
use prism_store::AuditSettings;

use crate::cli::{Role, ServeArgs};
use crate::join::Controller;
pub use file::File;
use file::{AdminTlsMode, DataTlsMode, EmbeddedType};
use oidc::Oidc;
use toml::Spanned;

/// Most names in `listen.names`.
const MAX_NAMES: usize = 100;
/// Most backend instances.
const MAX_BACKENDS: usize = 64;
/// Failed credentials that are answered without delay, unless the file says otherwise.
const AUTH_FAILURES: u32 = 20;
/// Life of a node's certificate, unless the file says otherwise.
const NODE_CERTIFICATE_TTL: Duration = Duration::from_hours(24);

/// Everything the server needs to know to start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Data directory.
    pub data_dir: PathBuf,
    /// Address to listen on.
    pub bind: IpAddr,
    /// Port of the data plane.
    pub data_port: u16,
    /// Port of the admin plane.
    pub admin_port: u16,
    /// Port of metrics and health.
    pub metrics_port: u16,
    /// Further names and addresses for certificates.
    pub names: Vec<String>,
    /// Whether both planes serve gRPC reflection.
    pub reflection: bool,
    /// Whether both planes serve gRPC health.
    pub health: bool,
    /// TLS of the data plane; `None` = clear text.
    pub data_tls: Option<Certificate>,
    /// TLS of the admin plane.
    pub admin_tls: Certificate,
    /// CAs besides Prism's own whose client certificates may come in.
    pub client_ca: ClientCa,
    /// The audit log.
    pub audit: AuditSettings,
    /// Failed credentials of one source or key that are answered without delay.
    pub auth_failures: u32,
    /// Admin calls of one credential per second; 0 = any number.
    pub admin_rps: u32,
    /// Life of a node's certificate.
    pub node_certificate_ttl: Duration,
    /// Controllers that a data node chooses from; empty = those that it joined through.
    pub controllers: Vec<String>,
    /// What this process runs.
    pub role: Role,
    /// Issuers of access tokens.
    oidc: Vec<Oidc>,
    /// Life of sessions.
    pub session: SessionPolicy,
    /// Bounds.
    pub limits: Limits,
    /// Backend instances.
    pub backends: Vec<BackendSettings>,
    /// Whether this is a laptop's server.
    pub dev: bool,
}

/// Where a listener's certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Certificate {
    /// Prism's own CA.
    Auto,
    /// Files in PEM.
    Files {
        /// Certificate chain.
        cert: PathBuf,
        /// Private key.
        key: PathBuf,
    },
}

/// Bundles of CA certificates in PEM; `None` = Prism's own CA only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientCa {
    /// For the admin plane.
    pub admin: Option<PathBuf>,
    /// For the data plane.
    pub data: Option<PathBuf>,
}

/// One backend instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendSettings {
    /// Name.
    pub name: InstanceName,
    /// What it is.
    pub kind: BackendKind,
}

/// What a backend instance is, with what its type needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendKind {
    /// Embedded and durable.
    Sqlite {
        /// Folder of its files.
        folder: PathBuf,
    },
    /// Embedded and not durable.
    Memory,
}

/// What the environment says.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    data_dir: Option<PathBuf>,
    data_port: Option<u16>,
    admin_port: Option<u16>,
    metrics_port: Option<u16>,
    /// Filter of the log.
    pub log: Option<String>,
}

impl Environment {
    /// Reads the variables `PRISM_…` through `lookup`; an error names the variable.
    pub fn read(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self, String> {
        // A variable that is set to nothing is not set.
        let lookup = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let text = |name: &str| lookup(name).map(|value| value.to_string_lossy().into_owned());
        let port = |name: &str| {
            let parse =
                |value: String| value.parse().map_err(|_| format!("{name}: {value:?} is not a port (0 to 65535)"));
            text(name).map(parse).transpose()
        };
        Ok(Self {
            data_dir: lookup("PRISM_DATA_DIR").map(PathBuf::from),
            data_port: port("PRISM_DATA_PORT")?,
            admin_port: port("PRISM_ADMIN_PORT")?,
            metrics_port: port("PRISM_METRICS_PORT")?,
            log: text("PRISM_LOG"),
        })
    }
}

/// The data directory that a flag, the environment or the default names.
pub fn data_dir(flag: Option<&Path>, environment: &Environment) -> PathBuf {
    flag.map(Path::to_owned).or_else(|| environment.data_dir.clone()).unwrap_or_else(|| "./prism-data".into())
}

impl Settings {
    /// Puts flags, environment, file and defaults together; an error names the flag or key.
    pub fn resolve(args: &ServeArgs, environment: &Environment, file: File) -> Result<Self, String> {
        let data_dir = data_dir(args.data_dir.as_deref(), environment);
        let port = |flag: Option<u16>, variable: Option<u16>, key: Option<u16>, default: u16| {
            flag.or(variable).or(key).unwrap_or(default)
        };
        if file.oidc.len() > oidc::MAX_ISSUERS {
            return Err(format!("oidc: more than {} issuers", oidc::MAX_ISSUERS));
        }
        let client_ca = client_ca(&file.tls)?;
        let settings = Self {
            bind: bind(args, &file)?,
            data_port: port(args.data_port, environment.data_port, file.listen.data_port, 8980),
            admin_port: port(args.admin_port, environment.admin_port, file.listen.admin_port, 8981),
            metrics_port: port(args.metrics_port, environment.metrics_port, file.listen.metrics_port, 9090),
            reflection: file.listen.reflection.unwrap_or(true),
            health: file.listen.health.unwrap_or(true),
            data_tls: data_tls(args.dev, file.tls.data)?,
            admin_tls: admin_tls(file.tls.admin)?,
            client_ca,
            audit: audit(&file.audit),
            auth_failures: file.limits.auth_failures.map_or(AUTH_FAILURES, |whole| whole.0 as u32),
            node_certificate_ttl: file.cluster.certificate_ttl.map_or(NODE_CERTIFICATE_TTL, |span| span.0),
            admin_rps: file.limits.admin_rps.map_or(0, |whole| whole.0 as u32),
            controllers: controllers(file.cluster.controllers)?,
            role: args.role,
            oidc: file.oidc.into_iter().map(Spanned::into_inner).collect(),
            session: session(&file.session)?,
            limits: limits(&file.limits),
            backends: backends(&data_dir, file.backend)?,
            names: file.listen.names,
            dev: args.dev,
            data_dir,
        };
        if settings.names.len() > MAX_NAMES {
            return Err(format!("listen.names: more than {MAX_NAMES} names"));
        }
        settings.ports_differ()?;
        settings.fits_its_role()?;
        Ok(settings)
    }

    /// What only one role can do is not asked of another.
    fn fits_its_role(&self) -> Result<(), String> {
        if self.dev && self.role != Role::All {
            return Err("--dev is for both planes in one process; leave --role out".to_owned());
        }
        match self.role {
            Role::Data if !self.names.is_empty() && self.data_tls == Some(Certificate::Auto) => Err(
                "listen.names: a data node's own certificate is for localhost and its id; for other names set tls.data.mode = \
                 \"files\""
                    .to_owned(),
            ),
            Role::All | Role::Admin if !self.controllers.is_empty() => {
                Err("cluster.controllers: is for --role data; this process is a controller itself".to_owned())
            }
            _ => Ok(()),
        }
    }

    fn ports_differ(&self) -> Result<(), String> {
        let ports =
            [("--data-port", self.data_port), ("--admin-port", self.admin_port), ("--metrics-port", self.metrics_port)];
        for (position, (flag, port)) in ports.iter().enumerate() {
            let twin = ports.iter().skip(position + 1).find(|(_, other)| *port != 0 && other == port);
            if let Some((other, _)) = twin {
                return Err(format!("{flag} and {other} are both {port}; each listener needs a port of its own"));
            }
        }
        Ok(())
    }

    /// An address of this server with `port`.
    pub fn address(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.bind, port)
    }

    /// The issuers of access tokens, whose keys are not fetched yet; the error names the issuer or its file. Two whose users
    /// could be mistaken for each other are warned of in the log.
    pub fn issuers(&self, clock: Clock) -> Result<Issuers, String> {
        oidc::issuers(&self.oidc, clock)
    }

    /// The backend instances by name and type.
    pub fn catalog(&self) -> Catalog {
        let instance = |backend: &BackendSettings| BackendInstance { name: backend.name.clone(), kind: backend.kind() };
        Catalog { instances: self.backends.iter().map(instance).collect() }
    }
}

impl BackendSettings {
    /// Its type.
    pub fn kind(&self) -> BackendType {
        match self.kind {
            BackendKind::Sqlite { .. } => BackendType::Sqlite,
            BackendKind::Memory => BackendType::Memory,
        }
    }
}

fn controllers(list: Vec<String>) -> Result<Vec<String>, String> {
    if list.len() > MAX_CONTROLLERS {
        return Err(format!("cluster.controllers: more than {MAX_CONTROLLERS} controllers"));
    }
    for controller in &list {
        Controller::parse(controller).map_err(|error| format!("cluster.controllers: {error}"))?;
    }
    Ok(list)
}

fn bind(args: &ServeArgs, file: &File) -> Result<IpAddr, String> {
    let given = args.bind.map(|bind| (bind, "--bind")).or(file.listen.bind.map(|bind| (bind, "listen.bind")));
    match given {
        Some((bind, source)) if args.dev && !bind.is_loopback() => Err(format!(
            "{source}: {bind} is not a loopback address; --dev serves the data plane in clear text and a ready-made key, \
             so it listens on this machine only"
        )),
        Some((bind, _)) => Ok(bind),
        None if args.dev => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        None => Ok(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
    }
}

fn data_tls(dev: bool, section: Option<file::DataTls>) -> Result<Option<Certificate>, String> {
    let Some(section) = section else { return Ok((!dev).then_some(Certificate::Auto)) };
    if dev && section.mode != DataTlsMode::Off {
        return Err("tls.data: --dev serves the data plane in clear text; leave the section out or set mode = \"off\""
            .to_owned());
    }
    let files = section.mode == DataTlsMode::Files;
    let certificate = certificate("tls.data", files, section.cert, section.key)?;
    Ok((section.mode != DataTlsMode::Off).then_some(certificate))
}

fn admin_tls(section: file::AdminTls) -> Result<Certificate, String> {
    certificate("tls.admin", section.mode == AdminTlsMode::Files, section.cert, section.key)
}

fn certificate(section: &str, files: bool, cert: Option<PathBuf>, key: Option<PathBuf>) -> Result<Certificate, String> {
    match (files, cert, key) {
        (true, Some(cert), Some(key)) => Ok(Certificate::Files { cert, key }),
        (true, None, _) => Err(format!("{section}.cert: must be set with mode = \"files\"")),
        (true, _, None) => Err(format!("{section}.key: must be set with mode = \"files\"")),
        (false, None, None) => Ok(Certificate::Auto),
        (false, Some(_), _) => Err(format!("{section}.cert: is used with mode = \"files\" only")),
        (false, _, Some(_)) => Err(format!("{section}.key: is used with mode = \"files\" only")),
    }
}

fn client_ca(tls: &file::Tls) -> Result<ClientCa, String> {
    let data = tls.data.as_ref();
    if data.is_some_and(|data| data.mode == DataTlsMode::Off && data.client_ca.is_some()) {
        return Err("tls.data.client_ca: there are no client certificates with mode = \"off\"".to_owned());
    }
    Ok(ClientCa { admin: tls.admin.client_ca.clone(), data: data.and_then(|data| data.client_ca.clone()) })
}

fn audit(section: &file::Audit) -> AuditSettings {
    let default = AuditSettings::default();
    AuditSettings {
        retention: section.retention.map(|span| span.0),
        checkpoint_interval: section.checkpoint_interval.map_or(default.checkpoint_interval, |span| span.0),
        on_read_failure: section.on_read_failure.map_or(default.on_read_failure, Into::into),
    }
}

fn session(section: &file::Session) -> Result<SessionPolicy, String> {
    let default = SessionPolicy::default();
    let policy = SessionPolicy {
        idle_after: section.idle_after.map_or(default.idle_after, |span| span.0),
        expiring_within: section.expiring_within.map_or(default.expiring_within, |span| span.0),
        idle_timeout: section.idle_timeout.map_or(default.idle_timeout, |span| span.0),
        max_age: section.max_age.map_or(default.max_age, |span| span.0),
        retain_ended: section.retain_ended.map_or(default.retain_ended, |span| span.0),
    };
    // Who sets one of a pair need not know the default of the other; only what was said twice can contradict itself.
    if section.idle_after.is_some() && section.idle_timeout.is_some() && policy.idle_after > policy.idle_timeout {
        return Err("session.idle_after: must not be longer than session.idle_timeout".to_owned());
    }
    if section.expiring_within.is_some() && section.max_age.is_some() && policy.expiring_within >= policy.max_age {
        return Err("session.expiring_within: must be shorter than session.max_age".to_owned());
    }
    Ok(policy)
}

fn limits(section: &file::Limits) -> Limits {
    let default = Limits::default();
    Limits {
        max_key_bytes: section.max_key_bytes.map_or(default.max_key_bytes, |whole| whole.0),
        max_value_bytes: section.max_value_bytes.map_or(default.max_value_bytes, |whole| whole.0),
        max_connections: section.max_connections.map_or(default.max_connections, |whole| whole.0),
        max_in_flight: section.max_in_flight.map_or(default.max_in_flight, |whole| whole.0),
        max_sessions: section.max_sessions.map_or(default.max_sessions, |whole| whole.0),
        max_streams_per_session: section
            .max_streams_per_session
            .map_or(default.max_streams_per_session, |whole| whole.0),
        data_threads: section.data_threads.map_or(default.data_threads, |whole| whole.0),
    }
}

/// The configured instances, and one of each embedded type that has none.
fn backends(data_dir: &Path, sections: Vec<file::Backend>) -> Result<Vec<BackendSettings>, String> {
    let folder = |name: &InstanceName| data_dir.join("backends").join(name.as_str());
    let mut out: Vec<BackendSettings> = Vec::new();
    for file::Backend { name, kind, path } in sections {
        let kind = match (kind, path) {
            (EmbeddedType::Sqlite, path) => BackendKind::Sqlite { folder: path.unwrap_or_else(|| folder(&name)) },
            (EmbeddedType::Memory, None) => BackendKind::Memory,
            (EmbeddedType::Memory, Some(_)) => {
                return Err(format!("backend {:?}: a memory backend has no path", name.as_str()));
            }
        };
        out.push(BackendSettings { name, kind });
    }
    for kind in [BackendType::Sqlite, BackendType::Memory] {
        if out.iter().all(|backend| backend.kind() != kind) {
            let name = InstanceName::parse("backend.name", kind.name()).map_err(|error| error.message().to_owned())?;
            let kind = match kind {
                BackendType::Sqlite => BackendKind::Sqlite { folder: folder(&name) },
                _ => BackendKind::Memory,
            };
            out.push(BackendSettings { name, kind });
        }
    }
    if out.len() > MAX_BACKENDS {
        return Err(format!("backend: more than {MAX_BACKENDS} instances"));
    }
    for (position, backend) in out.iter().enumerate() {
        for other in out.iter().skip(position + 1) {
            if other.name == backend.name {
                return Err(format!("backend {:?}: two instances have this name", backend.name.as_str()));
            }
            if matches!(backend.kind, BackendKind::Sqlite { .. }) && other.kind == backend.kind {
                let names = (backend.name.as_str(), other.name.as_str());
                return Err(format!("backend {:?}: has the same path as {:?}", names.1, names.0));
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests;

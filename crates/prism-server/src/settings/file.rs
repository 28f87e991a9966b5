//! `prism.toml` as it stands in the file (contract §1). Unknown keys are errors that name the key and the line.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use prism_core::InstanceName;
use serde::Deserialize;
use toml::Spanned;

use super::oidc::Oidc;
use super::value::{Span, Whole};

/// Shortest life of anything of a session, in milliseconds.
const SHORTEST: u64 = 100;
/// A day, in milliseconds.
const DAY: u64 = 24 * 3600 * 1000;
/// Ten years, in milliseconds.
const TEN_YEARS: u64 = 10 * 31_557_600 * 1000;
const MIB: u64 = 1024 * 1024;

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct File {
    /// Addresses and ports.
    pub listen: Listen,
    /// TLS of the two planes.
    pub tls: Tls,
    /// Where control state is kept.
    pub state: State,
    /// Life of sessions.
    pub session: Session,
    /// The audit log.
    pub audit: Audit,
    /// Nodes.
    pub cluster: Cluster,
    /// Bounds.
    pub limits: Limits,
    /// Backend instances.
    pub backend: Vec<Backend>,
    /// Issuers of access tokens.
    pub oidc: Vec<Spanned<Oidc>>,
}

/// Section `[listen]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// Address to listen on.
    pub bind: Option<IpAddr>,
    /// Port of the data plane.
    pub data_port: Option<u16>,
    /// Port of the admin plane.
    pub admin_port: Option<u16>,
    /// Port of metrics and health.
    pub metrics_port: Option<u16>,
    /// Further names and addresses for certificates.
    pub names: Vec<String>,
    /// Whether both planes serve gRPC reflection; they do unless this is false.
    pub reflection: Option<bool>,
    /// Whether both planes serve gRPC health; they do unless this is false.
    pub health: Option<bool>,
}

/// Sections `[tls.…]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// Section `[tls.data]`.
    pub data: Option<DataTls>,
    /// Section `[tls.admin]`.
    pub admin: AdminTls,
}

/// Section `[tls.data]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataTls {
    /// Where the certificate comes from, or no TLS.
    #[serde(default)]
    pub mode: DataTlsMode,
    /// Certificate chain in PEM.
    pub cert: Option<PathBuf>,
    /// Private key in PEM.
    pub key: Option<PathBuf>,
    /// CAs, besides Prism's own, whose client certificates may come in; in PEM.
    pub client_ca: Option<PathBuf>,
}

/// Mode of `[tls.data]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataTlsMode {
    /// A certificate of Prism's CA.
    #[default]
    Auto,
    /// Files.
    Files,
    /// Clear text.
    Off,
}

/// Section `[tls.admin]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminTls {
    /// Where the certificate comes from.
    pub mode: AdminTlsMode,
    /// Certificate chain in PEM.
    pub cert: Option<PathBuf>,
    /// Private key in PEM.
    pub key: Option<PathBuf>,
    /// CAs, besides Prism's own, whose client certificates may come in; in PEM.
    pub client_ca: Option<PathBuf>,
}

/// Mode of `[tls.admin]`: there is no clear text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdminTlsMode {
    /// A certificate of Prism's CA.
    #[default]
    Auto,
    /// Files.
    Files,
}

/// Section `[state]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct State {
    /// Where control state is kept.
    pub url: StateUrl,
}

/// Where control state is kept.
#[derive(Debug, Default, Deserialize)]
#[serde(try_from = "String")]
pub enum StateUrl {
    /// `prism.db` in the data directory.
    #[default]
    Embedded,
}

impl TryFrom<String> for StateUrl {
    type Error = String;
    fn try_from(url: String) -> Result<Self, String> {
        // The address may hold a password, so it is not repeated.
        if url == "sqlite" {
            Ok(Self::Embedded)
        } else {
            Err("this version keeps its state in \"sqlite\" only".to_owned())
        }
    }
}

/// Section `[session]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Session {
    /// IDLE after this.
    pub idle_after: Option<Span<SHORTEST, DAY>>,
    /// EXPIRING with less than this left.
    pub expiring_within: Option<Span<0, DAY>>,
    /// Ends after this without a sign of life.
    pub idle_timeout: Option<Span<SHORTEST, { 30 * DAY }>>,
    /// Ends at this age.
    pub max_age: Option<Span<SHORTEST, { 365 * DAY }>>,
    /// Stays listed for this long.
    pub retain_ended: Option<Span<0, { 365 * DAY }>>,
}

/// Section `[audit]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// Entries are removed after this; absent = never.
    pub retention: Option<Span<1000, TEN_YEARS>>,
    /// A checkpoint is signed this often.
    pub checkpoint_interval: Option<Span<1000, DAY>>,
    /// What reads do while no entry can be written.
    pub on_read_failure: Option<OnReadFailure>,
}

/// What reads do while no audit entry can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnReadFailure {
    /// They fail.
    Fail,
    /// They are answered.
    Allow,
}

impl From<OnReadFailure> for prism_store::OnReadFailure {
    fn from(chosen: OnReadFailure) -> Self {
        match chosen {
            OnReadFailure::Fail => Self::Fail,
            OnReadFailure::Allow => Self::Allow,
        }
    }
}

/// Section `[cluster]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cluster {
    /// Controllers that a data node chooses from, `host:port`.
    pub controllers: Vec<String>,
    /// Life of a node's certificate.
    pub certificate_ttl: Option<Span<10_000, { 7 * DAY }>>,
}

/// Section `[limits]`; what each one means is documented at [`prism_core::limits::Limits`].
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes.
    pub max_key_bytes: Option<Whole<1, { 64 * 1024 }>>,
    /// Bytes.
    pub max_value_bytes: Option<Whole<1, { 64 * MIB }>>,
    /// Per listener.
    pub max_connections: Option<Whole<1, 1_000_000>>,
    /// Per plane.
    pub max_in_flight: Option<Whole<1, 1_000_000>>,
    /// Most live sessions of one node.
    pub max_sessions: Option<Whole<1, 10_000_000>>,
    /// Per session.
    pub max_streams_per_session: Option<Whole<1, 10_000>>,
    /// Threads.
    pub data_threads: Option<Whole<1, 1024>>,
    /// Failed credentials of one source or key that are answered without delay.
    pub auth_failures: Option<Whole<1, 10_000>>,
    /// Admin calls of one credential per second; 0 = any number.
    pub admin_rps: Option<Whole<0, 1_000_000>>,
}

/// Section `[[backend]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// Name of the instance.
    pub name: InstanceName,
    /// Type.
    #[serde(rename = "type")]
    pub kind: EmbeddedType,
    /// Folder of an embedded durable backend.
    pub path: Option<PathBuf>,
}

/// The types that this version has drivers for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum EmbeddedType {
    /// Embedded and durable.
    Sqlite,
    /// Embedded and not durable.
    Memory,
}

impl TryFrom<String> for EmbeddedType {
    type Error = String;
    fn try_from(name: String) -> Result<Self, String> {
        match name.as_str() {
            "sqlite" => Ok(Self::Sqlite),
            "memory" => Ok(Self::Memory),
            known if prism_core::config::BackendType::by_name(known).is_some() => Err(format!(
                "the backend type {known:?} is not built into this version; it has \"sqlite\" and \"memory\""
            )),
            unknown => Err(format!("there is no backend type {unknown:?}; this version has \"sqlite\" and \"memory\"")),
        }
    }
}

impl File {
    /// Reads the file at `path`; the error names the file, the line and the key.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let mut file = Self::parse(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        file.anchor(path.parent().unwrap_or(Path::new("")));
        Ok(file)
    }

    /// Reads a file's text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        for (at, issuer) in file.oidc.iter().enumerate() {
            let overlap = file.oidc.iter().take(at).find_map(|other| issuer.get_ref().overlaps(other.get_ref()));
            if let Some(why) = overlap {
                let line = text.get(..issuer.span().start).map_or(0, |before| before.matches('\n').count()) + 1;
                return Err(format!("line {line}, oidc.prefix: {why}"));
            }
        }
        Ok(file)
    }

    /// Relative paths in a file are relative to its folder.
    fn anchor(&mut self, folder: &Path) {
        let data = self.tls.data.iter_mut().flat_map(|data| [&mut data.cert, &mut data.key, &mut data.client_ca]);
        let admin = &mut self.tls.admin;
        let admin = [&mut admin.cert, &mut admin.key, &mut admin.client_ca];
        let backends = self.backend.iter_mut().map(|backend| &mut backend.path);
        let issuers = self.oidc.iter_mut().map(|issuer| &mut issuer.get_mut().ca);
        for path in data.chain(admin).chain(backends).chain(issuers).flatten() {
            *path = folder.join(&*path);
        }
    }
}

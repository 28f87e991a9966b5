//! An admin plane without a network, on a store whose clock stands still until it is moved.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use prism_admin_plane::door::Call;
use prism_admin_plane::identity::{Identity, Presented};
use prism_admin_plane::op::{Enrolment, Op};
use prism_admin_plane::ops::{access, api_key, binding, certificate, namespace, role};
use prism_admin_plane::{AdminOptions, AdminPlane};
use prism_core::config::Catalog;
use prism_core::limits::SessionPolicy;
use prism_core::permission::Reach;
use prism_core::secret::Random;
use prism_core::{Clock, Error, Kind, NodeId, Result, UnixMillis};
use prism_identity::{ClientTrust, Issuers};
use prism_link::{Fleet, FleetOptions};
use prism_proto::admin::v1 as wire;
use prism_rpc::metrics::Metrics;
use prism_rpc::shutdown::Shutdown;
use prism_rpc::{CertificateAuthority, Connections, Table};
use prism_store::{AuditSettings, EntryFilter, EntryQuery, Order, Store};
use prost::Message as _;
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tempfile::TempDir;

pub const MINUTE: Duration = Duration::from_mins(1);
pub const DAY: Duration = Duration::from_hours(24);

/// What somebody shows.
#[derive(Clone)]
pub enum Shown {
    Token(String),
    Certificate(CertificateDer<'static>),
}

pub struct World {
    _folder: TempDir,
    pub clock: Clock,
    pub store: Arc<Store>,
    pub authority: CertificateAuthority,
    pub plane: AdminPlane,
    /// The first admin key.
    pub root: Shown,
}

impl World {
    /// With the namespaces `a` and `b`.
    pub async fn new() -> Self {
        let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::manual(UnixMillis(1_760_000_000_000)));
        let (policy, random) = (SessionPolicy::default(), Random::system());
        let store = Arc::new(Store::open(folder.path(), policy, clock.clone(), random).await.unwrap());
        let authority = CertificateAuthority::load_or_create_at(folder.path(), clock.clone()).unwrap();
        let own = CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes()).unwrap();
        let trust = ClientTrust::new(store.cluster(), vec![own], Vec::new()).unwrap();
        let fleet = FleetOptions {
            control: Arc::clone(&store) as _,
            id: NodeId::parse("node", "n").unwrap(),
            cluster: store.cluster().to_owned(),
            epoch: 1,
            clock: clock.clone(),
            certifier: None,
        };
        // Without a single node.
        let fleet = Fleet::start(fleet).await.unwrap();
        let (_, shutdown) = Shutdown::new();
        let plane = AdminPlane::new(AdminOptions {
            store: Arc::clone(&store),
            fleet: Arc::new(fleet),
            catalog: Catalog { instances: Vec::new() },
            metrics: Metrics::new(),
            table: Arc::new(Table::load().unwrap()),
            reflection: false,
            health: false,
            shutdown,
            issuers: Issuers::none(),
            trust: Arc::new(ArcSwap::from_pointee(trust)),
            authority: authority.clone(),
            connections: Connections::default(),
            admin_rps: 0,
            auth_failures: 20,
            audit: AuditSettings::default(),
            enrolment: Enrolment { certificate_ttl: Duration::from_hours(24), server_names: Vec::new() },
        });
        let token = std::fs::read_to_string(folder.path().join("admin.token")).unwrap();
        let root = Shown::Token(token.trim().to_owned());
        let world = Self { _folder: folder, clock, store, authority, plane, root };
        for name in ["a", "b"] {
            let request = wire::CreateNamespaceRequest { name: name.to_owned(), ..Default::default() };
            world.root::<namespace::CreateNamespace>(request).await.unwrap();
        }
        world
    }

    pub async fn identity(&self, shown: &Shown) -> Result<Identity> {
        let presented = match shown {
            Shown::Token(token) => Presented { authorization: vec![format!("Bearer {token}")], ..Presented::default() },
            Shown::Certificate(der) => Presented { certificates: [der.clone()].into(), ..Presented::default() },
        };
        self.plane.door().authenticator.authenticate(&presented).await.map_err(|refused| refused.error)
    }

    /// A call with this credential.
    pub async fn call<O: Op>(&self, shown: &Shown, request: O::Request) -> Result<O::Response> {
        self.keyed::<O>(shown, request, None).await
    }

    /// A call with an idempotency key.
    pub async fn keyed<O: Op>(&self, shown: &Shown, request: O::Request, key: Option<&str>) -> Result<O::Response> {
        let identity = self.identity(shown).await?;
        let call = Call { idempotency_keys: key.map(ToOwned::to_owned).into_iter().collect(), ..Call::default() };
        self.plane.door().call::<O>(Arc::new(identity), call, request).await
    }

    /// A call with the first admin key.
    pub async fn root<O: Op>(&self, request: O::Request) -> Result<O::Response> {
        self.call::<O>(&self.root, request).await
    }

    /// A key with one role, made with the first admin key.
    pub async fn key(&self, role: &str, namespace: Option<&str>) -> (String, Shown) {
        let made = self.root::<api_key::CreateApiKey>(key_request(&[role], namespace)).await.unwrap();
        (made.api_key.unwrap().key_id, Shown::Token(made.token))
    }

    pub async fn role(&self, name: &str, permissions: &[&str]) {
        self.root::<role::CreateRole>(create_role(name, permissions)).await.unwrap();
    }

    /// Binds a role with the first admin key; the id of the binding.
    pub async fn bind(&self, subject: &str, role: &str, namespace: Option<&str>) -> String {
        let made = self.root::<binding::CreateBinding>(create_binding(subject, role, namespace)).await.unwrap();
        made.binding.unwrap().binding_id
    }

    /// A certificate, issued with the first admin key.
    pub async fn certificate(&self, kind: wire::CertificateKind, name: &str) -> (wire::Certificate, Shown) {
        let issued = self.root::<certificate::IssueCertificate>(issue(kind, name)).await.unwrap();
        let der = CertificateDer::from_pem_slice(&issued.certificate_pem).unwrap();
        (issued.certificate.unwrap(), Shown::Certificate(der))
    }

    pub async fn who_am_i(&self, shown: &Shown) -> Result<wire::WhoAmIResponse> {
        self.call::<access::WhoAmI>(shown, wire::WhoAmIRequest {}).await
    }

    /// The names of the roles that somebody holds, where they hold.
    pub async fn held(&self, shown: &Shown) -> Vec<(String, Option<String>)> {
        let answer = self.who_am_i(shown).await.unwrap();
        answer.grants.into_iter().map(|grant| (grant.role, grant.namespace)).collect()
    }

    /// The newest entry of the audit log.
    pub async fn entry(&self) -> wire::AuditLogEntry {
        self.entries(1).await.remove(0)
    }

    /// The newest entries of the audit log, the newest first.
    pub async fn entries(&self, limit: usize) -> Vec<wire::AuditLogEntry> {
        let query = EntryQuery {
            filter: EntryFilter::default(),
            reach: Reach::Installation,
            order: Order::NewestBefore { sequence: i64::MAX, timestamp: UnixMillis(i64::MAX) },
            until: None,
            limit,
        };
        let chunk = self.store.audit_chunk(query).await.unwrap();
        chunk.entries.into_iter().map(|entry| wire::AuditLogEntry::decode(entry).unwrap()).collect()
    }
}

pub fn key_request(roles: &[&str], namespace: Option<&str>) -> wire::CreateApiKeyRequest {
    wire::CreateApiKeyRequest {
        name: "k".to_owned(),
        roles: roles.iter().map(|role| (*role).to_owned()).collect(),
        namespace: namespace.map(ToOwned::to_owned),
        ..Default::default()
    }
}

pub fn role_of(name: &str, permissions: &[&str]) -> wire::Role {
    let permissions = permissions.iter().map(|text| (*text).to_owned()).collect();
    wire::Role { name: name.to_owned(), permissions, built_in: false }
}

pub fn create_role(name: &str, permissions: &[&str]) -> wire::CreateRoleRequest {
    wire::CreateRoleRequest { role: Some(role_of(name, permissions)) }
}

pub fn create_binding(subject: &str, role: &str, namespace: Option<&str>) -> wire::CreateBindingRequest {
    let binding = wire::Binding {
        binding_id: "ignored".to_owned(),
        subject: subject.to_owned(),
        role: role.to_owned(),
        namespace: namespace.map(ToOwned::to_owned),
    };
    wire::CreateBindingRequest { binding: Some(binding) }
}

/// A request for a certificate with a new key.
pub fn issue(kind: wire::CertificateKind, name: &str) -> wire::IssueCertificateRequest {
    let csr = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap();
    wire::IssueCertificateRequest {
        kind: kind.into(),
        name: name.to_owned(),
        csr_pem: csr.pem().unwrap().into_bytes().into(),
        ttl: None,
    }
}

/// Requires a denial for want of `permission`.
#[track_caller]
pub fn denied<T>(result: Result<T>, permission: &str) {
    let error = refusal(result);
    assert_eq!((error.kind(), error.reason()), (Kind::PermissionDenied, "PERMISSION_DENIED"), "{error}");
    assert_eq!(error.metadata().get("permission").map(String::as_str), Some(permission), "{error}");
    assert!(error.metadata().contains_key("audit_id"), "{error}");
}

/// Requires INVALID_ARGUMENT on exactly these fields.
#[track_caller]
pub fn invalid<T>(result: Result<T>, fields: &[&str]) {
    let error = refusal(result);
    let found: Vec<&str> = error.fields().iter().map(|violation| violation.field.as_str()).collect();
    assert_eq!((error.kind(), found.as_slice()), (Kind::InvalidArgument, fields), "{error}");
}

#[track_caller]
pub fn refusal<T>(result: Result<T>) -> Error {
    result.err().expect("refused")
}

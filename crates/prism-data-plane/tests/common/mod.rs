//! A data plane on a loopback port, over the real embedded backends and a control plane in memory.
// Each test file uses its own part of this.
#![allow(dead_code)]

pub mod proofs;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use prism_backends::driver::Backend;
use prism_backends::memory::MemoryBackend;
use prism_backends::sqlite::SqliteBackend;
use prism_core::access::{ClientAccess, ClientGrant, ClientKeyAccess};
use prism_core::config::{AccessPattern, BackendDraft, BackendInstance, BackendType, Catalog, ConfigDraft, RateLimit};
use prism_core::control::{
    ClientCredential, ClientIdentity, ConfigRevision, ControlPlane, DataNode, Maintenance, Namespace, NamespaceStatus,
    Quota, Snapshot,
};
use prism_core::limits::{Limits, SessionPolicy};
use prism_core::secret::{self, Random, SecretHash, SecretKind, SecretProof, Token};
use prism_core::session::{
    AdmitRequest, ClientBasis, DataGrant, EndReason, SessionFigures, SessionId, SessionRecord, SessionReport,
};
use prism_core::subject::Subject;
use prism_core::{Clock, ConfigName, Error, InstanceName, Kind, NamespaceName, NodeId, Result, UnixMillis};
use prism_data_plane::{DataPlane, DataPlaneOptions};
use prism_identity::{ClientTrust, Issuers};
use prism_proto::session::v1::create_session_request::{Auth, Config};
use prism_proto::session::v1::session_service_client::SessionServiceClient;
use prism_proto::session::v1::{CreateSessionRequest, CreateSessionResponse};
use prism_rpc::{
    BoundListener, Metrics, RequestIdService, RequestIds, ServeOptions, ServerTls, Shutdown, ShutdownTrigger, Table,
};
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Everything in these tests happens far sooner.
pub const SOON: Duration = Duration::from_secs(5);

/// A control plane in memory.
pub struct FakeControl {
    snapshot: watch::Sender<Arc<Snapshot>>,
    keys: Mutex<HashMap<String, SecretHash>>,
    pub live: Mutex<HashMap<SessionId, SessionRecord>>,
    pub ended: Mutex<Vec<(SessionId, EndReason)>>,
    pub reported: Mutex<Vec<SessionReport>>,
    pub failing: AtomicBool,
    pub hold: watch::Sender<Hold>,
    /// Revisions of configs that are not current any more, oldest first.
    pub earlier: Mutex<Vec<Arc<prism_core::config::Config>>>,
    /// What it says about tokens that the node does not know, and how often it was asked.
    pub elsewhere: Mutex<Result<Option<SessionRecord>>>,
    pub asked: AtomicUsize,
    clock: Clock,
    /// How long a session lives at first.
    pub life: Mutex<Duration>,
}

/// Where changes of the control state wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    Nowhere,
    Before,
    /// When they are durable, before they are answered.
    After,
}

impl FakeControl {
    /// Changes the snapshot and publishes it.
    pub fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        let mut next = (**self.snapshot.borrow()).clone();
        next.revision += 1;
        change(&mut next);
        self.snapshot.send_replace(Arc::new(next));
    }

    /// Changes a namespace.
    pub fn namespace(&self, name: &str, status: NamespaceStatus, quota: Quota) {
        let name = namespace(name);
        self.change(|s| {
            _ = s.namespaces.insert(name.clone(), Arc::new(Namespace { name, status, quota, generation: 1 }));
        });
    }

    /// Puts the gateway into maintenance, or out of it.
    pub fn maintenance(&self, maintenance: Option<(bool, Option<UnixMillis>)>) {
        let started_at = self.clock.now();
        self.change(|s| {
            s.maintenance = maintenance.map(|(allow_reads, ends_at)| {
                Arc::new(Maintenance { message: "new disks".to_owned(), started_at, ends_at, allow_reads })
            });
        });
    }

    /// Changes who may do what on the data plane.
    pub fn access(&self, change: impl FnOnce(&mut ClientAccess)) {
        self.change(|snapshot| {
            let mut next = (*snapshot.client_access).clone();
            change(&mut next);
            snapshot.client_access = Arc::new(next);
        });
    }

    /// A new client key.
    pub fn key(&self, namespace: &str, read: bool, write: bool) -> String {
        self.key_until(namespace, read, write, None)
    }

    /// A new client key that ends by itself.
    pub fn key_until(&self, namespace: &str, read: bool, write: bool, expires_at: Option<UnixMillis>) -> String {
        let new = Random::system().secret(SecretKind::ClientKey);
        self.keys.lock().unwrap().insert(new.id.to_string(), new.hash);
        let key = ClientKeyAccess { grant: given(namespace, read, write), expires_at };
        self.access(|access| _ = access.keys.insert(new.id.to_string(), key));
        new.token.into_exposed()
    }

    /// Revokes a client key.
    pub fn revoke_key(&self, key: &str) {
        let id = secret::parse(SecretKind::ClientKey, key).unwrap().id.to_string();
        self.access(|access| _ = access.keys.remove(&id).unwrap());
    }

    /// Gives a subject these namespaces and nothing else.
    pub fn bind(&self, subject: &str, given: &[ClientGrant]) {
        let subject = Subject::parse("subject", subject).unwrap();
        self.access(|access| _ = access.bindings.insert(subject, given.to_vec()));
    }

    /// Revokes a client certificate.
    pub fn revoke_certificate(&self, fingerprint: &str) {
        self.access(|access| {
            let mut revoked = (*access.revoked_certificates).clone();
            revoked.insert(fingerprint.to_owned());
            access.revoked_certificates = Arc::new(revoked);
        });
    }

    /// How a session ended.
    pub fn end_of(&self, id: &str) -> Option<EndReason> {
        self.ended.lock().unwrap().iter().find(|(ended, _)| ended.to_string() == id).map(|(_, reason)| *reason)
    }

    async fn held(&self, at: Hold) -> Result<()> {
        let _ = self.hold.subscribe().wait_for(|hold| *hold != at).await;
        self.check()
    }

    fn check(&self) -> Result<()> {
        if self.failing.load(Ordering::SeqCst) { Err(Error::unavailable("STORE", "the store is down")) } else { Ok(()) }
    }
}

#[async_trait]
impl ControlPlane for FakeControl {
    fn snapshot(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.subscribe()
    }

    async fn authenticate_client(&self, credential: ClientCredential<'_>) -> Result<ClientIdentity> {
        let access = Arc::clone(&self.snapshot.borrow().client_access);
        let refused = || Error::unauthenticated("NO", "no");
        let (basis, ends) = match credential {
            ClientCredential::Key(key) => {
                let keys = self.keys.lock().unwrap();
                keys.get(key.id.as_str()).filter(|hash| hash.is_of(&key)).ok_or_else(refused)?;
                let ends = access.keys.get(key.id.as_str()).and_then(|key| key.expires_at);
                (ClientBasis { credential_id: key.id.to_string(), ..ClientBasis::default() }, ends)
            }
            ClientCredential::Proven(client) => (client.basis.clone(), client.ends),
        };
        let grants = access.grants(&basis, self.clock.now());
        if !grants.is_empty() {
            return Ok(ClientIdentity { basis, grants, ends });
        }
        let revoked = basis.certificate.as_ref().is_some_and(|known| access.revoked_certificates.contains(known));
        if revoked || basis.subjects.is_empty() {
            return Err(refused());
        }
        Err(Error::new(Kind::PermissionDenied, "NO_NAMESPACE", format!("nothing is given to {:?}", basis.subjects)))
    }

    async fn config_version(
        &self,
        name: &ConfigName,
        version: &str,
    ) -> Result<Option<Arc<prism_core::config::Config>>> {
        self.held(Hold::Before).await?;
        let current = self.snapshot.borrow().configs.get(name).map(|revision| Arc::clone(&revision.config));
        let earlier = self.earlier.lock().unwrap();
        let mut all = current.iter().chain(earlier.iter().rev().filter(|config| config.name.as_str() == name.as_str()));
        Ok(all.find(|config| config.version == version).cloned())
    }

    async fn admit_session(&self, request: AdmitRequest) -> Result<(SessionRecord, Token)> {
        self.held(Hold::Before).await?;
        let access = Arc::clone(&self.snapshot.borrow().client_access);
        if !access.upholds(&request.basis, &request.config.namespace, request.grant, self.clock.now()) {
            return Err(Error::unauthenticated("NO", "not any more"));
        }
        let secret = Random::system().secret(SecretKind::Session);
        let now = self.clock.now();
        let record = SessionRecord {
            id: SessionId::generate(),
            token_id: secret.id,
            token_hash: secret.hash,
            client_id: request.client_id,
            client_version: request.client_version,
            metadata: request.metadata,
            config: request.config,
            config_name: request.config_name,
            grant: request.grant,
            basis: request.basis,
            created_at: now,
            expires_at: {
                let latest = now + *self.life.lock().unwrap();
                request.credential_ends.map_or(latest, |ends| ends.min(latest))
            },
            last_activity: now,
            terminating: None,
            figures: SessionFigures::default(),
        };
        self.live.lock().unwrap().insert(record.id, record.clone());
        self.held(Hold::After).await?;
        Ok((record, secret.token))
    }

    async fn live_sessions(&self, _: &NodeId) -> Result<Vec<SessionRecord>> {
        Ok(self.live.lock().unwrap().values().cloned().collect())
    }

    async fn extend_session(&self, id: SessionId, expires_at: UnixMillis) -> Result<()> {
        self.held(Hold::Before).await?;
        if let Some(record) = self.live.lock().unwrap().get_mut(&id) {
            record.expires_at = expires_at;
        }
        self.held(Hold::After).await
    }

    async fn end_session(&self, last: SessionReport, reason: EndReason) -> Result<()> {
        self.held(Hold::Before).await?;
        if self.live.lock().unwrap().remove(&last.id).is_some() {
            self.ended.lock().unwrap().push((last.id, reason));
        }
        self.held(Hold::After).await
    }

    async fn report(&self, reports: Vec<SessionReport>) -> Result<()> {
        self.check()?;
        self.reported.lock().unwrap().extend(reports);
        Ok(())
    }

    async fn resolve_session(&self, token: &SecretProof, _: &NodeId) -> Result<Option<SessionRecord>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.held(Hold::Before).await?;
        let found = self.elsewhere.lock().unwrap().clone()?;
        Ok(found.filter(|record| record.token_id == token.id && record.token_hash.is_of(token)))
    }
}

/// Rights in a namespace.
pub fn given(name: &str, read: bool, write: bool) -> ClientGrant {
    ClientGrant { namespace: namespace(name), grant: DataGrant { read, write } }
}

pub fn namespace(name: &str) -> NamespaceName {
    NamespaceName::parse("namespace", name).unwrap()
}

pub fn catalog() -> Catalog {
    let instance = |name, kind| BackendInstance { name: InstanceName::parse("name", name).unwrap(), kind };
    Catalog { instances: vec![instance("memory", BackendType::Memory), instance("sqlite", BackendType::Sqlite)] }
}

/// What a test may choose.
pub struct Setup {
    pub limits: Limits,
    pub policy: SessionPolicy,
    pub clock: Clock,
    pub issuers: Issuers,
    pub trust: Option<Arc<ArcSwap<ClientTrust>>>,
    pub tls: Option<ServerTls>,
    pub auth_failures: u32,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            policy: SessionPolicy::default(),
            clock: Clock::system(),
            issuers: Issuers::none(),
            trust: None,
            tls: None,
            auth_failures: 1000,
        }
    }
}

/// A running node.
pub struct Node {
    pub control: Arc<FakeControl>,
    pub plane: Arc<DataPlane>,
    /// Without a client certificate; does not connect before it is used.
    pub channel: Channel,
    pub address: SocketAddr,
    pub metrics: Metrics,
    pub key: String,
    setup: Setup,
    stop: ShutdownTrigger,
    pub folder: Arc<tempfile::TempDir>,
}

impl Node {
    pub async fn start() -> Self {
        Self::start_with(Setup::default()).await
    }

    pub async fn start_with(setup: Setup) -> Self {
        let control = Arc::new(FakeControl {
            snapshot: watch::Sender::new(Arc::new(snapshot())),
            keys: Mutex::default(),
            live: Mutex::default(),
            ended: Mutex::default(),
            reported: Mutex::default(),
            failing: AtomicBool::new(false),
            clock: setup.clock.clone(),
            life: Mutex::new(setup.policy.max_age),
            hold: watch::Sender::new(Hold::Nowhere),
            earlier: Mutex::default(),
            elsewhere: Mutex::new(Ok(None)),
            asked: AtomicUsize::new(0),
        });
        let key = control.key("default", true, true);
        let node = Self::run(control, setup, key, Arc::new(tempfile::tempdir().unwrap())).await;
        let configs: Vec<_> =
            node.control.snapshot.borrow().configs.into_iter().map(|(_, known)| known.clone()).collect();
        for revision in configs {
            node.plane.prepare_config(&revision.config).await.unwrap();
        }
        node
    }

    /// The same node after a crash: what is durable is still there, nothing else.
    pub async fn restart(self) -> Self {
        self.stop.now();
        Self::run(self.control, self.setup, self.key, self.folder).await
    }

    async fn run(control: Arc<FakeControl>, setup: Setup, key: String, folder: Arc<tempfile::TempDir>) -> Self {
        let instance = |name| InstanceName::parse("name", name).unwrap();
        let sqlite =
            SqliteBackend::open(instance("sqlite"), folder.path().to_owned(), setup.clock.clone()).await.unwrap();
        let memory: Arc<dyn Backend> = MemoryBackend::new(instance("memory"), setup.clock.clone());
        let metrics = Metrics::new();
        let mut serve = ServeOptions::new("data");
        serve.tls = setup.tls.as_ref().map(ServerTls::config);
        let plane = DataPlane::start(DataPlaneOptions {
            node: NodeId::parse("node", "node-1").unwrap(),
            control: Arc::clone(&control) as Arc<dyn ControlPlane>,
            backends: vec![memory, sqlite],
            limits: setup.limits.clone(),
            policy: setup.policy.clone(),
            clock: setup.clock.clone(),
            metrics: metrics.clone(),
            table: Arc::new(Table::load().unwrap()),
            reflection: true,
            health: true,
            issuers: setup.issuers.clone(),
            trust: setup.trust.clone(),
            connections: serve.connections.clone(),
            auth_failures: setup.auth_failures,
        })
        .await
        .unwrap();
        let listener = BoundListener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr();
        let (stop, shutdown) = Shutdown::new();
        let service = RequestIdService::new(plane.service(), RequestIds::new(&Random::system()));
        tokio::spawn(prism_rpc::serve(listener, serve, service, shutdown));
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        Self { control, plane, channel, address, metrics, key, setup, stop, folder }
    }

    pub fn sessions(&self) -> SessionServiceClient<Channel> {
        SessionServiceClient::new(self.channel.clone())
    }

    /// A session on a named config.
    pub async fn session(&self, config: &str) -> CreateSessionResponse {
        self.try_session(config).await.unwrap()
    }

    pub async fn try_session(&self, config: &str) -> Result<CreateSessionResponse, Status> {
        self.session_of(Auth::ApiKey(self.key.clone()), config).await
    }

    /// A session of any credential.
    pub async fn session_of(&self, auth: Auth, config: &str) -> Result<CreateSessionResponse, Status> {
        open(&self.channel, auth, config).await
    }
}

/// A session on a named config, over any connection.
pub async fn open(channel: &Channel, auth: Auth, config: &str) -> Result<CreateSessionResponse, Status> {
    let request = create(Some(auth), Some(Config::ConfigName(config.to_owned())));
    SessionServiceClient::new(channel.clone()).create_session(request).await.map(tonic::Response::into_inner)
}

pub fn create(auth: Option<Auth>, config: Option<Config>) -> CreateSessionRequest {
    CreateSessionRequest { auth, config, client_id: "test".to_owned(), ..CreateSessionRequest::default() }
}

fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot::default();
    for name in ["default", "other"] {
        let name = namespace(name);
        let space =
            Namespace { name: name.clone(), status: NamespaceStatus::Active, quota: Quota::default(), generation: 1 };
        snapshot.namespaces.insert(name, Arc::new(space));
    }
    let schema = "CREATE TABLE IF NOT EXISTS items (id TEXT PRIMARY KEY, quantity INTEGER)";
    let limited = RateLimit { requests_per_second: 1, burst: 3 };
    let configs = [
        draft("kv", "default", AccessPattern::KeyValue, BackendType::Memory, &[]),
        draft("kv-other", "other", AccessPattern::KeyValue, BackendType::Memory, &[]),
        ConfigDraft {
            rate_limit: Some(limited),
            ..draft("kv-limited", "default", AccessPattern::KeyValue, BackendType::Memory, &[])
        },
        draft("events", "default", AccessPattern::PubSub, BackendType::Memory, &[]),
        draft("queue", "default", AccessPattern::Queue, BackendType::Sqlite, &[("ack_timeout_ms", "60000")]),
        draft(
            "transact",
            "default",
            AccessPattern::TransactWrite,
            BackendType::Sqlite,
            &[("tables", "items"), ("schema", schema)],
        ),
        draft(
            "reader",
            "default",
            AccessPattern::PagedReader,
            BackendType::Sqlite,
            &[("collections", "items"), ("schema", schema)],
        ),
    ];
    for draft in configs {
        let config = draft.validate("config", &catalog(), |_| true).unwrap();
        let name = ConfigName::parse("name", config.name.as_str()).unwrap();
        let at = UnixMillis(0);
        let revision = ConfigRevision { revision: 1, config: Arc::new(config), created_at: at, updated_at: at };
        snapshot.configs.insert_cow(name, Arc::new(revision));
    }
    snapshot
}

pub fn draft(
    name: &str,
    namespace: &str,
    pattern: AccessPattern,
    kind: BackendType,
    options: &[(&str, &str)],
) -> ConfigDraft {
    let options: BTreeMap<_, _> = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    ConfigDraft {
        name: name.to_owned(),
        version: "1".to_owned(),
        pattern: Some(pattern),
        backend: Some(BackendDraft { kind: Some(kind), options, pool: None }),
        namespace: namespace.to_owned(),
        ..ConfigDraft::default()
    }
}

/// Code and reason of a status; a status without an ErrorInfo is a defect.
pub fn said(status: &Status) -> (Code, String) {
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
    (status.code(), info.reason)
}

/// Asserts code and reason.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(outcome: Result<T, Status>, code: Code, reason: &str) -> Status {
    let status = outcome.expect_err("must be refused");
    assert_eq!(said(&status), (code, reason.to_owned()), "{status:?}");
    status
}

/// The fields that a status names as wrong.
pub fn fields(status: &Status) -> Vec<String> {
    let bad = status.get_details_bad_request().map(|bad| bad.field_violations).unwrap_or_default();
    bad.into_iter().map(|violation| violation.field).collect()
}

/// Waits until `condition` holds; fails when it does not soon.
pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, waited).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

/// The next message of a stream, or how it ended; fails when neither comes soon.
pub async fn next<T>(stream: &mut tonic::Streaming<T>) -> Result<Option<T>, Status> {
    tokio::time::timeout(SOON, stream.message()).await.expect("the stream says nothing")
}

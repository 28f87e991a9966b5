//! Where the two planes meet: the data plane *asks* the [`ControlPlane`] and *follows* its [`Snapshot`]; the control plane
//! reaches the sessions that run on a node through [`DataNode`].

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use crate::access::{ClientAccess, ClientGrant};
use crate::clock::UnixMillis;
use crate::config::{AccessPattern, BackendType, Catalog, Config};
use crate::error::Result;
use crate::name::{ConfigName, NamespaceName, NodeId};
use crate::nodes::JoinedNode;
use crate::secret::SecretProof;
use crate::session::{AdmitRequest, ClientBasis, EndReason, SessionId, SessionRecord, SessionReport};

/// Whether a namespace serves, serves reads only, or nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NamespaceStatus {
    /// Serves everything.
    #[default]
    Active,
    /// Writes are refused.
    ReadOnly,
    /// Sessions and operations are refused.
    Suspended,
}

impl NamespaceStatus {
    /// The name used in seed A, without its prefix.
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::ReadOnly => "READ_ONLY",
            Self::Suspended => "SUSPENDED",
        }
    }
}

/// Quotas of a namespace; 0 = unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Most live sessions.
    pub max_sessions: i64,
    /// Most stored bytes.
    pub max_storage_bytes: i64,
    /// Most data operations per second.
    pub max_rps: i64,
}

/// A namespace as the data plane sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: NamespaceName,
    /// Its status.
    pub status: NamespaceStatus,
    /// Its quotas.
    pub quota: Quota,
    /// Tells it from other namespaces of its name: larger than that of those before it.
    pub generation: i64,
}

/// A namespace that is gone for good, and whose data a node has still to remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// Its name.
    pub namespace: NamespaceName,
    /// Its generation; data of a later namespace of the name stays.
    pub generation: i64,
}

/// Maintenance of the gateway or of one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maintenance {
    /// The operator's message, may be empty.
    pub message: String,
    /// When it began.
    pub started_at: UnixMillis,
    /// When it ends by itself.
    pub ends_at: Option<UnixMillis>,
    /// Whether reads go on.
    pub allow_reads: bool,
}

impl Maintenance {
    /// Whether it is still in force at `now`.
    pub fn in_force(&self, now: UnixMillis) -> bool {
        self.ends_at.is_none_or(|end| now < end)
    }
}

/// One numbered revision of a config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigRevision {
    /// Counts from 1 for each name.
    pub revision: i64,
    /// The config.
    pub config: Arc<Config>,
    /// When the config was first made.
    pub created_at: UnixMillis,
    /// When this revision was accepted.
    pub updated_at: UnixMillis,
}

/// Live configs by name. A change copies a few entries of it, however many there are.
pub type Configs = immutable_chunkmap::map::Map<ConfigName, Arc<ConfigRevision>, 64>;

/// What a drain covers; `None` = all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DrainScope {
    /// Only sessions of this namespace.
    pub namespace: Option<NamespaceName>,
    /// Only sessions on this node.
    pub node: Option<NodeId>,
}

impl DrainScope {
    /// Whether a session of `namespace` on `node` is in scope.
    pub fn covers(&self, namespace: &NamespaceName, node: &NodeId) -> bool {
        self.namespace.as_ref().is_none_or(|wanted| wanted == namespace)
            && self.node.as_ref().is_none_or(|wanted| wanted == node)
    }
}

/// The control state that the data plane follows; immutable, swapped whole.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Grows with every change.
    pub revision: u64,
    /// Current revisions of live configs.
    pub configs: Configs,
    /// All namespaces.
    pub namespaces: HashMap<NamespaceName, Arc<Namespace>>,
    /// Maintenance of the whole gateway.
    pub maintenance: Option<Arc<Maintenance>>,
    /// Maintenance of single namespaces.
    pub namespace_maintenance: HashMap<NamespaceName, Arc<Maintenance>>,
    /// Drains in progress.
    pub drains: Vec<DrainScope>,
    /// Who may do what on the data plane; another `Arc` when something of it changed.
    pub client_access: Arc<ClientAccess>,
}

impl Snapshot {
    /// The maintenance in force for `namespace`: its own before the gateway's.
    pub fn maintenance_of(&self, namespace: &NamespaceName, now: UnixMillis) -> Option<&Arc<Maintenance>> {
        self.namespace_maintenance
            .get(namespace)
            .filter(|maintenance| maintenance.in_force(now))
            .or_else(|| self.maintenance.as_ref().filter(|maintenance| maintenance.in_force(now)))
    }
}

/// What a client presents on the data plane.
#[derive(Clone, Copy, Debug)]
pub enum ClientCredential<'a> {
    /// A client key, which the control plane has to check.
    Key(SecretProof),
    /// A JWT or client certificate that proved itself to the node.
    Proven(&'a ProvenClient),
}

/// Whom a JWT or client certificate proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvenClient {
    /// What a session of it would stand on; its subjects are never empty.
    pub basis: ClientBasis,
    /// When the certificate ends. A JWT proves who opens a session, and does not end it.
    pub ends: Option<UnixMillis>,
}

/// A client whose credential is valid, and what it may do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientIdentity {
    /// What a session of it would stand on.
    pub basis: ClientBasis,
    /// Its namespaces, never empty.
    pub grants: Vec<ClientGrant>,
    /// When the credential ends.
    pub ends: Option<UnixMillis>,
}

/// What the data plane may ask of the control plane. In role `all` a function call, on a data node a stream.
#[async_trait]
pub trait ControlPlane: Send + Sync + 'static {
    /// The state to follow.
    fn snapshot(&self) -> watch::Receiver<Arc<Snapshot>>;

    /// What a client may do; UNAUTHENTICATED, always the same, when its key is unknown, wrong, revoked or expired, or its
    /// certificate is revoked; PERMISSION_DENIED `NO_NAMESPACE` when it is proven and no namespace is given to it.
    async fn authenticate_client(&self, credential: ClientCredential<'_>) -> Result<ClientIdentity>;

    /// The newest revision of a live config with this version string (contract §9 "config updates").
    async fn config_version(&self, name: &ConfigName, version: &str) -> Result<Option<Arc<Config>>>;

    /// Admits a session durably, or refuses (`max_sessions`, drain, maintenance, suspension). Returns the record and the
    /// token to hand to the client.
    async fn admit_session(&self, request: AdmitRequest) -> Result<(SessionRecord, crate::secret::Token)>;

    /// Every live session that `node` serves, for its start.
    async fn live_sessions(&self, node: &NodeId) -> Result<Vec<SessionRecord>>;

    /// Moves a session's end, durably.
    async fn extend_session(&self, id: SessionId, expires_at: UnixMillis) -> Result<()>;

    /// Ends a session, durably; ending one that is over is no error.
    async fn end_session(&self, last: SessionReport, reason: EndReason) -> Result<()>;

    /// Takes reports of sessions that changed.
    async fn report(&self, reports: Vec<SessionReport>) -> Result<()>;

    /// Whether a session that a data plane does not have may be on another node. Where there is no other node, nobody needs to be
    /// asked.
    fn may_be_elsewhere(&self) -> bool {
        true
    }

    /// Hands a session over to `node`, which a client has brought its token to: `None` when no live session has that token, or
    /// the session has to stay where it is.
    async fn resolve_session(&self, token: &SecretProof, node: &NodeId) -> Result<Option<SessionRecord>>;
}

/// What the controller's end of the link to data nodes asks of the control state, beside what the nodes themselves ask.
#[async_trait]
pub trait ClusterState: ControlPlane {
    /// Every live session of `node`, as it is: for a node that has gone on while it was away.
    async fn held_sessions(&self, node: &NodeId) -> Result<Vec<SessionRecord>>;

    /// The nodes that have live sessions.
    async fn serving_nodes(&self) -> Result<Vec<NodeId>>;

    /// The nodes that may serve sessions, as far as is known here: those that have live ones, or have had one that was terminated
    /// and of which they need not have heard.
    async fn sharing_nodes(&self) -> Result<Vec<NodeId>>;

    /// The nodes that have joined, are not revoked and have had a link, in the order of their names.
    async fn joined_nodes(&self) -> Result<Vec<JoinedNode>>;

    /// The nodes that have still to remove the data of a namespace of this name, in the order of their names, and of which.
    async fn removals(&self, namespace: &NamespaceName) -> Result<Vec<(NodeId, Removal)>>;

    /// What a node has still to remove.
    async fn removals_of(&self, node: &NodeId) -> Result<Vec<Removal>>;

    /// A node has removed it, or has no data of it.
    async fn removed(&self, node: &NodeId, removal: &Removal) -> Result<()>;

    /// Takes reports of a node's sessions; those of others change nothing.
    async fn report_of(&self, node: &NodeId, reports: Vec<SessionReport>) -> Result<()>;

    /// Moves the end of a live session of `node`, as [`ControlPlane::extend_session`] does; those of others stay.
    async fn extend_of(&self, node: &NodeId, id: SessionId, expires_at: UnixMillis) -> Result<()>;

    /// Ends a live session of `node`, as [`ControlPlane::end_session`] does; those of others go on.
    async fn end_of(&self, node: &NodeId, last: SessionReport, reason: EndReason) -> Result<()>;

    /// The node of a session, live or ended.
    async fn node_of(&self, id: SessionId) -> Result<Option<NodeId>>;

    /// The live session with this token, and its node.
    async fn session_of(&self, token: &SecretProof) -> Result<Option<(NodeId, SessionRecord)>>;

    /// What proves to a later life of this installation that it has said `words`; nobody else can make it.
    fn seal(&self, words: &[u8]) -> Vec<u8>;

    /// Whether this installation has said `words`.
    fn has_sealed(&self, words: &[u8], seal: &[u8]) -> bool;

    /// Gives a live session of `from` to another node, durably; `false` when it is not live or not there any more.
    async fn move_session(&self, id: SessionId, from: &NodeId, to: &NodeId) -> Result<bool>;
}

/// How an operator's termination went on a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Termination {
    /// Operations that were running when it arrived.
    pub pending_operations: i32,
}

/// How a drain went on a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DrainOutcome {
    /// Sessions that ended.
    pub drained: i32,
    /// Sessions that had something running until the end.
    pub remaining: i32,
}

/// Request figures over a window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RequestFigures {
    /// Since the process started.
    pub requests_total: i64,
    /// Since the process started, any status but OK.
    pub errors_total: i64,
    /// Over the window.
    pub requests_per_second: f64,
    /// Median over the window, in milliseconds.
    pub latency_p50_ms: f64,
    /// 95th percentile over the window, in milliseconds.
    pub latency_p95_ms: f64,
    /// 99th percentile over the window, in milliseconds.
    pub latency_p99_ms: f64,
    /// Sessions now.
    pub active_sessions: i64,
    /// Streams now.
    pub active_streams: i64,
}

/// Figures of one node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeFigures {
    /// All requests of the data plane.
    pub total: RequestFigures,
    /// By namespace.
    pub namespaces: BTreeMap<String, RequestFigures>,
    /// By backend type and instance name.
    pub backends: BTreeMap<(BackendType, String), RequestFigures>,
}

impl NamespaceStatus {
    /// All statuses.
    pub const ALL: [Self; 3] = [Self::Active, Self::ReadOnly, Self::Suspended];
}

/// Health of a backend instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// Works.
    Healthy,
    /// Works with limits.
    Degraded,
    /// Does not work.
    Unhealthy,
}

impl Health {
    /// All states, the best first.
    pub const ALL: [Self; 3] = [Self::Healthy, Self::Degraded, Self::Unhealthy];

    /// Its name in seed A, without its prefix.
    pub fn name(self) -> &'static str {
        match self {
            Self::Healthy => "HEALTHY",
            Self::Degraded => "DEGRADED",
            Self::Unhealthy => "UNHEALTHY",
        }
    }
}

/// What a node knows of one backend instance.
#[derive(Clone, Debug, PartialEq)]
pub struct BackendReport {
    /// Type.
    pub kind: BackendType,
    /// Instance name.
    pub instance: String,
    /// Where it is: a path or an address without credentials.
    pub endpoint: String,
    /// Health, found by a real operation.
    pub health: Health,
    /// What is wrong, or how it was checked.
    pub message: String,
    /// When it was checked.
    pub checked_at: UnixMillis,
    /// Connections in use.
    pub active_connections: i32,
    /// Connections allowed.
    pub pool_size: i32,
    /// Connections open and unused.
    pub idle_connections: i32,
    /// Share of the machine's processors that it uses, 0 to 100; 0 where it cannot be told apart.
    pub cpu_percent: f64,
    /// Share of the machine's memory that it uses, 0 to 100.
    pub memory_percent: f64,
    /// Operations per second over the last minute.
    pub requests_per_second: i64,
    /// Median latency over the last minute, in milliseconds.
    pub avg_latency_ms: f64,
    /// Patterns it serves.
    pub patterns: Vec<AccessPattern>,
}

/// Live figures of one namespace on a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NamespaceFigures {
    /// Bytes stored.
    pub storage_bytes_used: i64,
    /// Data operations per second over the last 10 s.
    pub requests_per_second: i64,
}

/// What the clients of a node ask for in one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceDemand {
    /// The namespace; it has a `max_rps` and the node has sessions in it.
    pub namespace: NamespaceName,
    /// Operations asked for since the process started, refused ones included.
    pub asked: u64,
}

/// What the control plane may ask of a node's data plane. In role `all` a function call, else the link's.
#[async_trait]
pub trait DataNode: Send + Sync + 'static {
    /// Which node.
    fn node_id(&self) -> &NodeId;

    /// Waits until this node serves by the snapshot with this revision or a later one, at most a second: what an operator
    /// was answered holds for the next request.
    async fn caught_up(&self, revision: u64);

    /// Sessions that changed since the last call.
    fn take_reports(&self) -> Vec<SessionReport>;

    /// The backend instances that it serves.
    fn catalog(&self) -> Catalog;

    /// Checks what only the driver can tell of a config (its `schema` for one) without any effect.
    async fn check_config(&self, config: &Config) -> Result<()>;

    /// Makes what an accepted config needs (its embedded tables); may be repeated.
    async fn prepare_config(&self, config: &Config) -> Result<()>;

    /// Ends a session that the store has ended (`force`) or marked: cuts or lets finish what runs.
    async fn terminate(&self, id: SessionId, force: bool, reason: &str) -> Termination;

    /// Drains the sessions in `scope` until all are gone or `timeout` has passed; `force` cuts what is left then.
    async fn drain(&self, scope: &DrainScope, timeout: Duration, force: bool) -> DrainOutcome;

    /// What [`DataNode::drain`] would find: `drained` would end at once, `remaining` have something running.
    fn drain_preview(&self, scope: &DrainScope) -> DrainOutcome;

    /// Request figures over `window`.
    fn figures(&self, window: Duration) -> NodeFigures;

    /// Live figures of a namespace.
    async fn namespace_figures(&self, namespace: &NamespaceName) -> NamespaceFigures;

    /// Checks every backend instance and reports on it.
    async fn backends(&self) -> Vec<BackendReport>;

    /// Ends every session of a deleted namespace and removes its data from the embedded backends.
    async fn remove_namespace(&self, namespace: &NamespaceName) -> Result<()>;

    /// Serves a session that the control plane has handed over; one that is here already stays as it is.
    async fn take_up(&self, record: SessionRecord);

    /// Ends a session here that the control plane does not count among this node's any more: it is over, or goes on on another.
    async fn let_go(&self, id: SessionId, reason: &str);

    /// Whether the control plane has revoked this node: everything is cut at once then, and nothing is served until that changes.
    async fn set_revoked(&self, revoked: bool);

    /// Moves the end of a session that the control plane has moved.
    fn extend(&self, id: SessionId, expires_at: UnixMillis);

    /// What clients ask for in each namespace with a `max_rps`.
    fn demand(&self) -> Vec<NamespaceDemand>;

    /// Whether this node shares each `max_rps` with others: if so, it may use nothing of one but what [`DataNode::share`] gives it
    /// from now on. Otherwise, and at first, all of it.
    fn share_rates(&self, with_others: bool);

    /// How much of the `max_rps` of a namespace this node may use, in thousandths of an operation per second.
    fn share(&self, namespace: &NamespaceName, millis: u64);
}

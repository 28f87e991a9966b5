//! An admin operation as a value (architecture, law 1).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use prism_core::access::RoleGrant;
use prism_core::config::{BackendDraft, Catalog};
use prism_core::control::Snapshot;
use prism_core::nodes::Nodes as _;
use prism_core::permission::{Grant, Reach};
use prism_core::secret::Random;
use prism_core::subject::Subject;
use prism_core::{NamespaceName, NodeId, Result, UnixMillis};
use prism_link::Fleet;
use prism_rpc::metrics::Metrics;
use prism_rpc::{CertificateAuthority, Connections, Table};
use prism_store::{Store, Tx};
use serde::Serialize;

use crate::changes::changes;
use crate::identity::Identity;

/// Where an operation happens, which decides whose grants allow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The whole installation: a credential bound to a namespace may not.
    Installation,
    /// One namespace, as the request names it.
    Namespace(String),
    /// A list, limited to what the caller may see.
    Visible,
}

impl Place {
    /// A namespace when one is known, the installation otherwise.
    pub fn of(namespace: Option<String>) -> Self {
        namespace.map_or(Self::Installation, Self::Namespace)
    }

    /// Whether `reach` covers it.
    pub fn is_within(&self, reach: &Reach) -> bool {
        match self {
            Self::Installation => reach.includes(None),
            Self::Namespace(name) => reach.includes(Some(name)),
            Self::Visible => *reach != Reach::Nowhere,
        }
    }
}

/// Which grants an RPC asks for, as far as the RPC alone decides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// It concerns the whole installation, whatever namespace it names.
    Installation,
    /// It happens in the namespace that it names, or that what it names is in; else in the whole installation.
    Namespace,
    /// It answers with what the caller may see, of the namespace that it names or of all.
    Filtered,
}

impl Scope {
    /// Whether a call can happen at `place`.
    pub fn admits(self, place: &Place) -> bool {
        match self {
            Self::Installation => *place == Place::Installation,
            Self::Namespace => *place != Place::Visible,
            Self::Filtered => *place != Place::Installation,
        }
    }

    /// Whether someone whose permission holds within `reach` may call it in `namespace`; `None` = without naming one.
    pub fn allows(self, reach: &Reach, namespace: Option<&str>) -> bool {
        match (self, namespace) {
            (Self::Installation, _) => reach.includes(None),
            (Self::Filtered, None) => *reach != Reach::Nowhere,
            (Self::Namespace | Self::Filtered, namespace) => reach.includes(namespace),
        }
    }
}

/// How nodes are taken in.
#[derive(Clone, Debug)]
pub struct Enrolment {
    /// Life of a node's certificate.
    pub certificate_ttl: Duration,
    /// Names of this server in its own certificates: a node of such a name could pass for it.
    pub server_names: Vec<String>,
}

/// What all operations share.
pub struct Services {
    /// Control state.
    pub store: Arc<Store>,
    /// The data planes.
    pub fleet: Arc<Fleet>,
    /// Configured backends.
    pub catalog: Catalog,
    /// Figures.
    pub metrics: Metrics,
    /// RPC rules.
    pub table: Arc<Table>,
    /// The CA that issues certificates.
    pub authority: CertificateAuthority,
    /// Open connections of the admin plane, to cut those whose certificate is revoked.
    pub connections: Connections,
    /// Groups that issuers' settings give roles to.
    pub mapped: Arc<[(Subject, RoleGrant)]>,
    /// Certificates of nodes, and which names they may not have.
    pub enrolment: Enrolment,
    /// When this process started.
    pub started_at: UnixMillis,
    /// Held while data of a deleted namespace is removed.
    pub removing: tokio::sync::Mutex<()>,
    /// Held while a change of the CA takes effect.
    pub settling: tokio::sync::Mutex<()>,
}

impl Services {
    /// The control state as it was last published.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        use prism_core::control::ControlPlane as _;
        Arc::clone(&self.store.snapshot().borrow())
    }

    /// The source of randomness.
    pub fn random(&self) -> &Random {
        self.store.random()
    }

    /// The current time.
    pub fn now(&self) -> UnixMillis {
        self.store.clock().now()
    }

    /// Removes the data of a deleted namespace, and returns the nodes that have still to. What fails is tried again by
    /// [`Services::finish_removals`]; until this process is done nobody can make a namespace of that name, and until a node is,
    /// no session of a later one of that name is admitted there.
    pub async fn remove_data(&self, name: &NamespaceName) -> Vec<NodeId> {
        match self.try_remove_data(name).await {
            Ok(nodes) => nodes,
            Err(failed) => {
                tracing::error!(namespace = %name, reason = failed.reason(), cause = ?failed.cause(), "data of a deleted namespace is not removed yet");
                Vec::new()
            }
        }
    }

    async fn try_remove_data(&self, name: &NamespaceName) -> Result<Vec<NodeId>> {
        // One at a time, each after another look: a removal that somebody finished meanwhile has made room for a new namespace
        // of the same name, whose data this must not touch.
        let _turn = self.removing.lock().await;
        if !self.store.write(|tx| tx.pending_removals()).await?.contains(name) {
            return Ok(Vec::new());
        }
        let reached = self.fleet.remove_namespace(name).await?;
        let name = name.clone();
        self.store.write(move |tx| tx.finish_removal(&name)).await?;
        Ok(reached.unreachable)
    }

    /// Removes the data of namespaces whose removal was interrupted, here and on the nodes that can be reached.
    pub async fn finish_removals(&self) -> Result<()> {
        for name in self.store.write(|tx| tx.pending_removals()).await? {
            self.remove_data(&name).await;
        }
        self.fleet.finish_removals();
        Ok(())
    }

    /// Puts in force what was decided about the CA. Nothing happens when it is already.
    pub async fn settle_authority(&self) -> Result<()> {
        let _turn = self.settling.lock().await;
        let Some(committed) = self.store.read(|tx| tx.authority_state()).await? else { return Ok(()) };
        let authority = self.authority.clone();
        let settled = tokio::task::spawn_blocking(move || authority.settle(&committed)).await;
        settled.map_err(prism_core::Error::internal)?
    }

    /// Takes over what the data planes have to report, so that what is read next is up to date; returns the nodes with sessions
    /// that have not told.
    pub async fn refresh_sessions(&self) -> Result<Vec<NodeId>> {
        Ok(self.fleet.report().await?.unreachable)
    }

    /// The backend instances that a config may name: those of this process, and where it names one by type alone and this process
    /// has none of it, or by a name, those of the nodes too. A controller without a data plane goes by its own settings until the
    /// first node was linked, as there is nothing else to go by.
    pub fn catalog_for(&self, backend: Option<&BackendDraft>) -> Catalog {
        let of_nodes = self.fleet.catalog();
        if !self.fleet.has_own() {
            return of_nodes.unwrap_or_else(|| self.catalog.clone());
        }
        let mut catalog = self.catalog.clone();
        let by_type = backend.filter(|backend| !backend.options.contains_key("instance"));
        let has_own =
            by_type.is_some_and(|by_type| catalog.instances.iter().any(|instance| Some(instance.kind) == by_type.kind));
        if !has_own {
            let others = of_nodes.unwrap_or_default().instances;
            let others: Vec<_> = others.into_iter().filter(|other| !catalog.instances.contains(other)).collect();
            catalog.instances.extend(others);
        }
        catalog
    }
}

/// What an operation leaves behind when it succeeds.
pub struct Done<R> {
    /// The answer.
    pub response: R,
    /// Details for the audit entry.
    pub details: BTreeMap<String, String>,
    /// Replaces the resource of the audit entry, for what has its id only now.
    pub resource: Option<String>,
    /// Id of what was made, when the answer carries a secret that must not be stored.
    pub secret_of: Option<String>,
}

impl<R> Done<R> {
    /// An answer without more to say.
    pub fn new(response: R) -> Self {
        Self { response, details: BTreeMap::new(), resource: None, secret_of: None }
    }

    /// Adds a detail to the audit entry.
    #[must_use]
    pub fn detail(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.details.insert(name.to_owned(), value.to_string());
        self
    }
}

impl<R> Done<R> {
    /// Adds what was changed to the audit entry: details `before` and `after`, of the fields that differ, without secrets.
    #[must_use]
    pub fn changed<T: Serialize + PartialEq>(self, before: Option<&T>, after: Option<&T>) -> Self {
        let (before, after) = if before == after { Default::default() } else { changes(before, after) };
        self.detail("before", before).detail("after", after)
    }
}

/// An answer that can be stored under an idempotency key.
pub trait Answer: Sized + Send + 'static {
    /// The stored form; `None` for answers that are never stored.
    fn encode(&self) -> Option<Vec<u8>>;
    /// Reads the stored form.
    fn decode(stored: &[u8]) -> Result<Self>;
}

impl<M: prost::Message + Default + 'static> Answer for M {
    fn encode(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }

    fn decode(stored: &[u8]) -> Result<Self> {
        prost::Message::decode(stored).map_err(prism_core::Error::internal)
    }
}

/// One admin operation. The door runs it: authenticate → authorise → validate → one transaction { change + entry } → answer.
#[async_trait]
pub trait Op: Sized + Clone + Send + Sync + 'static {
    /// What comes in.
    type Request: prost::Message + Default + Clone + 'static;
    /// What goes out.
    type Response: Answer;

    /// Full name of the RPC, `package.Service/Method`; its permission, audit class and idempotency are in the descriptors.
    const RPC: &'static str;

    /// Where it may happen.
    const SCOPE: Scope;

    /// Whether [`Op::prepare`] does anything. The door then rehearses the operation first, so that nothing is prepared for
    /// a call that will be refused.
    const PREPARES: bool = false;

    /// Whether [`Op::execute`] proves everything before its first change, so that nothing but the storage can fail after it. It
    /// runs without a savepoint then, and a failure after a change undoes the whole batch. Reads, which change nothing, always
    /// do.
    const PROVES_FIRST: bool = false;

    /// The audit entry's resource, from the request as it came.
    fn resource(request: &Self::Request) -> String;

    /// As [`Op::resource`], for operations that are about who calls.
    fn resource_of_call(request: &Self::Request, _identity: &Identity) -> String {
        Self::resource(request)
    }

    /// The audit entry's namespace, from the request as it came; where it is stored only, see [`Op::place`].
    fn namespace(_request: &Self::Request) -> String {
        String::new()
    }

    /// What of the request its entry tells, also when it is refused.
    fn told(_request: &Self::Request) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    /// Where the operation happens, within [`Op::SCOPE`].
    fn place(request: &Self::Request, tx: &Tx<'_>) -> Result<Place>;

    /// Proves the request; INVALID_ARGUMENT with every field that is wrong.
    fn parse(request: Self::Request, services: &Services) -> Result<Self>;

    /// Whether [`Op::prepare`] of this request is worth a rehearsal: not when it neither changes nor costs anything.
    fn needs_rehearsal(&self) -> bool {
        Self::PREPARES
    }

    /// Asks or readies what is outside the store. Its effects must be harmless when the operation is refused later.
    async fn prepare(&mut self, _services: &Services) -> Result<()> {
        Ok(())
    }

    /// As [`Op::prepare`], for operations that are about who calls.
    async fn prepare_for(&mut self, _identity: &Identity, services: &Services) -> Result<()> {
        self.prepare(services).await
    }

    /// Carries the operation out, inside the transaction that also holds its audit entry.
    fn execute(self, tx: &mut Tx<'_>, caller: &Caller) -> Result<Done<Self::Response>>;

    /// Does what must follow a committed change outside the store, and completes the answer with what only the data plane
    /// knows.
    async fn follow_up(_request: &Self::Request, _response: &mut Self::Response, _services: &Services) {}
}

/// Who carries an operation out, and how far the permission reaches.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who.
    pub identity: Arc<Identity>,
    /// What they hold now.
    pub grants: Vec<Grant>,
    /// Where the RPC's permission holds.
    pub reach: Reach,
}

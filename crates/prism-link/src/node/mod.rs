//! A data node's end: the control plane as the data plane knows it, over a link that comes and goes.

mod apply;
mod ask;
mod command;
mod connection;
mod demand;
mod keeper;
mod memory;
mod standing;
mod state;
#[cfg(test)]
mod state_tests;
mod turned_away;

use std::io;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use prism_core::config::Config;
use prism_core::control::{ClientCredential, ClientIdentity, ControlPlane, DataNode, Snapshot};
use prism_core::secret::{SecretProof, Token};
use prism_core::session::{AdmitRequest, EndReason, SessionId, SessionRecord, SessionReport};
use prism_core::{Clock, ConfigName, Error, NamespaceName, NodeId, Result, UnixMillis};
use prost::bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::bounds::{INTRODUCTION_TIMEOUT, RETRY};
use crate::signal::Signal;
use crate::storage::Storage;
use crate::transport::Connector;
use keeper::Keeper;
use memory::Memory;
pub use state::needs_preparation;
use state::{Event, State};

/// How much longer or shorter a pause becomes, so that many nodes do not all come back at once.
pub type Jitter = Box<dyn Fn(Duration) -> Duration + Send + Sync>;

/// One backend instance that a node serves. Nodes with equal identities serve the same data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendIdentity {
    /// Name of the instance.
    pub instance: String,
    /// Its type, such as `sqlite`.
    pub kind: String,
    /// What tells its data from that of another.
    pub identity: String,
}

/// What a link is made of.
pub struct NodeLinkOptions {
    /// This node.
    pub node: NodeId,
    /// Tells this process of the node from every other: random.
    pub process: u64,
    /// The controllers to choose from, in order; at most [`crate::bounds::MAX_CONTROLLERS`].
    pub controllers: Vec<String>,
    /// How they are reached.
    pub connector: Arc<dyn Connector>,
    /// Where the state is kept.
    pub storage: Arc<dyn Storage>,
    /// Version of Prism.
    pub version: String,
    /// The backends that this node serves.
    pub backends: Vec<BackendIdentity>,
    /// The namespaces that there is data of.
    pub stored: Vec<NamespaceName>,
    /// Where it serves the data plane, `host:port`; empty = it does not say.
    pub data_endpoint: String,
    /// Where the time comes from.
    pub clock: Clock,
    /// How pauses vary.
    pub jitter: Jitter,
}

/// The control plane of a data node. Ends when it is dropped.
pub struct NodeLink {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

/// What the tasks of a link share.
struct Shared {
    options: NodeLinkOptions,
    started_at: UnixMillis,
    started: Instant,
    snapshot: watch::Sender<Arc<Snapshot>>,
    memory: Mutex<Memory>,
    /// Milliseconds to add to the controller's time to have this node's.
    offset: AtomicI64,
    /// The data plane, once it is there.
    node: Signal<Option<Arc<dyn DataNode>>>,
    /// The cluster's CA in PEM, as a controller told it last.
    authorities: watch::Sender<Option<Bytes>>,
    /// The open link, once node and controller are equal.
    link: Signal<Option<Arc<connection::Link>>>,
    keeper: Keeper,
    /// There is something to hand over to the controller.
    outbox: Notify,
    /// A demand is due.
    demand: Notify,
    /// Shares have come.
    shares_taken: Signal<()>,
    /// Whether there is a snapshot to serve by.
    ready: Signal<bool>,
    /// Held while data of a deleted namespace is removed.
    removing: tokio::sync::Mutex<()>,
    /// Whether a controller has turned this node away as a revoked one.
    revoked: Signal<bool>,
    /// Held while the data plane is told of it.
    standing: tokio::sync::Mutex<()>,
    /// Whether a controller has said that another process has this node's identity and is linked.
    is_twin: Signal<bool>,
    /// Whether a controller is there that has not said yet whether it takes this node.
    is_asking: Signal<bool>,
}

impl NodeLink {
    /// Reads what the node has written down, and begins to connect. Needs a runtime.
    ///
    /// A state that cannot be read is an error; one that is cut off or not this node's is logged and left out.
    pub async fn start(options: NodeLinkOptions) -> Result<Self> {
        let stored = options.storage.load().await;
        let stored = stored.map_err(|error| {
            let message = format!("the node's state cannot be read: {error}");
            Error::unavailable("NODE_STATE_UNREADABLE", message)
        })?;
        let (state, is_ready) = found(stored.state.as_deref(), &stored.journal, &options);
        if !stored.journal.is_empty() {
            // Nothing may be appended to a journal that was cut off, and a start is a good time to make it short.
            let (whole, node) = (state.clone(), options.node.clone());
            let encode = move || whole.encode(&node).map_err(|error| io::Error::other(format!("{:?}", error.cause())));
            let written = options.storage.replace(Box::new(encode)).await;
            written.map_err(|error| {
                let message = format!("the node's state cannot be written: {error}");
                Error::unavailable("NODE_STATE_UNWRITABLE", message)
            })?;
        }
        let is_revoked = state.revoked.is_some();
        let memory = Memory::new(state, options.stored.clone(), options.clock.now());
        let (keeper, waiting) = Keeper::new();
        let shared = Arc::new(Shared {
            started_at: options.clock.now(),
            started: Instant::now(),
            snapshot: watch::Sender::new(Arc::clone(&memory.state.snapshot)),
            memory: Mutex::new(memory),
            offset: AtomicI64::new(0),
            node: Signal::new(None),
            authorities: watch::Sender::new(None),
            link: Signal::new(None),
            keeper,
            outbox: Notify::new(),
            demand: Notify::new(),
            shares_taken: Signal::new(()),
            ready: Signal::new(is_ready),
            removing: tokio::sync::Mutex::default(),
            revoked: Signal::new(is_revoked),
            standing: tokio::sync::Mutex::default(),
            is_twin: Signal::new(false),
            is_asking: Signal::new(false),
            options,
        });
        let storage = Arc::clone(&shared.options.storage);
        let tasks = vec![
            tokio::spawn(keeper::keep(Arc::clone(&shared), storage, waiting)),
            tokio::spawn(connection::run(Arc::clone(&shared))),
            tokio::spawn(ask::hand_over(Arc::clone(&shared))),
            tokio::spawn(demand::tell(Arc::clone(&shared))),
        ];
        Ok(Self { shared, tasks })
    }

    /// Waits until there is a snapshot to serve by: a controller's, or if none answers within `patience` that on disk. As long as
    /// a controller refuses this process because another one of the node is linked, it waits.
    pub async fn ready(&self, patience: Duration) {
        // What is on disk is good enough when there is no answer.
        let _ = tokio::time::timeout(patience, self.shared.link.wait_for(Option::is_some)).await;
        // Two processes must not serve the same sessions: a controller that is there may know of another.
        let _ =
            tokio::time::timeout(INTRODUCTION_TIMEOUT, self.shared.is_asking.wait_for(|is_asking| !is_asking)).await;
        self.shared.is_twin.wait_for(|is_twin| !is_twin).await;
        self.shared.ready.wait_for(|ready| *ready).await;
    }

    /// Puts the data plane behind the link: its commands are carried out from now on.
    pub fn attach(&self, node: Arc<dyn DataNode>) {
        node.share_rates(true);
        self.shared.node.set(Some(node));
        self.shared.apply_shares();
        self.shared.demand.notify_one();
        // It may have been revoked since it began to start.
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move { shared.enforce_standing().await });
    }

    /// Waits until the node is revoked, or is not.
    pub async fn revoked(&self, wanted: bool) {
        self.shared.revoked.wait_for(|revoked| *revoked == wanted).await;
    }

    /// Whether there is a controller, and node and controller are equal.
    pub fn is_connected(&self) -> bool {
        self.shared.link.get().is_some()
    }

    /// Waits until there is a controller.
    pub async fn connected(&self) {
        self.shared.link.wait_for(Option::is_some).await;
    }

    /// The cluster's CAs (PEM, the one that issues first) as a controller tells them; `None` until one has.
    pub fn authorities(&self) -> watch::Receiver<Option<Bytes>> {
        self.shared.authorities.subscribe()
    }

    /// Ends and reports that no controller knows yet.
    pub fn waiting(&self) -> usize {
        let memory = self.shared.memory();
        memory.state.ends.len() + memory.state.reports.len()
    }

    /// A certificate for this node's data port, PEM with the CA last, for the key that signed `csr_pem`.
    ///
    /// UNAVAILABLE `NO_CONTROLLER` without a controller, and what the controller refuses with.
    pub async fn server_certificate(&self, csr_pem: Vec<u8>) -> Result<Vec<u8>> {
        self.shared.certify(csr_pem).await
    }

    /// Ends the link: nothing is sent and nothing is written down any more.
    pub fn end(&self) {
        for task in &self.tasks {
            task.abort();
        }
        if let Some(link) = self.shared.link.set(None) {
            link.close();
        }
    }

    /// Writes down the state, and waits for it.
    pub async fn flush(&self) -> Result<()> {
        self.shared.keeper.keep().await
    }
}

impl Drop for NodeLink {
    fn drop(&mut self) {
        self.end();
    }
}

/// The state that the node has written down, and whether it can serve by it: whether it is whole and its own, and no controller has
/// revoked the node. What the journal
/// says is true without it.
fn found(state: Option<&[u8]>, journal: &[u8], options: &NodeLinkOptions) -> (State, bool) {
    let mut is_whole = state.is_some();
    let mut state = state.map_or_else(State::default, |state| {
        State::decode(state, &options.node).unwrap_or_else(|why| {
            tracing::error!(node.id = %options.node, why, "the node's state is left out; it starts when a controller answers");
            is_whole = false;
            State::default()
        })
    });
    let (events, torn) = Event::decode_all(journal);
    if torn > 0 {
        tracing::warn!(node.id = %options.node, bytes = torn, "the end of the journal was cut off; nobody was told of what it said");
    }
    for event in events {
        state.apply(event);
    }
    if let Some(why) = &state.revoked {
        tracing::error!(node.id = %options.node, why, "{}", standing::WHAT_NOW);
        is_whole = false;
    }
    if is_whole {
        tracing::info!(node.id = %options.node, sessions = state.held.len(), "the node's state is read");
    }
    (state, is_whole)
}

impl Shared {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> State {
        self.memory().state.clone()
    }

    fn offset(&self) -> i64 {
        self.offset.load(Ordering::Relaxed)
    }

    /// The data plane, as soon as it is there.
    async fn attached(&self) -> Arc<dyn DataNode> {
        loop {
            if let Some(node) = self.node.wait_for(Option::is_some).await {
                return node;
            }
        }
    }

    fn attached_now(&self) -> Option<Arc<dyn DataNode>> {
        self.node.get()
    }

    /// Has the data plane serve by the shares that are in force.
    fn apply_shares(&self) {
        let Some(node) = self.attached_now() else { return };
        let memory = self.memory();
        let shares = memory.shares();
        for (name, rate) in shares.in_force(self.started, Instant::now()) {
            node.share(name, rate);
        }
    }
}

/// UNAVAILABLE `NO_CONTROLLER`: what needs a controller has to wait for one.
fn no_controller() -> Error {
    let message = "no controller can be reached, and this needs one; sessions that exist go on; retry later";
    Error::unavailable("NO_CONTROLLER", message).retry_after(RETRY)
}

#[async_trait]
impl ControlPlane for NodeLink {
    fn snapshot(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.shared.snapshot.subscribe()
    }

    async fn authenticate_client(&self, credential: ClientCredential<'_>) -> Result<ClientIdentity> {
        self.shared.authenticate(credential).await
    }

    async fn config_version(&self, name: &ConfigName, version: &str) -> Result<Option<Arc<Config>>> {
        self.shared.config_version(name, version).await
    }

    async fn admit_session(&self, request: AdmitRequest) -> Result<(SessionRecord, Token)> {
        self.shared.admit(request).await
    }

    /// The sessions that the controller, or the state on disk, has given to this node; it is always its own.
    async fn live_sessions(&self, _: &NodeId) -> Result<Vec<SessionRecord>> {
        Ok(self.shared.memory().state.held.values().cloned().collect())
    }

    async fn extend_session(&self, id: SessionId, expires_at: UnixMillis) -> Result<()> {
        self.shared.extend(id, expires_at).await
    }

    async fn end_session(&self, last: SessionReport, reason: EndReason) -> Result<()> {
        self.shared.end(last, reason).await
    }

    async fn report(&self, reports: Vec<SessionReport>) -> Result<()> {
        self.shared.report(reports).await
    }

    async fn resolve_session(&self, token: &SecretProof, _: &NodeId) -> Result<Option<SessionRecord>> {
        self.shared.resolve(token).await
    }
}

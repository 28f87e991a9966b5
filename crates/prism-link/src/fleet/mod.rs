//! A controller's end: its data nodes, connected or not, and the data plane of its own process if it has one.

mod allowance;
mod ask;
mod commands;
mod inline;
mod link;
mod rates;
mod refusal;
mod removals;
mod snapshots;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prism_core::config::BackendInstance;
use prism_core::control::{ClusterState, DataNode, Snapshot};
use prism_core::nodes::{JoinedNode, Told};
use prism_core::session::SessionReport;
use prism_core::{Clock, Error, NodeId, Result, UnixMillis};
use prism_proto::cluster::v1 as wire;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::bounds::{CERTIFY_RATE, MAX_NODES, MAX_UNHEARD};
use crate::shares::Ledger;
use crate::signal::Signal;
use crate::transport::ControllerEnd;
use allowance::Allowance;
use link::Link;
pub use refusal::{ALREADY_CONNECTED, Refusal};
use snapshots::Snapshots;

/// Most nodes of which something is kept, linked or not.
const MAX_KNOWN: usize = MAX_NODES * 2;

/// What a fleet is made of.
pub struct FleetOptions {
    /// The control state.
    pub control: Arc<dyn ClusterState>,
    /// This controller.
    pub id: NodeId,
    /// Name of the cluster.
    pub cluster: String,
    /// Tells this life of this controller from all others: random, and not 0.
    pub epoch: u64,
    /// Where the time comes from.
    pub clock: Clock,
    /// Who makes certificates for data ports; `None` = nobody.
    pub certifier: Option<Arc<dyn Certifier>>,
}

/// Makes certificates for the data ports of nodes.
pub trait Certifier: Send + Sync + 'static {
    /// A certificate for `node` and for nobody else's name; PEM, the CA last. `csr_pem` gives the key and nothing else.
    fn server_certificate(&self, node: &NodeId, csr_pem: &[u8]) -> Result<Vec<u8>>;
}

/// What is known of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// The node.
    pub node: NodeId,
    /// Whether it can be reached now.
    pub connected: bool,
    /// When its process started, by its own clock.
    pub started_at: UnixMillis,
    /// Since when it is connected, or not.
    pub since: UnixMillis,
    /// The newest refusal of a link since it was linked last.
    pub refusal: Option<Refusal>,
}

/// The data nodes of a controller. Ends when it is dropped.
pub struct Fleet {
    shared: Arc<Shared>,
    tasks: [JoinHandle<()>; 2],
}

struct Shared {
    options: FleetOptions,
    snapshots: Snapshots,
    /// The newest snapshot.
    snapshot: Signal<Arc<Snapshot>>,
    /// The cluster's CA in PEM, once it was told.
    authorities: Signal<Option<Arc<[u8]>>>,
    nodes: Mutex<Known>,
    ledger: Mutex<Ledger>,
    next_link: std::sync::atomic::AtomicU64,
    end: CancellationToken,
}

#[derive(Default)]
struct Known {
    /// The data plane of this process.
    local: Option<(NodeId, Arc<dyn DataNode>)>,
    /// Open links.
    links: BTreeMap<NodeId, Arc<Link>>,
    /// Nodes that have sessions, when it was looked last.
    serving: BTreeSet<NodeId>,
    /// What is known of nodes that were connected.
    statuses: BTreeMap<NodeId, NodeStatus>,
    /// The newest connection of each node that is introducing itself.
    introducing: BTreeMap<NodeId, CancellationToken>,
    /// How many more certificates each node may ask for.
    certificates: BTreeMap<NodeId, Allowance>,
    /// Nodes that have joined and had a link, when it was looked last, and what they said.
    joined: BTreeMap<NodeId, Told>,
    /// Admissions that nodes may never have heard of, with the process that they were for.
    unheard: BTreeMap<NodeId, (u64, Vec<SessionReport>)>,
    /// What tells the data of the backend instances of nodes that were connected.
    backends: BTreeMap<NodeId, BTreeMap<String, String>>,
}

impl Fleet {
    /// Begins with the nodes that have sessions. Needs a runtime.
    pub async fn start(options: FleetOptions) -> Result<Self> {
        let serving: BTreeSet<NodeId> = options.control.serving_nodes().await?.into_iter().collect();
        let mut published = options.control.snapshot();
        let newest = Arc::clone(&published.borrow_and_update());
        let joined =
            options.control.joined_nodes().await?.into_iter().map(|joined| (joined.node, joined.told)).collect();
        let ledger = Ledger::new(options.control.sharing_nodes().await?, Instant::now());
        let shared = Arc::new(Shared {
            snapshots: Snapshots::new(options.epoch),
            snapshot: Signal::new(newest),
            authorities: Signal::new(None),
            options,
            nodes: Mutex::new(Known { serving, joined, ..Known::default() }),
            ledger: Mutex::new(ledger),
            next_link: std::sync::atomic::AtomicU64::new(1),
            end: CancellationToken::new(),
        });
        let following = Arc::clone(&shared);
        let follow = async move {
            // One task wakes all links, in order.
            while published.changed().await.is_ok() {
                following.snapshot.set(Arc::clone(&published.borrow_and_update()));
            }
        };
        let tasks = [tokio::spawn(rates::tend(Arc::clone(&shared))), tokio::spawn(follow)];
        Ok(Self { shared, tasks })
    }

    /// Has all nodes trust these CAs (PEM, the one that issues first), those that come later as well.
    pub fn tell_authorities(&self, pem: &str) {
        self.shared.authorities.set(Some(pem.as_bytes().into()));
    }

    /// Counts the data plane of this process among the nodes.
    pub fn attach(&self, node: Arc<dyn DataNode>) {
        self.shared.nodes().local = Some((node.node_id().clone(), node));
        self.shared.share_with_local();
    }

    /// Serves the link of `node`, the one that its certificate names, until it ends; returns why.
    pub async fn serve(&self, node: NodeId, transport: ControllerEnd) -> Error {
        link::serve(&self.shared, node, transport).await
    }

    /// Whether there is a data plane in this process.
    pub fn has_own(&self) -> bool {
        self.shared.local().is_some()
    }

    /// Whether `node` may link with this Hello now; waits for a sign of life of the process that is linked, if it is another.
    ///
    /// FAILED_PRECONDITION `NODE_ALREADY_CONNECTED` when it gives one, `NODE_ID_TAKEN`, RESOURCE_EXHAUSTED `TOO_MANY_NODES`.
    pub async fn may_link(&self, node: &NodeId, hello: &wire::Hello) -> Result<()> {
        self.shared.may_link(node, hello).await
    }

    /// What is known of the nodes that are or were connected, by name.
    pub fn statuses(&self) -> Vec<NodeStatus> {
        self.shared.nodes().statuses.values().cloned().collect()
    }

    /// Cuts the link of a node; `false` when it has none.
    pub fn cut(&self, node: &NodeId) -> bool {
        self.shared.cut(node)
    }

    /// Ends all links.
    pub fn end(&self) {
        self.shared.end.cancel();
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.end();
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Shared {
    fn nodes(&self) -> MutexGuard<'_, Known> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn local(&self) -> Option<(NodeId, Arc<dyn DataNode>)> {
        self.nodes().local.clone()
    }

    fn cut(&self, node: &NodeId) -> bool {
        let link = self.nodes().links.get(node).cloned();
        link.inspect(|link| link.close()).is_some()
    }

    /// Begins the introduction of a node, and ends the one before.
    fn introduce(&self, node: &NodeId) -> CancellationToken {
        let turn = CancellationToken::new();
        let mut nodes = self.nodes();
        if let Some(before) = nodes.introducing.insert(node.clone(), turn.clone()) {
            before.cancel();
        }
        turn
    }

    /// Whether a node may have one more certificate now. Who asks has a link, so there are not many.
    fn may_certify(&self, node: &NodeId) -> bool {
        let mut nodes = self.nodes();
        while nodes.certificates.len() > MAX_KNOWN {
            nodes.certificates.pop_first();
        }
        nodes.certificates.entry(node.clone()).or_insert_with(|| Allowance::new(CERTIFY_RATE)).take()
    }

    /// Puts a link in the place of the one that the node had before, which ends.
    fn register(&self, link: &Arc<Link>, hello: &wire::Hello, told: Told) -> Result<()> {
        let mut nodes = self.nodes();
        let node = link.node();
        nodes.has_room_for(node)?;
        // Two that came at the same time: the first has the place.
        if nodes.links.get(node).is_some_and(|before| before.process() != link.process() && !before.is_closed()) {
            return Err(refusal::twin(node));
        }
        if let Some(before) = nodes.links.insert(node.clone(), Arc::clone(link)) {
            tracing::warn!(node.id = %node, "a node has connected again; its link before is closed");
            before.close();
            Self::keep_unheard(&mut nodes, &before);
        }
        let status = NodeStatus {
            node: node.clone(),
            connected: true,
            started_at: UnixMillis(hello.started_at_ms),
            since: self.options.clock.now(),
            refusal: None,
        };
        let identities = hello.backends.iter().map(|backend| (backend.instance.clone(), backend.identity.clone()));
        nodes.backends.insert(node.clone(), identities.collect());
        nodes.joined.insert(node.clone(), told);
        nodes.remember(status);
        Ok(())
    }

    /// Whether a link has its node's place still.
    fn is_in_place(&self, link: &Link) -> bool {
        self.nodes().links.get(link.node()).is_some_and(|current| std::ptr::eq(Arc::as_ptr(current), link))
    }

    /// Takes a link away, unless another has its place by now.
    fn unregister(&self, link: &Arc<Link>) {
        let mut nodes = self.nodes();
        let node = link.node();
        Self::keep_unheard(&mut nodes, link);
        if nodes.links.get(node).is_some_and(|current| Arc::ptr_eq(current, link)) {
            nodes.links.remove(node);
            // It has sessions until the control state says otherwise.
            nodes.serving.insert(node.clone());
            if let Some(status) = nodes.statuses.get_mut(node) {
                (status.connected, status.since) = (false, self.options.clock.now());
            }
            drop(nodes);
            self.ledger().silent(node);
        }
    }

    /// An admission was answered over a link, which may have ended meanwhile.
    fn answered(&self, link: &Link, last: SessionReport) {
        link.answered(last);
        if link.is_closed() {
            Self::keep_unheard(&mut self.nodes(), link);
        }
    }

    /// Keeps what a node may not have heard before its link ended.
    fn keep_unheard(nodes: &mut Known, link: &Link) {
        let lost = link.take_unheard();
        if lost.is_empty() {
            return;
        }
        while nodes.unheard.len() > MAX_NODES * 10 {
            nodes.unheard.pop_first();
        }
        let known = nodes.unheard.entry(link.node().clone()).or_default();
        if known.0 != link.process() {
            *known = (link.process(), Vec::new());
        }
        known.1.extend(lost);
        known.1.truncate(MAX_UNHEARD);
    }

    /// Takes what the process of a node may not have heard over earlier links. Another process of it may have served a session
    /// that it has not written down, so nothing is known then.
    fn take_unheard(&self, node: &NodeId, process: u64) -> Vec<SessionReport> {
        let unheard = self.nodes().unheard.remove(node);
        unheard.filter(|(before, _)| *before == process).map(|(_, lost)| lost).unwrap_or_default()
    }

    /// Nodes that cannot be reached: of those with sessions, or those that had some a moment ago, or of all.
    fn unreachable(&self, among: Among) -> Vec<NodeId> {
        let nodes = self.nodes();
        let joined = nodes.joined.keys().filter(|_| among == Among::All);
        let known: BTreeSet<&NodeId> = nodes.serving.iter().chain(joined).collect();
        known.into_iter().filter(|node| !nodes.is_reachable(node)).cloned().collect()
    }

    /// The nodes that serve a backend instance, as far as they have said.
    fn serving(&self, instance: &BackendInstance) -> BTreeSet<NodeId> {
        let nodes = self.nodes();
        let serving = nodes.joined.iter().filter(|(_, told)| told.instances().any(|told| told == *instance));
        serving.map(|(node, _)| node.clone()).collect()
    }

    fn is_reachable(&self, node: &NodeId) -> bool {
        self.nodes().is_reachable(node)
    }

    /// Whether the instance holds the same data on both nodes, as far as is known.
    fn serve_the_same(&self, one: &NodeId, other: &NodeId, instance: &str) -> bool {
        let nodes = self.nodes();
        let identity =
            |node| nodes.backends.get(node).and_then(|backends: &BTreeMap<String, String>| backends.get(instance));
        matches!((identity(one), identity(other)), (Some(one), Some(other)) if one == other)
    }
}

/// Whose answer matters to whoever asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Among {
    /// It is about sessions.
    WithSessions,
    /// It is about what a node has without sessions, too: backends, data, figures.
    All,
}

impl Known {
    /// Takes over what the control state knows. What a node with a link says is newer.
    fn take_over(&mut self, serving: BTreeSet<NodeId>, joined: Vec<JoinedNode>) {
        self.serving = serving;
        let linked = self.links.keys().filter_map(|node| Some((node.clone(), self.joined.get(node)?.clone())));
        let linked: Vec<_> = linked.collect();
        self.joined = joined.into_iter().map(|joined| (joined.node, joined.told)).chain(linked).collect();
    }

    /// Keeps what is known of a node. Of nodes that are away for good the names alone are kept, and not for ever.
    fn remember(&mut self, status: NodeStatus) {
        self.statuses.insert(status.node.clone(), status);
        while self.statuses.len() > MAX_KNOWN {
            let away = self.statuses.values().filter(|known| !known.connected);
            let Some(oldest) = away.min_by_key(|known| known.since).map(|known| known.node.clone()) else { break };
            self.statuses.remove(&oldest);
            self.backends.remove(&oldest);
        }
    }

    fn is_reachable(&self, node: &NodeId) -> bool {
        self.links.contains_key(node) || self.local.as_ref().is_some_and(|(local, _)| local == node)
    }
}

//! All data nodes as one: what the admin plane asks of them, and how the answers of many become one answer.

use std::time::Duration;

use async_trait::async_trait;

use crate::config::{BackendInstance, BackendType, Catalog, Config};
use crate::control::{
    BackendReport, DrainOutcome, DrainScope, NamespaceFigures, NodeFigures, RequestFigures, Termination,
};
use crate::error::Result;
use crate::name::{InstanceName, NamespaceName, NodeId};
use crate::session::SessionId;

/// An answer of all nodes that could be asked, and the names of the others: nobody is left out in silence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reached<T> {
    /// What those that were reached said.
    pub answer: T,
    /// The nodes that could not be asked, sorted.
    pub unreachable: Vec<NodeId>,
}

impl<T> Reached<T> {
    /// The answer of everybody.
    pub fn all(answer: T) -> Self {
        Self { answer, unreachable: Vec::new() }
    }

    /// The same for another answer.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Reached<U> {
        Reached { answer: change(self.answer), unreachable: self.unreachable }
    }

    /// The unreachable nodes as text, separated by commas; `None` when there are none.
    pub fn named(&self) -> Option<String> {
        let names: Vec<&str> = self.unreachable.iter().map(NodeId::as_str).collect();
        (!names.is_empty()).then(|| names.join(","))
    }
}

/// A backend instance, as its node tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToldBackend {
    /// Its name.
    pub instance: InstanceName,
    /// Its type. That of a later version may be unknown here.
    pub kind: String,
}

/// What a node says of itself when it opens its link: bounded and printable, and not proven.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Its version of Prism.
    pub version: String,
    /// Where it serves the data plane, `host:port`; empty when it has not said.
    pub data_endpoint: String,
    /// The backends that it serves.
    pub backends: Vec<ToldBackend>,
}

impl Told {
    /// Those of its backends whose type is known here.
    pub fn instances(&self) -> impl Iterator<Item = BackendInstance> {
        self.backends.iter().filter_map(|told| {
            BackendType::by_name(&told.kind).map(|kind| BackendInstance { name: told.instance.clone(), kind })
        })
    }
}

/// A node that has joined, is not revoked and has had a link: it may hold data, linked or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinedNode {
    /// Which.
    pub node: NodeId,
    /// What it said last.
    pub told: Told,
}

/// What the admin plane may ask of the data nodes. Whoever is unreachable is named, and learns what it missed when it is back.
#[async_trait]
pub trait Nodes: Send + Sync + 'static {
    /// Which process this is.
    fn own_id(&self) -> &NodeId;

    /// Whether there is such a node, reachable or not.
    fn knows(&self, node: &NodeId) -> bool;

    /// Waits until every reachable node serves by the snapshot with this revision or a later one, at most a second.
    async fn caught_up(&self, revision: u64);

    /// Has the control plane told what every node has to report, so that what is read next is up to date. Who does not in a
    /// moment is named.
    async fn report(&self) -> Result<Reached<()>>;

    /// The same for the data plane of this process only.
    async fn report_own(&self) -> Result<()>;

    /// The backend instances of the nodes that have joined, each once: of a node that is away, those that it said last. `None`
    /// while no node has ever had a link.
    fn catalog(&self) -> Option<Catalog>;

    /// Checks what only the drivers can tell of a config without any effect, on the nodes that serve its instance. The refusal of
    /// this process is the answer, and that of a node when no other has accepted; otherwise a node that refuses is named.
    /// UNAVAILABLE `NODES_UNREACHABLE` when a driver has to look and every node that could is away.
    async fn check_config(&self, config: &Config) -> Result<Reached<()>>;

    /// Makes what an accepted config needs on the nodes that serve its instance; may be repeated.
    async fn prepare_config(&self, config: &Config) -> Result<Reached<()>>;

    /// Ends a session that the store has ended (`force`) or marked, on the node that has it.
    async fn terminate(&self, id: SessionId, force: bool, reason: &str) -> Reached<Termination>;

    /// Drains the sessions in `scope` on every node that it covers.
    async fn drain(&self, scope: &DrainScope, timeout: Duration, force: bool) -> Reached<DrainOutcome>;

    /// What [`Nodes::drain`] would find.
    async fn drain_preview(&self, scope: &DrainScope) -> Reached<DrainOutcome>;

    /// Request figures over `window` of all nodes together.
    async fn figures(&self, window: Duration) -> Reached<NodeFigures>;

    /// Live figures of a namespace, of all nodes together.
    async fn namespace_figures(&self, namespace: &NamespaceName) -> Reached<NamespaceFigures>;

    /// Checks every backend instance of every node.
    async fn backends(&self) -> Reached<Vec<(NodeId, BackendReport)>>;

    /// Ends every session of a deleted namespace and removes its data: in this process, or the error; and on the nodes that the
    /// control state says have still to. Those that have not are named; [`Nodes::finish_removals`] asks them again.
    async fn remove_namespace(&self, namespace: &NamespaceName) -> Result<Reached<()>>;

    /// Begins to have every node that can be reached remove what it has still to, and waits for none of them.
    fn finish_removals(&self);
}

impl RequestFigures {
    /// Adds those of another node: counts and rates are sums, and of the latencies the slower counts, as percentiles of
    /// several nodes cannot be put together.
    pub fn add(&mut self, other: &Self) {
        self.requests_total = self.requests_total.saturating_add(other.requests_total);
        self.errors_total = self.errors_total.saturating_add(other.errors_total);
        self.requests_per_second += other.requests_per_second;
        self.latency_p50_ms = self.latency_p50_ms.max(other.latency_p50_ms);
        self.latency_p95_ms = self.latency_p95_ms.max(other.latency_p95_ms);
        self.latency_p99_ms = self.latency_p99_ms.max(other.latency_p99_ms);
        self.active_sessions = self.active_sessions.saturating_add(other.active_sessions);
        self.active_streams = self.active_streams.saturating_add(other.active_streams);
    }
}

impl NodeFigures {
    /// Adds those of another node.
    pub fn add(&mut self, other: &Self) {
        self.total.add(&other.total);
        for (namespace, figures) in &other.namespaces {
            self.namespaces.entry(namespace.clone()).or_default().add(figures);
        }
        for (instance, figures) in &other.backends {
            self.backends.entry(instance.clone()).or_default().add(figures);
        }
    }
}

impl NamespaceFigures {
    /// Adds those of another node.
    pub fn add(&mut self, other: &Self) {
        self.storage_bytes_used = self.storage_bytes_used.saturating_add(other.storage_bytes_used);
        self.requests_per_second = self.requests_per_second.saturating_add(other.requests_per_second);
    }
}

impl DrainOutcome {
    /// Adds that of another node.
    pub fn add(&mut self, other: &Self) {
        self.drained = self.drained.saturating_add(other.drained);
        self.remaining = self.remaining.saturating_add(other.remaining);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_nodes_add_up_and_the_slowest_latency_counts() {
        let of = |requests_total, latency_p99_ms| RequestFigures {
            requests_total,
            requests_per_second: 1.5,
            latency_p99_ms,
            active_sessions: 1,
            ..RequestFigures::default()
        };
        let node = |total, name: &str| NodeFigures {
            total,
            namespaces: [(name.to_owned(), total)].into(),
            ..NodeFigures::default()
        };
        let mut sum = node(of(10, 5.0), "a");
        sum.add(&node(of(20, 3.0), "a"));
        sum.add(&node(of(1, 9.0), "b"));
        assert_eq!(sum.total, RequestFigures { requests_per_second: 4.5, active_sessions: 3, ..of(31, 9.0) });
        assert_eq!(sum.namespaces["a"].requests_total, 30);
        assert_eq!(sum.namespaces["b"].requests_total, 1);
    }

    #[test]
    fn whoever_was_not_reached_is_named() {
        let node = |name: &str| NodeId::parse("n", name).unwrap();
        assert_eq!(Reached::all(1).named(), None);
        let some = Reached { answer: 1, unreachable: vec![node("a"), node("b")] };
        assert_eq!(some.named().as_deref(), Some("a,b"));
    }
}

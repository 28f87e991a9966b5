//! The control state of the simulation: in memory, and durable across the controller's crashes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use prism_core::config::Config;
use prism_core::control::{
    ClientCredential, ClientIdentity, ClusterState, ControlPlane, Maintenance, Namespace, NamespaceStatus, Quota,
    Removal, Snapshot,
};
use prism_core::nodes::{JoinedNode, Told};
use prism_core::secret::{Random, SecretKind, SecretProof, Token};
use prism_core::session::{AdmitRequest, EndReason, SessionFigures, SessionId, SessionRecord, SessionReport};
use prism_core::{Clock, ConfigName, Error, NamespaceName, NodeId, Result, UnixMillis};
use tokio::sync::watch;

use crate::world::{Dice, MAX_RPS, MAX_SESSIONS, SHARING, namespace};

/// The longest time that a transaction takes, before and after its commit.
const PAUSE: u64 = 15;
/// How long a session may live.
pub const MAX_AGE: Duration = Duration::from_hours(1);

#[derive(Default)]
struct Tables {
    live: BTreeMap<SessionId, (NodeId, SessionRecord)>,
    ended: BTreeMap<SessionId, EndReason>,
    nodes: BTreeMap<SessionId, NodeId>,
    removals: BTreeMap<NodeId, Removal>,
    moved: BTreeSet<SessionId>,
    moved_from: BTreeSet<NodeId>,
    next: u64,
}

/// The control state.
pub struct Control {
    clock: Clock,
    dice: Dice,
    tables: Mutex<Tables>,
    snapshot: watch::Sender<Arc<Snapshot>>,
}

impl Control {
    pub fn new(clock: Clock, dice: Dice) -> Arc<Self> {
        let quota = Quota { max_sessions: MAX_SESSIONS as i64, max_rps: MAX_RPS as i64, ..Quota::default() };
        let of = Namespace { name: namespace(), status: NamespaceStatus::Active, quota, generation: 1 };
        let snapshot =
            Snapshot { revision: 1, namespaces: [(namespace(), Arc::new(of))].into(), ..Snapshot::default() };
        Arc::new(Self { clock, dice, tables: Mutex::default(), snapshot: watch::Sender::new(Arc::new(snapshot)) })
    }

    async fn pause(&self) {
        tokio::time::sleep(Duration::from_millis(self.dice.below(PAUSE))).await;
    }

    /// A controller that starts counts its revisions anew.
    pub fn restart(&self) {
        self.snapshot.send_modify(|snapshot| {
            let mut next = Snapshot::clone(snapshot);
            next.revision = 1;
            *snapshot = Arc::new(next);
        });
    }

    /// Begins or ends maintenance; returns the revision.
    pub fn maintain(&self, message: Option<String>) -> u64 {
        let started_at = self.clock.now();
        let maintenance =
            message.map(|message| Arc::new(Maintenance { message, started_at, ends_at: None, allow_reads: true }));
        let mut revision = 0;
        self.snapshot.send_modify(|snapshot| {
            let mut next = Snapshot::clone(snapshot);
            next.revision += 1;
            next.maintenance = maintenance;
            revision = next.revision;
            *snapshot = Arc::new(next);
        });
        revision
    }

    pub fn published(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.borrow())
    }

    pub fn live(&self) -> Vec<SessionId> {
        self.tables.lock().unwrap().live.keys().copied().collect()
    }

    pub fn live_of(&self, node: &NodeId) -> BTreeSet<SessionId> {
        let tables = self.tables.lock().unwrap();
        tables.live.iter().filter(|(_, (of, _))| of == node).map(|(id, _)| *id).collect()
    }

    pub fn requests_of(&self, id: SessionId) -> Option<i64> {
        self.tables.lock().unwrap().live.get(&id).map(|(_, record)| record.figures.requests_total)
    }

    /// Whether it has been on more nodes than one.
    pub fn has_moved(&self, id: SessionId) -> bool {
        self.tables.lock().unwrap().moved.contains(&id)
    }

    pub fn is_live(&self, id: SessionId) -> bool {
        self.tables.lock().unwrap().live.contains_key(&id)
    }

    /// What an operator does first: with `force` the session ends, without it is marked.
    pub async fn terminate(&self, id: SessionId, force: bool) {
        self.pause().await;
        let mut tables = self.tables.lock().unwrap();
        if force {
            if tables.live.remove(&id).is_some() {
                tables.ended.insert(id, EndReason::Terminated);
            }
        } else if let Some((_, record)) = tables.live.get_mut(&id) {
            record.terminating = Some("enough".to_owned());
        }
    }

    /// A namespace was deleted that these nodes have data of.
    pub fn delete(&self, nodes: &[NodeId]) {
        let removal = Removal { namespace: namespace(), generation: 1 };
        self.tables.lock().unwrap().removals.extend(nodes.iter().map(|node| (node.clone(), removal.clone())));
    }

    /// Who has still to remove data.
    pub fn has_to_remove(&self) -> Vec<NodeId> {
        self.tables.lock().unwrap().removals.keys().cloned().collect()
    }

    fn apply(&self, node: Option<&NodeId>, report: &SessionReport) {
        let mut tables = self.tables.lock().unwrap();
        if let Some((of, record)) = tables.live.get_mut(&report.id)
            && node.is_none_or(|node| node == of)
        {
            record.last_activity = record.last_activity.max(report.last_activity);
            record.figures.requests_total = record.figures.requests_total.max(report.figures.requests_total);
        }
    }
}

#[async_trait]
impl ControlPlane for Control {
    fn snapshot(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.subscribe()
    }

    async fn authenticate_client(&self, _: ClientCredential<'_>) -> Result<ClientIdentity> {
        Err(Error::unauthenticated("NO", "not in this simulation"))
    }

    async fn config_version(&self, _: &ConfigName, _: &str) -> Result<Option<Arc<Config>>> {
        Ok(None)
    }

    async fn admit_session(&self, request: AdmitRequest) -> Result<(SessionRecord, Token)> {
        self.pause().await;
        let secret = Random::system().secret(SecretKind::Session);
        let record = {
            let mut tables = self.tables.lock().unwrap();
            if tables.live.len() >= MAX_SESSIONS {
                return Err(Error::precondition("FULL", "max_sessions"));
            }
            tables.next += 1;
            let id = SessionId::from_bytes(&u128::from(tables.next).to_be_bytes()).unwrap();
            let now = self.clock.now();
            let record = SessionRecord {
                id,
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
                expires_at: now + MAX_AGE,
                last_activity: now,
                terminating: None,
                figures: SessionFigures::default(),
            };
            tables.live.insert(id, (request.node.clone(), record.clone()));
            tables.nodes.insert(id, request.node);
            record
        };
        self.pause().await;
        Ok((record, secret.token))
    }

    async fn live_sessions(&self, node: &NodeId) -> Result<Vec<SessionRecord>> {
        self.pause().await;
        let now = self.clock.now();
        let mut guard = self.tables.lock().unwrap();
        let tables = &mut *guard;
        let over: Vec<SessionId> = tables
            .live
            .iter()
            .filter(|(_, (of, record))| of == node && record.terminating.is_some())
            .map(|(id, _)| *id)
            .collect();
        for id in over {
            tables.live.remove(&id);
            tables.ended.insert(id, EndReason::Terminated);
        }
        let mut records = Vec::new();
        for (of, record) in tables.live.values_mut().filter(|(of, _)| of == node) {
            debug_assert_eq!(of, node);
            record.last_activity = now;
            records.push(record.clone());
        }
        Ok(records)
    }

    async fn extend_session(&self, id: SessionId, expires_at: UnixMillis) -> Result<()> {
        self.pause().await;
        if let Some((_, record)) = self.tables.lock().unwrap().live.get_mut(&id) {
            record.expires_at = expires_at;
        }
        Ok(())
    }

    async fn end_session(&self, last: SessionReport, reason: EndReason) -> Result<()> {
        self.pause().await;
        self.apply(None, &last);
        {
            let mut tables = self.tables.lock().unwrap();
            if tables.live.remove(&last.id).is_some() {
                tables.ended.insert(last.id, reason);
            }
        }
        self.pause().await;
        Ok(())
    }

    async fn report(&self, reports: Vec<SessionReport>) -> Result<()> {
        for report in &reports {
            self.apply(None, report);
        }
        Ok(())
    }

    async fn resolve_session(&self, _: &SecretProof, _: &NodeId) -> Result<Option<SessionRecord>> {
        Ok(None)
    }
}

#[async_trait]
impl ClusterState for Control {
    async fn held_sessions(&self, node: &NodeId) -> Result<Vec<SessionRecord>> {
        self.pause().await;
        let records: Vec<SessionRecord> = {
            let tables = self.tables.lock().unwrap();
            tables.live.values().filter(|(of, _)| of == node).map(|(_, record)| record.clone()).collect()
        };
        // What is committed between the look and the answer must not be lost.
        self.pause().await;
        Ok(records)
    }

    async fn serving_nodes(&self) -> Result<Vec<NodeId>> {
        let nodes: BTreeSet<NodeId> = self.tables.lock().unwrap().live.values().map(|(node, _)| node.clone()).collect();
        Ok(nodes.into_iter().collect())
    }

    async fn sharing_nodes(&self) -> Result<Vec<NodeId>> {
        let tables = self.tables.lock().unwrap();
        let terminated = tables.ended.iter().filter(|(_, reason)| **reason == EndReason::Terminated);
        let terminated = terminated.filter_map(|(id, _)| tables.nodes.get(id));
        let live = tables.live.values().map(|(node, _)| node);
        let nodes: BTreeSet<NodeId> = live.chain(terminated).chain(&tables.moved_from).cloned().collect();
        Ok(nodes.into_iter().collect())
    }

    async fn joined_nodes(&self) -> Result<Vec<JoinedNode>> {
        let nodes: BTreeSet<NodeId> = self.tables.lock().unwrap().nodes.values().cloned().collect();
        Ok(nodes.into_iter().map(|node| JoinedNode { node, told: Told::default() }).collect())
    }

    async fn removals(&self, namespace: &NamespaceName) -> Result<Vec<(NodeId, Removal)>> {
        let tables = self.tables.lock().unwrap();
        let removals = tables.removals.iter().filter(|(_, removal)| removal.namespace == *namespace);
        Ok(removals.map(|(node, removal)| (node.clone(), removal.clone())).collect())
    }

    async fn removals_of(&self, node: &NodeId) -> Result<Vec<Removal>> {
        Ok(self.tables.lock().unwrap().removals.get(node).cloned().into_iter().collect())
    }

    async fn removed(&self, node: &NodeId, _: &Removal) -> Result<()> {
        self.tables.lock().unwrap().removals.remove(node);
        Ok(())
    }

    async fn report_of(&self, node: &NodeId, reports: Vec<SessionReport>) -> Result<()> {
        self.pause().await;
        for report in &reports {
            self.apply(Some(node), report);
        }
        Ok(())
    }

    async fn extend_of(&self, node: &NodeId, id: SessionId, expires_at: UnixMillis) -> Result<()> {
        if self.node_of(id).await?.as_ref() == Some(node) { self.extend_session(id, expires_at).await } else { Ok(()) }
    }

    async fn end_of(&self, node: &NodeId, last: SessionReport, reason: EndReason) -> Result<()> {
        if self.node_of(last.id).await?.as_ref() == Some(node) { self.end_session(last, reason).await } else { Ok(()) }
    }

    async fn node_of(&self, id: SessionId) -> Result<Option<NodeId>> {
        Ok(self.tables.lock().unwrap().nodes.get(&id).cloned())
    }

    async fn session_of(&self, token: &SecretProof) -> Result<Option<(NodeId, SessionRecord)>> {
        self.pause().await;
        let found = {
            let tables = self.tables.lock().unwrap();
            let mut live = tables.live.values();
            live.find(|(_, record)| record.token_id == token.id && record.token_hash.is_of(token)).cloned()
        };
        // Others may change it between the look and what follows from it.
        self.pause().await;
        Ok(found)
    }

    fn seal(&self, words: &[u8]) -> Vec<u8> {
        crc32fast::hash(&[b"key", words].concat()).to_be_bytes().to_vec()
    }

    fn has_sealed(&self, words: &[u8], seal: &[u8]) -> bool {
        self.seal(words) == seal
    }

    async fn move_session(&self, id: SessionId, from: &NodeId, to: &NodeId) -> Result<bool> {
        self.pause().await;
        let moved = {
            let mut guard = self.tables.lock().unwrap();
            let tables = &mut *guard;
            let of = tables.live.get_mut(&id).filter(|(of, _)| of == from);
            let moved = of.is_some();
            if let Some((of, record)) = of {
                record.last_activity = record.last_activity.max(self.clock.now());
                assert!(
                    SHARING.contains(&from.as_str()) && SHARING.contains(&to.as_str()),
                    "{id} goes from {from} to {to}"
                );
                *of = to.clone();
                tables.nodes.insert(id, to.clone());
                tables.moved.insert(id);
                tables.moved_from.insert(from.clone());
            }
            moved
        };
        self.pause().await;
        Ok(moved)
    }
}

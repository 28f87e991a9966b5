//! A data plane without calls: sessions, a bucket, and what the link asks of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_trait::async_trait;
use prism_core::config::{AccessPattern, BackendType, Catalog, Config};
use prism_core::control::{
    BackendReport, ControlPlane, DataNode, DrainOutcome, DrainScope, Health, NamespaceDemand, NamespaceFigures,
    NodeFigures, RequestFigures, Termination,
};
use prism_core::rate::TokenBucket;
use prism_core::session::{EndReason, SessionFigures, SessionId, SessionRecord, SessionReport};
use prism_core::{Clock, NamespaceName, NodeId, Result, UnixMillis};
use prism_link::NodeLink;
use prism_link::bounds::{MAX_BACKENDS, MAX_ITEMS, MAX_REPORT_TEXT};

use crate::world::{Dice, namespace};

/// Sessions end when nothing was heard of them for so long.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Clone)]
struct Session {
    record: SessionRecord,
    last_activity: UnixMillis,
    requests: i64,
    reported: i64,
    terminating: bool,
}

#[derive(Default)]
struct Sessions {
    live: BTreeMap<SessionId, Session>,
    /// Terminations that were quicker than their session.
    early: BTreeMap<SessionId, bool>,
    /// Ends that the link did not take.
    unsaved: Vec<(SessionReport, EndReason)>,
}

/// A data plane.
pub struct Plane {
    node: NodeId,
    clock: Clock,
    dice: Dice,
    link: Weak<NodeLink>,
    me: Weak<Plane>,
    sessions: Mutex<Sessions>,
    bucket: TokenBucket,
    share: AtomicU64,
    asked: AtomicU64,
    origin: (std::time::Instant, tokio::time::Instant),
}

impl Plane {
    /// Takes up what the link has.
    pub async fn start(node: NodeId, clock: Clock, dice: Dice, link: &Arc<NodeLink>) -> Arc<Self> {
        let origin = std::time::Instant::now();
        let plane = Arc::new_cyclic(|me| Self {
            node: node.clone(),
            clock,
            dice,
            link: Arc::downgrade(link),
            me: me.clone(),
            sessions: Mutex::default(),
            bucket: TokenBucket::since(origin, 0, 0),
            share: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            origin: (origin, tokio::time::Instant::now()),
        });
        plane.bucket.set_share(0, plane.now());
        for record in link.live_sessions(&node).await.unwrap() {
            plane.take_up(record).await;
        }
        plane
    }

    /// Simulated time for a bucket.
    fn now(&self) -> std::time::Instant {
        self.origin.0 + self.origin.1.elapsed()
    }

    pub fn held(&self) -> BTreeSet<SessionId> {
        self.sessions.lock().unwrap().live.keys().copied().collect()
    }

    /// What it may serve, in thousandths of an operation per second: nothing without a session.
    pub fn share(&self) -> u64 {
        if self.held().is_empty() { 0 } else { self.share.load(Ordering::Relaxed) }
    }

    /// Adds a session that was admitted; `false` when it was terminated meanwhile.
    pub fn enrol(&self, record: SessionRecord) -> bool {
        let mut sessions = self.sessions.lock().unwrap();
        let verdict = sessions.early.remove(&record.id);
        if verdict == Some(true) {
            return false;
        }
        let session = Session {
            last_activity: record.last_activity,
            requests: record.figures.requests_total,
            reported: record.figures.requests_total,
            terminating: record.terminating.is_some() || verdict.is_some(),
            record,
        };
        let (id, terminating) = (session.record.id, session.terminating);
        sessions.live.entry(id).or_insert(session);
        drop(sessions);
        if terminating {
            self.settle(id);
        }
        true
    }

    /// An operation: whether it was served.
    pub fn operate(&self, id: SessionId) -> bool {
        let now = self.clock.now();
        let mut sessions = self.sessions.lock().unwrap();
        let Some(session) = sessions.live.get_mut(&id).filter(|session| !session.terminating) else { return false };
        session.last_activity = now;
        self.asked.fetch_add(1, Ordering::Relaxed);
        if self.bucket.take(self.now()).is_err() {
            return false;
        }
        session.requests += 1;
        true
    }

    /// Ends a session for its client; whether that was acknowledged.
    pub async fn close(&self, id: SessionId) -> bool {
        let Some(last) = self.last(id) else { return false };
        let Some(link) = self.link.upgrade() else { return false };
        let ended = link.end_session(last, EndReason::Closed).await.is_ok();
        if ended {
            self.sessions.lock().unwrap().live.remove(&id);
        }
        ended
    }

    fn last(&self, id: SessionId) -> Option<SessionReport> {
        self.sessions.lock().unwrap().live.get(&id).map(report)
    }

    /// A gentle termination comes to its end when what runs is done.
    fn settle(&self, id: SessionId) {
        let Some(plane) = self.me.upgrade() else { return };
        let wait = Duration::from_millis(self.dice.below(2000));
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            plane.end(id, EndReason::Terminated).await;
        });
    }

    async fn end(&self, id: SessionId, reason: EndReason) {
        let Some(last) = self.last(id) else { return };
        self.sessions.lock().unwrap().live.remove(&id);
        let Some(link) = self.link.upgrade() else { return };
        if link.end_session(last.clone(), reason).await.is_err() {
            self.sessions.lock().unwrap().unsaved.push((last, reason));
        }
    }

    /// What a data plane does every second or so. Returns the sessions that have expired, and the reports that were
    /// acknowledged.
    pub async fn sweep(&self) -> (Vec<SessionId>, Vec<SessionReport>) {
        let now = self.clock.now();
        let over: Vec<SessionId> = {
            let sessions = self.sessions.lock().unwrap();
            let over = |session: &&Session| {
                now.since(session.last_activity) >= IDLE_TIMEOUT || now >= session.record.expires_at
            };
            sessions.live.values().filter(over).map(|session| session.record.id).collect()
        };
        for id in &over {
            self.end(*id, EndReason::Expired).await;
        }
        let unsaved = std::mem::take(&mut self.sessions.lock().unwrap().unsaved);
        for (last, reason) in unsaved {
            let Some(link) = self.link.upgrade() else { break };
            if link.end_session(last.clone(), reason).await.is_err() {
                self.sessions.lock().unwrap().unsaved.push((last, reason));
            }
        }
        let reports = self.take_reports();
        let acknowledged = match self.link.upgrade() {
            Some(link) if !reports.is_empty() => link.report(reports.clone()).await.is_ok(),
            _ => false,
        };
        (over, if acknowledged { reports } else { Vec::new() })
    }
}

fn report(session: &Session) -> SessionReport {
    let figures = SessionFigures { requests_total: session.requests, ..SessionFigures::default() };
    SessionReport { id: session.record.id, last_activity: session.last_activity, figures }
}

/// Figures of as many namespaces and backends as there may be, with the longest names.
pub fn most_figures() -> NodeFigures {
    let figures = RequestFigures {
        requests_total: 1_000_000_000,
        latency_p99_ms: 12.5,
        active_sessions: 100,
        ..RequestFigures::default()
    };
    NodeFigures {
        total: figures,
        namespaces: (0..=MAX_ITEMS).map(|number| (format!("{number:063}"), figures)).collect(),
        backends: (0..MAX_BACKENDS).map(|number| ((BackendType::Memory, format!("m{number:062}")), figures)).collect(),
    }
}

/// As many backends as there may be, which have much to say.
pub fn most_backends() -> Vec<BackendReport> {
    let report = |number| BackendReport {
        kind: BackendType::Memory,
        instance: format!("m{number:062}"),
        endpoint: "e".repeat(MAX_REPORT_TEXT),
        health: Health::Degraded,
        message: "m".repeat(MAX_REPORT_TEXT),
        checked_at: UnixMillis(1),
        active_connections: 1,
        pool_size: 2,
        idle_connections: 1,
        cpu_percent: 1.0,
        memory_percent: 1.0,
        requests_per_second: 1,
        avg_latency_ms: 1.0,
        patterns: AccessPattern::ALL.to_vec(),
    };
    (0..MAX_BACKENDS).map(report).collect()
}

#[async_trait]
impl DataNode for Plane {
    fn node_id(&self) -> &NodeId {
        &self.node
    }

    async fn caught_up(&self, _: u64) {}

    fn take_reports(&self) -> Vec<SessionReport> {
        let mut sessions = self.sessions.lock().unwrap();
        let changed = sessions.live.values_mut().filter(|session| session.requests != session.reported);
        changed
            .map(|session| {
                session.reported = session.requests;
                report(session)
            })
            .collect()
    }

    fn catalog(&self) -> Catalog {
        Catalog::default()
    }

    async fn check_config(&self, _: &Config) -> Result<()> {
        Ok(())
    }

    async fn prepare_config(&self, _: &Config) -> Result<()> {
        Ok(())
    }

    async fn terminate(&self, id: SessionId, force: bool, _: &str) -> Termination {
        let settle = {
            let mut sessions = self.sessions.lock().unwrap();
            if !sessions.live.contains_key(&id) {
                let known = sessions.early.entry(id).or_insert(force);
                *known |= force;
                return Termination::default();
            }
            if force {
                sessions.live.remove(&id);
                // As the session ends here, nothing of it may be handed over any more.
                sessions.unsaved.retain(|(last, _)| last.id != id);
                false
            } else {
                sessions.live.get_mut(&id).is_some_and(|session| !std::mem::replace(&mut session.terminating, true))
            }
        };
        if settle {
            self.settle(id);
        }
        Termination::default()
    }

    async fn drain(&self, _: &DrainScope, _: Duration, _: bool) -> DrainOutcome {
        DrainOutcome::default()
    }

    fn drain_preview(&self, _: &DrainScope) -> DrainOutcome {
        DrainOutcome::default()
    }

    fn figures(&self, _: Duration) -> NodeFigures {
        most_figures()
    }

    async fn namespace_figures(&self, _: &NamespaceName) -> NamespaceFigures {
        NamespaceFigures::default()
    }

    async fn backends(&self) -> Vec<BackendReport> {
        most_backends()
    }

    async fn remove_namespace(&self, _: &NamespaceName) -> Result<()> {
        Ok(())
    }

    async fn take_up(&self, record: SessionRecord) {
        tokio::time::sleep(Duration::from_millis(self.dice.below(10))).await;
        self.enrol(record);
    }

    async fn let_go(&self, id: SessionId, _: &str) {
        self.sessions.lock().unwrap().live.remove(&id);
    }

    async fn set_revoked(&self, revoked: bool) {
        if revoked {
            self.sessions.lock().unwrap().live.clear();
        }
    }

    fn extend(&self, id: SessionId, expires_at: UnixMillis) {
        if let Some(session) = self.sessions.lock().unwrap().live.get_mut(&id) {
            session.record.expires_at = session.record.expires_at.max(expires_at);
        }
    }

    fn demand(&self) -> Vec<NamespaceDemand> {
        if self.sessions.lock().unwrap().live.is_empty() {
            return Vec::new();
        }
        vec![NamespaceDemand { namespace: namespace(), asked: self.asked.load(Ordering::Relaxed) }]
    }

    fn share_rates(&self, _: bool) {
        self.share.store(0, Ordering::Relaxed);
        self.bucket.set_share(0, self.now());
    }

    fn share(&self, _: &NamespaceName, millis: u64) {
        self.share.store(millis, Ordering::Relaxed);
        self.bucket.set_share(millis, self.now());
    }
}

//! Drains: no new sessions in scope, those that are there end as soon as nothing runs (contract §8 and §9 "drain").

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prism_core::control::{DrainOutcome, DrainScope, Snapshot};
use prism_core::session::SessionId;
use prism_core::{NamespaceName, NodeId};

use crate::cause::{EndCause, RETRY};
use crate::plane::Plane;
use crate::session::Session;

/// How often a drain looks for sessions that have settled.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// After how long it tries again to end sessions that the control plane could not end.
const RETRY_EVERY: Duration = Duration::from_millis(250);

/// How long a forced drain waits for the control plane to take the ends of what it cut; they are saved in any case.
const SAVED_WITHIN: Duration = Duration::from_secs(5);

/// Drains in progress on this node.
#[derive(Default)]
pub struct Drains(Mutex<Vec<Running>>);

struct Running {
    number: u64,
    scope: DrainScope,
    until: Instant,
}

impl Drains {
    /// Whether a drain on this node covers sessions of `namespace`.
    pub fn covers(&self, namespace: &NamespaceName, node: &NodeId) -> bool {
        self.running().iter().any(|drain| drain.scope.covers(namespace, node))
    }

    /// After how long a session of `namespace` may be admitted again, while a drain here or in `snapshot` covers it.
    pub fn covering(&self, namespace: &NamespaceName, node: &NodeId, snapshot: &Snapshot) -> Option<Duration> {
        let now = Instant::now();
        let here =
            self.running().iter().filter(|drain| drain.scope.covers(namespace, node)).map(|drain| drain.until).max();
        let here = here.map(|until| until.saturating_duration_since(now).max(Duration::from_secs(1)));
        let elsewhere = snapshot.drains.iter().any(|scope| scope.covers(namespace, node)).then_some(RETRY);
        here.or(elsewhere)
    }

    fn running(&self) -> std::sync::MutexGuard<'_, Vec<Running>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, scope: &DrainScope, until: Instant) -> u64 {
        let mut running = self.running();
        let number = running.iter().map(|drain| drain.number).max().unwrap_or(0) + 1;
        running.push(Running { number, scope: scope.clone(), until });
        number
    }

    fn end(&self, number: u64) {
        self.running().retain(|drain| drain.number != number);
    }
}

/// Keeps a drain in force until it is dropped; sessions that are still here then are as they were.
struct Guard<'a> {
    plane: &'a Plane,
    number: u64,
    scope: &'a DrainScope,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.plane.drains.end(self.number);
        for session in self.plane.gate.sessions.in_scope(self.scope, &self.plane.node) {
            self.plane.undrain(&session);
        }
    }
}

impl Plane {
    /// Drains the sessions in `scope` until all are gone or `timeout` has passed; `force` cuts what is left then. A session whose
    /// end was begun in time counts as drained: it ends, also when the control plane takes longer.
    pub async fn drain(self: &Arc<Self>, scope: &DrainScope, timeout: Duration, force: bool) -> DrainOutcome {
        let until = Instant::now() + timeout;
        let number = self.drains.begin(scope, until);
        let guard = Guard { plane: self, number, scope };
        let mut seen = HashSet::new();
        let mut retry_at = Instant::now();
        loop {
            let sessions = self.look(scope, &mut seen);
            if sessions.is_empty() || Instant::now() >= until {
                break;
            }
            let settled = |session: &Arc<Session>| session.running() == 0 && !session.is_ending();
            let settled: Vec<_> = sessions.into_iter().filter(settled).collect();
            if !settled.is_empty() && Instant::now() >= retry_at {
                // The drain's own time bounds the waiting, not the ends: a control plane that hangs must not hold the operator.
                let failed = tokio::time::timeout_at(until.into(), self.end_drained(settled)).await.unwrap_or(0);
                retry_at = Instant::now() + if failed > 0 { RETRY_EVERY } else { Duration::ZERO };
                if failed == 0 {
                    continue;
                }
            }
            tokio::time::sleep(LOOK_EVERY.min(until.saturating_duration_since(Instant::now()))).await;
        }
        let mut left = self.look(scope, &mut seen);
        if force {
            // All are cut at once; only the saving may take its time.
            let ends = self.end_all(std::mem::take(&mut left), &EndCause::Drained);
            let _ = tokio::time::timeout(SAVED_WITHIN, ends).await;
        } else {
            left.retain(|session| !session.is_ending() && !session.has_ended());
        }
        drop(guard);
        DrainOutcome { drained: count(seen.len() - left.len()), remaining: count(left.len()) }
    }

    /// Marks the sessions in scope, those that came meanwhile included.
    fn look(&self, scope: &DrainScope, seen: &mut HashSet<SessionId>) -> Vec<Arc<Session>> {
        let sessions = self.gate.sessions.in_scope(scope, &self.node);
        for session in &sessions {
            session.drain();
            seen.insert(session.id());
        }
        sessions
    }

    /// What a drain of `scope` would find.
    pub fn drain_preview(&self, scope: &DrainScope) -> DrainOutcome {
        let sessions = self.gate.sessions.in_scope(scope, &self.node);
        let remaining = sessions.iter().filter(|session| session.running() > 0).count();
        DrainOutcome { drained: count(sessions.len() - remaining), remaining: count(remaining) }
    }
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

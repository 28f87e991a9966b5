//! What a controller hands over: snapshots, sessions, its time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prism_core::control::Snapshot;
use prism_core::session::{EndReason, SessionId, SessionRecord, SessionReport};
use prism_core::{Result, UnixMillis};
use prism_proto::cluster::v1 as wire;
use tokio::time::Instant;
use wire::node_frame::Frame;

use super::Shared;
use super::connection::{Link, ids};
use super::state::{Event, needs_preparation};
use crate::convert::{Builder, bad};

/// Clocks that differ less from what is known of them are left alone: an answer takes its time.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(1);
/// What streams of a session are told that is not this node's any more when there is a controller again.
const WHILE_AWAY: &str = "it was ended, or goes on on another node, while this node had no controller";

impl Shared {
    /// Takes over the controller's time.
    pub(super) fn set_offset(&self, now_ms: i64) {
        self.offset.store(self.options.clock.now().0.saturating_sub(now_ms), Ordering::Relaxed);
    }

    /// Looks whether one of the clocks was set, by an answer that took `round_trip`.
    pub(super) fn adjust_offset(&self, now_ms: i64, round_trip: Duration) {
        if round_trip > CLOCK_TOLERANCE {
            // On which of the two ways the time was spent, nobody knows.
            return;
        }
        let half = i64::try_from(round_trip.as_millis() / 2).unwrap_or(i64::MAX);
        let offset = self.options.clock.now().0.saturating_sub(now_ms.saturating_add(half));
        if u128::from(offset.abs_diff(self.offset())) > CLOCK_TOLERANCE.as_millis() {
            self.offset.store(offset, Ordering::Relaxed);
        }
    }

    /// Begins a snapshot: a whole one, or changes of the one at `base`.
    pub(super) fn begin_snapshot(&self, base: Option<(u64, u64)>) -> Result<Builder> {
        let memory = self.memory();
        match base {
            None => Ok(Builder::new(None, self.offset())),
            Some(base) if base == memory.state.position => {
                Ok(Builder::new(Some(&memory.state.snapshot), self.offset()))
            }
            Some(_) => Err(bad("changes of a snapshot that this node has not")),
        }
    }

    /// Serves by a snapshot from now on, and tells the controller when the data plane does.
    pub(super) fn publish(self: &Arc<Self>, link: &Arc<Link>, builder: Builder, position: (u64, u64)) {
        let (before, after) = {
            let mut memory = self.memory();
            let before = Arc::clone(&memory.state.snapshot);
            // Numbers of its own, as those of another controller may be smaller.
            let after = Arc::new(builder.finish(before.revision + 1));
            memory.serve_by(Arc::clone(&after));
            memory.state.position = position;
            (before, after)
        };
        self.snapshot.send_replace(Arc::clone(&after));
        self.ready.set(true);
        self.keeper.change();
        // A quota may be new.
        self.demand.notify_one();
        let (shared, link) = (Arc::clone(self), Arc::clone(link));
        tokio::spawn(async move {
            let node = shared.attached().await;
            node.caught_up(after.revision).await;
            let (epoch, revision) = position;
            link.send(Frame::Applied(wire::Applied { epoch, revision })).await;
            shared.follow_up(&before, &after).await;
        });
    }

    /// Makes what new configs need: this node may have been away when they were accepted.
    async fn follow_up(&self, before: &Snapshot, after: &Snapshot) {
        let Some(node) = self.attached_now() else { return };
        for (name, revision) in &after.configs {
            let known = before.configs.get(name).is_some_and(|known| Arc::ptr_eq(known, revision));
            if !known
                && needs_preparation(&revision.config)
                && let Err(error) = node.prepare_config(&revision.config).await
            {
                tracing::warn!(config = %name, %error, "what a config needs could not be made on this node");
            }
        }
    }

    /// Makes the node's sessions those of the controller: `told` are the ones that the controller was told of.
    pub(super) fn reconcile(
        self: &Arc<Self>,
        link: &Arc<Link>,
        told: Vec<SessionId>,
        sessions: wire::Sessions,
    ) -> Result<()> {
        let known: BTreeSet<SessionId> = ids(&sessions.known)?.into_iter().collect();
        let missing = sessions.missing.into_iter().map(|entry| self.received(entry)).collect::<Result<Vec<_>>>()?;
        let gone: Vec<SessionId> = told.into_iter().filter(|id| !known.contains(id)).collect();
        let mut moved: BTreeMap<SessionId, (UnixMillis, Option<String>)> = BTreeMap::new();
        for (id, session) in ids(&sessions.known)?.into_iter().zip(sessions.known) {
            moved.insert(id, (self.here(UnixMillis(session.expires_at_ms)), session.terminating));
        }
        let now = Instant::now();
        let mut taken = Vec::new();
        let mut stays = Vec::new();
        {
            let mut memory = self.memory();
            for id in &gone {
                memory.forget(*id);
            }
            for (id, (expires_at, terminating)) in moved {
                // It may have ended here since.
                let Some(record) = memory.state.held.get_mut(&id) else { continue };
                record.expires_at = record.expires_at.max(expires_at);
                record.terminating.clone_from(&terminating);
                stays.push((id, record.expires_at, terminating));
            }
            for record in missing {
                if memory.hold(record.clone(), now) {
                    taken.push(record);
                }
            }
        }
        self.keeper.change();
        // From here on this end and the other are equal.
        self.link.set(Some(Arc::clone(link)));
        self.is_twin.set(false);
        // Not at its Welcome: only then it looks whether another process has the place.
        self.is_asking.set(false);
        self.outbox.notify_one();
        self.demand.notify_one();
        let shared = Arc::clone(self);
        tokio::spawn(async move { shared.carry_over(gone, stays, taken).await });
        Ok(())
    }

    async fn carry_over(
        &self,
        gone: Vec<SessionId>,
        stays: Vec<(SessionId, UnixMillis, Option<String>)>,
        taken: Vec<SessionRecord>,
    ) {
        let node = self.attached().await;
        for id in gone {
            // It may have come back meanwhile, as another node's that has gone since.
            if self.memory().state.held.contains_key(&id) {
                continue;
            }
            node.let_go(id, WHILE_AWAY).await;
            if let Err(error) = self.keeper.record(Event::Gone(id)).await {
                tracing::warn!(session.id = %id, %error, "the end of a session is not written down yet");
            }
        }
        for (id, expires_at, terminating) in stays {
            node.extend(id, expires_at);
            if let Some(reason) = terminating {
                node.terminate(id, false, &reason).await;
            }
        }
        for record in taken {
            // It may have been terminated on the way here.
            if self.memory().state.held.contains_key(&record.id) {
                node.take_up(record).await;
            }
        }
    }

    /// A session was given to this node.
    pub(super) fn given(&self, record: SessionRecord) {
        self.memory().hold(record, Instant::now());
        self.keeper.change();
    }

    /// A session that was given to this node is served, though nobody waits for it.
    pub(super) fn serve(self: &Arc<Self>, record: SessionRecord) {
        let shared = Arc::clone(self);
        tokio::spawn(async move { shared.carry_over(Vec::new(), Vec::new(), vec![record]).await });
    }

    /// A session that nobody waits for any more is ended again.
    pub(super) fn abandon(self: &Arc<Self>, record: &SessionRecord) {
        let shared = Arc::clone(self);
        let id = record.id;
        let last = SessionReport { id, last_activity: record.last_activity, figures: record.figures };
        tokio::spawn(async move {
            if let Err(error) = shared.end(last, EndReason::Closed).await {
                tracing::warn!(session.id = %id, %error, "a session that nobody waits for is not ended yet");
            }
        });
    }
}

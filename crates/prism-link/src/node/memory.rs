//! What a node remembers, and how it changes.

use std::collections::BTreeMap;
use std::time::Duration;

use prism_core::session::{SessionId, SessionRecord, SessionReport};
use prism_core::{NamespaceName, UnixMillis};
use tokio::time::Instant;

use super::state::State;
use crate::shares::Shares;

/// How long a termination is remembered, for an admission that was on its way.
const VERDICTS: Duration = Duration::from_mins(1);
/// How long a namespace is in the demand without a session: a first one is being opened.
pub const OPENING: Duration = Duration::from_secs(5);

/// What a node remembers.
pub struct Memory {
    /// What is also on disk.
    pub state: State,
    /// When the demand that the shares answer was sent.
    pub shares_since: Option<Instant>,
    /// Namespaces in which a first session is being opened, and since when.
    pub opening: BTreeMap<NamespaceName, Instant>,
    /// Sessions that were terminated a short time ago.
    verdicts: BTreeMap<SessionId, Instant>,
}

impl Memory {
    /// Goes on from what is on disk; the time while the node was down counts for nobody's idleness.
    pub fn new(mut state: State, now: UnixMillis) -> Self {
        for record in state.held.values_mut() {
            record.last_activity = record.last_activity.max(now);
            record.figures.active_streams = 0;
        }
        Self { state, shares_since: None, opening: BTreeMap::new(), verdicts: BTreeMap::new() }
    }

    /// Its shares.
    pub fn shares(&self) -> Shares {
        Shares { by_namespace: self.state.shares.clone(), since: self.shares_since }
    }

    /// Holds a session; `false` when it was terminated, or ended here, before it came.
    pub fn hold(&mut self, record: SessionRecord, now: Instant) -> bool {
        self.verdicts.retain(|_, at| now.saturating_duration_since(*at) < VERDICTS);
        if self.verdicts.contains_key(&record.id) || self.state.ends.contains_key(&record.id) {
            return false;
        }
        self.state.held.insert(record.id, record);
        true
    }

    /// Remembers that a session was terminated, and forgets the session.
    pub fn condemn(&mut self, id: SessionId, now: Instant) {
        self.verdicts.insert(id, now);
        self.state.held.remove(&id);
        self.state.reports.remove(&id);
    }

    /// Takes over what is known of a session now.
    pub fn update(&mut self, report: &SessionReport) {
        if let Some(record) = self.state.held.get_mut(&report.id) {
            record.last_activity = record.last_activity.max(report.last_activity);
            record.figures = report.figures;
        }
    }

    /// Keeps a report that no controller has taken; the newest of each session that is held.
    pub fn keep_report(&mut self, report: SessionReport) {
        // What has ended has told its last figures with its end.
        if self.state.held.contains_key(&report.id) {
            self.state.reports.insert(report.id, report);
        }
    }
}

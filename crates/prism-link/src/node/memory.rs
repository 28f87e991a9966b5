//! What a node remembers, and how it changes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use prism_core::control::Snapshot;
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
    /// Goes on from what is on disk; the time while the node was down counts for nobody's idleness. There is data of the namespaces
    /// in `stored`: where the state does not say of which generation, it may be of any.
    pub fn new(mut state: State, stored: Vec<NamespaceName>, now: UnixMillis) -> Self {
        for name in stored {
            state.spaces.entry(name).or_insert(0);
        }
        for record in state.held.values_mut() {
            record.last_activity = record.last_activity.max(now);
            record.figures.active_streams = 0;
        }
        let (opening, verdicts) = Default::default();
        Self { state, shares_since: None, opening, verdicts }
    }

    /// Serves by another snapshot. A namespace that is new may have data from now on, and one that is newer than another of its
    /// name has the data of that one, until it is removed.
    pub fn serve_by(&mut self, snapshot: Arc<Snapshot>) {
        for (name, namespace) in &snapshot.namespaces {
            if self.state.removed.get(name).is_some_and(|removed| namespace.generation <= *removed) {
                continue;
            }
            self.state.spaces.entry(name.clone()).or_insert(namespace.generation);
        }
        self.state.removed.retain(|name, _| snapshot.namespaces.contains_key(name));
        self.state.snapshot = snapshot;
    }

    /// Whether data of a namespace may be that of a generation after this one only.
    pub fn is_of_later(&self, name: &NamespaceName, generation: i64) -> bool {
        self.state.spaces.get(name).is_some_and(|space| *space > generation)
    }

    /// The data of a namespace was removed, of this generation and those before it. Whether a later one is served.
    pub fn removed(&mut self, name: &NamespaceName, generation: i64) -> bool {
        self.state.spaces.remove(name);
        let served = self.state.snapshot.namespaces.get(name).map(|namespace| namespace.generation);
        match served {
            Some(served) if served > generation => _ = self.state.spaces.insert(name.clone(), served),
            Some(_) => _ = self.state.removed.insert(name.clone(), generation),
            None => {}
        }
        served.is_some_and(|served| served > generation)
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
        self.forget(id);
    }

    /// Forgets a session; it may come back.
    pub fn forget(&mut self, id: SessionId) {
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

#[cfg(test)]
mod tests {
    use prism_core::control::{Namespace, NamespaceStatus, Quota};

    use super::*;

    fn name() -> NamespaceName {
        NamespaceName::parse("n", "orders").unwrap()
    }

    fn snapshot(generation: Option<i64>) -> Arc<Snapshot> {
        let of = |generation| Namespace {
            name: name(),
            status: NamespaceStatus::Active,
            quota: Quota::default(),
            generation,
        };
        let namespaces = generation.map(|generation| (name(), Arc::new(of(generation)))).into_iter().collect();
        Arc::new(Snapshot { namespaces, ..Snapshot::default() })
    }

    fn memory() -> Memory {
        Memory::new(State::default(), Vec::new(), UnixMillis(0))
    }

    #[test]
    fn data_is_of_the_earliest_namespace_of_its_name_until_that_is_removed() {
        let mut memory = memory();
        memory.serve_by(snapshot(Some(10)));
        // It was away while the namespace was deleted and made again.
        memory.serve_by(snapshot(Some(20)));
        assert!(!memory.is_of_later(&name(), 10), "the data of the first has still to go");
        assert!(memory.removed(&name(), 10), "the second needs what its configs are prepared with");
        assert!(memory.is_of_later(&name(), 10), "and what comes now is the second's");
        assert!(!memory.is_of_later(&name(), 20));
    }

    #[test]
    fn a_removal_that_is_told_again_does_not_touch_what_came_since() {
        let mut memory = memory();
        memory.serve_by(snapshot(Some(10)));
        memory.serve_by(snapshot(None));
        memory.removed(&name(), 10);
        memory.serve_by(snapshot(Some(20)));
        assert!(memory.is_of_later(&name(), 10), "a controller restored from a copy tells it again");
        // Also when that controller knows of no namespace any more.
        memory.serve_by(snapshot(None));
        assert!(memory.is_of_later(&name(), 10));
    }

    #[test]
    fn a_removal_may_be_quicker_than_the_snapshot() {
        let mut memory = memory();
        memory.serve_by(snapshot(Some(10)));
        assert!(!memory.removed(&name(), 10), "nothing is prepared for what is gone");
        memory.serve_by(snapshot(Some(10)));
        memory.serve_by(snapshot(None));
        memory.serve_by(snapshot(Some(20)));
        assert!(memory.is_of_later(&name(), 10));
    }

    #[test]
    fn a_removal_that_was_quicker_than_the_snapshot_is_known_after_a_restart() {
        let mut memory = memory();
        memory.serve_by(snapshot(Some(10)));
        memory.removed(&name(), 10);
        let node = prism_core::NodeId::parse("n", "node").unwrap();
        let written = memory.state.encode(&node).unwrap();
        let mut memory = Memory::new(State::decode(&written, &node).unwrap(), Vec::new(), UnixMillis(0));
        memory.serve_by(snapshot(Some(10)));
        memory.serve_by(snapshot(Some(20)));
        assert!(memory.is_of_later(&name(), 10), "a removal that is told again leaves the later one alone");
        assert!(!memory.is_of_later(&name(), 20));
    }

    #[test]
    fn data_of_which_nothing_is_written_down_may_be_of_any_namespace() {
        let mut memory = Memory::new(State::default(), vec![name()], UnixMillis(0));
        memory.serve_by(snapshot(Some(20)));
        assert!(!memory.is_of_later(&name(), 10), "the node may have crashed before it could write it down");
        memory.removed(&name(), 10);
        assert!(memory.is_of_later(&name(), 10));
    }
}

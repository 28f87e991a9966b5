//! The live sessions of this node, by token and by id.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use prism_core::control::DrainScope;
use prism_core::secret::{PresentedSecret, SecretId, SecretProof};
use prism_core::session::SessionId;
use prism_core::{NamespaceName, NodeId};

use crate::session::Session;

/// How long a termination that came before its session is remembered.
const MEMORY: Duration = Duration::from_mins(1);

/// A termination as it arrived.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Whether what runs is cut.
    pub force: bool,
    /// The operator's reason.
    pub reason: String,
}

/// Room for a session that is on its way; given back when it is dropped.
pub struct Place<'a>(&'a Sessions);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.coming.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The live sessions of this node.
#[derive(Default)]
pub struct Sessions {
    by_token: DashMap<SecretId, Arc<Session>>,
    by_id: DashMap<SessionId, Arc<Session>>,
    /// Terminations of sessions that are admitted and not yet here.
    early: DashMap<SessionId, (Verdict, Instant)>,
    /// Sessions that are being admitted.
    coming: AtomicUsize,
}

impl Sessions {
    /// The live session that `presented` proves; costs a lookup, and a hash when the id is known.
    pub fn find(&self, presented: &PresentedSecret<'_>) -> Option<Arc<Session>> {
        let session = self.by_token.get(&presented.id).map(|entry| Arc::clone(entry.value()))?;
        (session.record().token_hash.matches(presented) && !session.has_ended()).then_some(session)
    }

    /// Whether the live session that was proven is here.
    pub fn has(&self, token: &SecretProof) -> bool {
        self.by_token
            .get(&token.id)
            .is_some_and(|session| session.record().token_hash.is_of(token) && !session.has_ended())
    }

    /// The live session with this id.
    pub fn by_id(&self, id: SessionId) -> Option<Arc<Session>> {
        self.by_id.get(&id).map(|entry| Arc::clone(entry.value()))
    }

    /// Adds a session; returns the termination that was quicker than its admission, if there was one.
    pub fn insert(&self, session: &Arc<Session>) -> Option<Verdict> {
        self.by_id.insert(session.id(), Arc::clone(session));
        self.by_token.insert(session.record().token_id, Arc::clone(session));
        self.early.remove(&session.id()).map(|(_, (verdict, _))| verdict)
    }

    /// Removes a session.
    pub fn remove(&self, session: &Session) {
        self.by_token.remove(&session.record().token_id);
        self.by_id.remove(&session.id());
    }

    /// The session that a termination is for; when it is not here the termination waits for it.
    pub fn find_to_terminate(&self, id: SessionId, verdict: &Verdict) -> Option<Arc<Session>> {
        // Remembered before looking, as `insert` looks after adding: one of the two sees the other.
        self.early.insert(id, (verdict.clone(), Instant::now()));
        let found = self.by_id(id);
        if found.is_some() {
            self.early.remove(&id);
        }
        found
    }

    /// Forgets terminations whose session never came.
    pub fn forget_early(&self) {
        self.early.retain(|_, (_, at)| at.elapsed() < MEMORY);
    }

    /// Does something with each live session, one after the other; it must be quick and not touch the sessions' map.
    pub fn for_each(&self, mut act: impl FnMut(&Session)) {
        self.by_id.iter().for_each(|entry| act(entry.value()));
    }

    /// Room for one more session, of `max` live ones and those that are on their way; `None` when there is none.
    pub fn reserve(&self, max: usize) -> Option<Place<'_>> {
        let coming = self.coming.fetch_add(1, Ordering::SeqCst) + 1;
        let place = Place(self);
        (self.by_id.len() + coming <= max).then_some(place)
    }

    /// All live sessions.
    pub fn all(&self) -> Vec<Arc<Session>> {
        self.by_id.iter().map(|entry| Arc::clone(entry.value())).collect()
    }

    /// The live sessions of a namespace.
    pub fn of_namespace(&self, namespace: &NamespaceName) -> Vec<Arc<Session>> {
        self.select(|session| session.namespace().name() == namespace)
    }

    /// The live sessions that a drain on `node` covers.
    pub fn in_scope(&self, scope: &DrainScope, node: &NodeId) -> Vec<Arc<Session>> {
        self.select(|session| scope.covers(session.namespace().name(), node))
    }

    fn select(&self, wanted: impl Fn(&Session) -> bool) -> Vec<Arc<Session>> {
        self.by_id.iter().filter(|entry| wanted(entry.value())).map(|entry| Arc::clone(entry.value())).collect()
    }
}

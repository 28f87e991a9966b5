use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use prism_core::session::SessionId;

use super::group::Group;

/// Sessions with subscriptions to one topic, and the one group in which each gets plain message ids.
///
/// A message has the same place in every group. So that an acknowledgement means the delivery of one of them, a session in
/// several groups gets plain ids in the first only; in the others they end with the group.
#[derive(Default)]
pub(super) struct Members(Mutex<HashMap<SessionId, Member>>);

struct Member {
    /// The group of its plain ids.
    home: Weak<Group>,
    subscriptions: usize,
    /// Those of them in its home.
    at_home: usize,
}

impl Member {
    /// Whether a plain id may still be out.
    fn lives_at_home(&self, session: SessionId) -> bool {
        self.at_home > 0 || self.home.upgrade().is_some_and(|home| home.holds_plain(session))
    }
}

impl Members {
    /// Has `session` join `group`: `join` is told whether its ids are plain, and `None` from it is no subscription.
    pub(super) fn enter<T>(
        &self,
        session: SessionId,
        group: &Arc<Group>,
        join: impl FnOnce(bool) -> Option<T>,
    ) -> Option<T> {
        let mut members = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let member = members.get(&session).filter(|member| member.lives_at_home(session));
        let plain = member.is_none_or(|member| std::ptr::eq(member.home.as_ptr(), Arc::as_ptr(group)));
        let joined = join(plain)?;
        let member =
            members.entry(session).or_insert(Member { home: Arc::downgrade(group), subscriptions: 0, at_home: 0 });
        member.subscriptions += 1;
        if plain {
            member.home = Arc::downgrade(group);
            member.at_home += 1;
        }
        Some(joined)
    }

    /// A subscription of `session` is over; `plain` as it was told.
    pub(super) fn leave(&self, session: SessionId, plain: bool) {
        let mut members = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(member) = members.get_mut(&session) else { return };
        member.subscriptions -= 1;
        member.at_home -= usize::from(plain);
        if member.subscriptions == 0 && !member.lives_at_home(session) {
            members.remove(&session);
        }
    }

    /// Forgets sessions that have no subscription and hold nothing.
    pub(super) fn forget_idle(&self) {
        let mut members = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        members.retain(|session, member| member.subscriptions > 0 || member.lives_at_home(*session));
    }
}

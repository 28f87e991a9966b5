//! What may happen in which state: one pure function for all of contract §8 and §9 on drain, maintenance, namespace status and
//! the end of sessions.

use prism_core::control::NamespaceStatus;

/// What an RPC is to the decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// CreateSession.
    Open,
    /// GetSession, RefreshSession.
    Session,
    /// Heartbeat, CloseSession.
    Life,
    /// Acknowledge, Commit, Unsubscribe.
    Settle,
    /// What maintenance with `allow_reads` keeps.
    Read,
    /// Seek.
    Seek,
    /// What a READ_ONLY namespace refuses.
    Write,
    /// ConfigService.
    Catalog,
}

impl Act {
    /// Whether it is an operation on data: counts as running, and against `max_rps`.
    pub fn is_operation(self) -> bool {
        matches!(self, Self::Settle | Self::Read | Self::Seek | Self::Write)
    }
}

/// What maintenance stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Freeze {
    /// Nothing: there is no maintenance.
    Nothing,
    /// All but reads.
    AllButReads,
    /// Everything new.
    All,
}

/// Why a session takes nothing new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// It stays.
    No,
    /// A drain covers it.
    Draining,
    /// Its client has closed it, and something is still running.
    Closing,
    /// An operator has terminated it gently, and something is still running.
    Terminating,
}

/// Everything that the decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct State {
    /// The node shuts down.
    pub node_leaving: bool,
    /// Maintenance of the gateway and the namespace together.
    pub freeze: Freeze,
    /// Status of the namespace.
    pub namespace: NamespaceStatus,
    /// Whether the session is on its way out.
    pub leaving: Leaving,
}

/// Why something is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The node shuts down.
    NodeLeaving,
    /// Maintenance.
    Maintenance,
    /// The namespace is SUSPENDED.
    Suspended,
    /// The namespace is READ_ONLY.
    ReadOnly,
    /// The session is EXPIRING by a drain or a gentle termination.
    Draining,
    /// The session is closing.
    Closing,
}

/// Whether `act` is refused in `state`, in the order of architecture law 3.
pub fn refuse(act: Act, state: State) -> Option<Refusal> {
    let finishes = matches!(act, Act::Life | Act::Settle);
    if state.node_leaving && !finishes {
        return Some(Refusal::NodeLeaving);
    }
    let frozen = match state.freeze {
        Freeze::Nothing => false,
        Freeze::AllButReads => !finishes && act != Act::Read,
        Freeze::All => !finishes,
    };
    if frozen {
        return Some(Refusal::Maintenance);
    }
    match state.namespace {
        NamespaceStatus::Suspended if act != Act::Life => return Some(Refusal::Suspended),
        NamespaceStatus::ReadOnly if act == Act::Write => return Some(Refusal::ReadOnly),
        _ => {}
    }
    match state.leaving {
        Leaving::No => None,
        _ if finishes => None,
        Leaving::Draining | Leaving::Terminating => Some(Refusal::Draining),
        Leaving::Closing => Some(Refusal::Closing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACTS: [Act; 8] =
        [Act::Open, Act::Session, Act::Life, Act::Settle, Act::Read, Act::Seek, Act::Write, Act::Catalog];

    fn calm() -> State {
        State { node_leaving: false, freeze: Freeze::Nothing, namespace: NamespaceStatus::Active, leaving: Leaving::No }
    }

    /// The acts that `state` lets through; every other one must be refused for `reason`.
    fn passes(state: State, reason: Refusal) -> Vec<Act> {
        let (passed, refused): (Vec<_>, Vec<_>) = ACTS.into_iter().partition(|act| refuse(*act, state).is_none());
        for act in refused {
            assert_eq!(refuse(act, state), Some(reason), "{act:?} in {state:?}");
        }
        passed
    }

    #[test]
    fn one_restriction_at_a_time() {
        assert!(ACTS.into_iter().all(|act| refuse(act, calm()).is_none()));
        let settle = vec![Act::Life, Act::Settle];
        assert_eq!(passes(State { node_leaving: true, ..calm() }, Refusal::NodeLeaving), settle);
        assert_eq!(passes(State { freeze: Freeze::All, ..calm() }, Refusal::Maintenance), settle);
        assert_eq!(
            passes(State { freeze: Freeze::AllButReads, ..calm() }, Refusal::Maintenance),
            [Act::Life, Act::Settle, Act::Read]
        );
        assert_eq!(passes(State { namespace: NamespaceStatus::Suspended, ..calm() }, Refusal::Suspended), [Act::Life]);
        assert_eq!(
            passes(State { namespace: NamespaceStatus::ReadOnly, ..calm() }, Refusal::ReadOnly),
            [Act::Open, Act::Session, Act::Life, Act::Settle, Act::Read, Act::Seek, Act::Catalog]
        );
        assert_eq!(passes(State { leaving: Leaving::Draining, ..calm() }, Refusal::Draining), settle);
        assert_eq!(passes(State { leaving: Leaving::Terminating, ..calm() }, Refusal::Draining), settle);
        assert_eq!(passes(State { leaving: Leaving::Closing, ..calm() }, Refusal::Closing), settle);
    }

    #[test]
    fn together_the_first_in_order_is_told_and_each_refuses_what_it_refuses_alone() {
        let freezes = [Freeze::Nothing, Freeze::AllButReads, Freeze::All];
        let statuses = [NamespaceStatus::Active, NamespaceStatus::ReadOnly, NamespaceStatus::Suspended];
        let leavings = [Leaving::No, Leaving::Draining, Leaving::Closing, Leaving::Terminating];
        for act in ACTS {
            for node_leaving in [false, true] {
                for freeze in freezes {
                    for namespace in statuses {
                        for leaving in leavings {
                            let alone = [
                                refuse(act, State { node_leaving, ..calm() }),
                                refuse(act, State { freeze, ..calm() }),
                                refuse(act, State { namespace, ..calm() }),
                                refuse(act, State { leaving, ..calm() }),
                            ];
                            let state = State { node_leaving, freeze, namespace, leaving };
                            assert_eq!(refuse(act, state), alone.into_iter().flatten().next(), "{act:?} in {state:?}");
                        }
                    }
                }
            }
        }
    }
}

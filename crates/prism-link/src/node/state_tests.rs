use prism_core::NodeId;
use prism_core::session::EndReason;
use proptest::prelude::*;

use super::state::{Event, State};
use crate::arbitrary as any_of;
use crate::shares::Share;

fn node() -> NodeId {
    NodeId::parse("n", "node-a").unwrap()
}

fn state() -> impl Strategy<Value = State> {
    let reason = prop::sample::select(EndReason::ALL.to_vec());
    let share = (any::<u64>(), any::<u64>()).prop_map(|(leased, alone)| Share { leased, alone });
    (
        any_of::snapshot(),
        any::<(u64, u64)>(),
        prop::collection::vec(any_of::record(), 0..4),
        prop::collection::vec((any_of::report(), reason), 0..3),
        prop::collection::vec(any_of::report(), 0..3),
        prop::collection::btree_map(any_of::namespace(), share, 0..3),
        prop::collection::vec(prop::collection::btree_map(any_of::namespace(), any::<i64>(), 0..3), 2),
        prop::option::of(".{0,8}"),
    )
        .prop_map(|(snapshot, position, held, ends, reports, shares, mut spaces, revoked)| State {
            removed: spaces.pop().unwrap_or_default(),
            spaces: spaces.pop().unwrap_or_default(),
            proof: (!shares.is_empty()).then(|| prism_proto::cluster::v1::Shares { lease_ms: 7, ..Default::default() }),
            snapshot: snapshot.into(),
            position,
            held: held.into_iter().map(|record| (record.id, record)).collect(),
            ends: ends.into_iter().map(|end| (end.0.id, end)).collect(),
            reports: reports.into_iter().map(|report| (report.id, report)).collect(),
            shares,
            revoked,
        })
}

fn event() -> impl Strategy<Value = Event> {
    let reason = prop::sample::select(EndReason::ALL.to_vec());
    prop_oneof![
        (any_of::report(), reason).prop_map(|(last, reason)| Event::Ended(last, reason)),
        any_of::id().prop_map(Event::Gone),
        (any_of::id(), ".{0,8}").prop_map(|(id, reason)| Event::Terminating(id, reason)),
        ".{0,8}".prop_map(Event::Revoked),
        Just(Event::Reinstated),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_state_is_read_as_it_was_written(state in state()) {
        let read = State::decode(&state.encode(&node()).unwrap(), &node()).unwrap();
        prop_assert_eq!(read.position, state.position);
        prop_assert_eq!(&read.held, &state.held);
        prop_assert_eq!(&read.ends, &state.ends);
        prop_assert_eq!(&read.reports, &state.reports);
        prop_assert_eq!(&read.shares, &state.shares);
        let served = state.snapshot.namespaces.iter().map(|(name, namespace)| (name.clone(), namespace.generation));
        let served = served.filter(|(name, generation)| state.removed.get(name).is_none_or(|removed| generation > removed));
        let mut spaces: std::collections::BTreeMap<_, _> = served.collect();
        spaces.extend(state.spaces.clone());
        prop_assert_eq!(&read.spaces, &spaces);
        prop_assert_eq!(&read.removed, &state.removed);
        prop_assert_eq!(&read.revoked, &state.revoked);
        prop_assert_eq!(&read.proof, &state.proof);
        prop_assert_eq!(any_of::said(&read.snapshot), any_of::said(&state.snapshot));
    }

    #[test]
    fn a_state_that_was_cut_or_changed_is_refused(state in state(), at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let bytes = state.encode(&node()).unwrap();
        let at = at.index(bytes.len());
        prop_assert!(State::decode(&bytes[..at], &node()).is_err());
        let mut changed = bytes.clone();
        changed[at] ^= 1 << bit;
        prop_assert!(State::decode(&changed, &node()).is_err());
        let mut longer = bytes;
        longer.push(0);
        prop_assert!(State::decode(&longer, &node()).is_err());
    }

    #[test]
    fn a_journal_is_read_up_to_its_last_whole_record(events in prop::collection::vec(event(), 1..6), cut in 1..8usize) {
        let mut journal = Vec::new();
        let mut before_last = 0;
        for event in &events {
            before_last = journal.len();
            event.encode(&mut journal);
        }
        let (read, torn) = Event::decode_all(&journal);
        prop_assert_eq!((&read, torn), (&events, 0));
        let cut = journal.len() - cut.min(journal.len() - before_last - 1);
        let (read, torn) = Event::decode_all(&journal[..cut]);
        prop_assert_eq!(&read[..], &events[..events.len() - 1]);
        prop_assert_eq!(torn, cut - before_last);
    }

    #[test]
    fn a_session_of_which_the_end_is_written_is_not_held(mut state in state(), reason in prop::sample::select(EndReason::ALL.to_vec()), last in any_of::report(), record in any_of::record()) {
        let id = record.id;
        state.held.insert(id, record);
        let last = prism_core::session::SessionReport { id, ..last };
        state.apply(Event::Ended(last.clone(), reason));
        prop_assert!(!state.held.contains_key(&id) && state.ends.contains_key(&id));
        state.apply(Event::Gone(id));
        prop_assert!(!state.held.contains_key(&id) && !state.ends.contains_key(&id));
    }

    #[test]
    fn a_revoked_node_holds_nothing_and_owes_what_it_promised(mut state in state(), why in ".{0,8}") {
        let ends = state.ends.clone();
        state.apply(Event::Revoked(why.clone()));
        prop_assert!(state.held.is_empty() && state.reports.is_empty());
        prop_assert_eq!((&state.revoked, &state.ends), (&Some(why), &ends));
        state.apply(Event::Reinstated);
        prop_assert_eq!(&state.revoked, &None);
    }
}

#[test]
fn the_state_of_another_node_is_refused() {
    let bytes = State::default().encode(&node()).unwrap();
    let other = NodeId::parse("n", "node-b").unwrap();
    let refused = State::decode(&bytes, &other).unwrap_err();
    assert!(refused.contains("node-a"), "{refused}");
    assert!(State::decode(b"", &node()).unwrap_err().contains("cut off"));
}

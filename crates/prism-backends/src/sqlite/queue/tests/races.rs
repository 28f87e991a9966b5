//! What happens between two steps of one operation, one order at a time: nothing here depends on luck.

use std::task::{Poll, Waker};

use tokio::time::Instant;

use super::*;
use crate::sqlite::queue::log::{Fetched, LogRecord, Stored, Want};
use crate::sqlite::queue::positions::{self, Position, Target};
use crate::sqlite::queue::state::{State, Step};
use crate::sqlite::queue::topic::Log;

const TIMEOUT: Duration = Duration::from_secs(30);

fn log(latest: i64) -> Log {
    Log::new(LogRecord { id: 1, partitions: vec![(1, 0, latest)] })
}

fn state() -> State {
    State::new([Position { committed: 0, epoch: 0 }], Instant::now())
}

fn wants(state: &mut State, log: &Log) -> Vec<Want> {
    match state.step(log, Instant::now()) {
        Step::Fetch(wants) => wants,
        Step::Sleep(_) => Vec::new(),
    }
}

fn stored(offset: i64) -> Stored {
    Stored { offset, timestamp: UnixMillis(0), headers: BTreeMap::new(), payload: Bytes::new() }
}

fn read(want: Want) -> Fetched {
    let (new, cursor) = ((want.from..want.to).map(stored).collect(), want.to);
    Fetched { again: want.again.iter().copied().map(stored).collect(), gone: Vec::new(), new, cursor, want }
}

/// Reads and hands out until there is nothing more, and takes all of it.
fn take_all(state: &mut State, log: &Log, id: u64) -> Vec<i64> {
    let mut offsets = Vec::new();
    loop {
        let wants = wants(state, log);
        while let (Poll::Ready(Some(taken)), _) = state.poll(id, Waker::noop(), Instant::now()) {
            offsets.push(taken.unwrap().message.offset);
        }
        if wants.is_empty() {
            return offsets;
        }
        state.fetched(wants.into_iter().map(read).collect());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_that_a_seek_overtook_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = open(&folder.path().join("q.db"), &[]);
    fill(&fixture.queue, 4).await;
    let overtaken = |connection: &rusqlite::Connection| {
        let group = positions::find_or_make_group(connection, 1, "g", 10)?;
        assert!(positions::acknowledge(connection, group, 1, 0, &[0, 1])?);
        let sought = positions::seek(connection, group, 1, &Target::Earliest)?;
        assert_eq!(sought, Position { committed: 0, epoch: 1 });
        assert!(
            !positions::acknowledge(connection, group, 1, 0, &[0, 1, 3])?,
            "it belongs to a delivery before the seek"
        );
        assert_eq!(positions::position(connection, group, 1)?, sought);
        Ok(((), 0))
    };
    fixture.space.write(overtaken).await.unwrap();
    assert_eq!(offsets(&subscribe(&fixture.queue).await.rest(4).await), [0, 1, 2, 3]);
}

#[test]
fn a_read_that_a_commit_or_a_seek_overtook_delivers_nothing_old() {
    let (log, session) = (log(6), SessionId::generate());
    let (mut committed, mut sought) = (state(), state());
    for state in [&mut committed, &mut sought] {
        state.join(session, true, 100, TIMEOUT).unwrap();
    }
    let overtaken = wants(&mut committed, &log);
    committed.commit(0, Position { committed: 4, epoch: 0 });
    committed.fetched(overtaken.into_iter().map(read).collect());
    assert_eq!(take_all(&mut committed, &log, 0), [4, 5]);

    let overtaken = wants(&mut sought, &log);
    sought.seek(0, Position { committed: 5, epoch: 1 });
    sought.fetched(overtaken.into_iter().map(read).collect());
    assert_eq!(take_all(&mut sought, &log, 0), [5]);
}

#[test]
fn a_read_from_before_a_seek_does_not_hide_what_was_settled_then() {
    let log = log(3);
    let mut state = state();
    state.join(SessionId::generate(), true, 100, TIMEOUT).unwrap();
    let mut overtaken: Vec<_> = wants(&mut state, &log).into_iter().map(read).collect();
    // 1 was settled when this was read; the seek goes to where the group stood, and unsettles it.
    overtaken[0].new.remove(1);
    state.seek(0, Position { committed: 0, epoch: 1 });
    state.fetched(overtaken);
    assert_eq!(take_all(&mut state, &log, 0), [0, 1, 2]);
}

#[test]
fn a_read_of_what_must_come_again_is_dropped_when_it_is_settled_meanwhile() {
    let (log, session) = (log(2), SessionId::generate());
    let mut state = state();
    let lost = state.join(session, true, 100, TIMEOUT).unwrap();
    assert_eq!(take_all(&mut state, &log, lost), [0, 1]);
    state.leave(lost, Instant::now());
    let heir = state.join(SessionId::generate(), true, 100, TIMEOUT).unwrap();
    let again = wants(&mut state, &log);
    assert_eq!(again[0].again, [0, 1]);
    assert_eq!(state.begin_settle(0, 0, session, true), Some(0), "late, and nobody else has it");
    state.fetched(again.into_iter().map(read).collect());
    assert_eq!(take_all(&mut state, &log, heir), [1]);
    state.end_settle(0, 0, 0, true, Instant::now());
    assert_eq!(take_all(&mut state, &log, heir), [0; 0]);
}

#[test]
fn a_refused_acknowledgement_leaves_the_message_with_its_consumer_or_the_group() {
    let (log, session) = (log(2), SessionId::generate());
    let mut state = state();
    let consumer = state.join(session, true, 100, TIMEOUT).unwrap();
    assert_eq!(take_all(&mut state, &log, consumer), [0, 1]);
    assert!(state.begin_settle(0, 0, session, true).is_some() && state.begin_settle(0, 1, session, true).is_some());
    let late = Instant::now() + TIMEOUT * 2;
    assert!(matches!(state.step(&log, late), Step::Sleep(None)), "no timeout while it is being settled");
    state.end_settle(0, 0, 0, false, late);
    assert_eq!(state.in_flight(consumer), 2);
    assert!(matches!(state.step(&log, late), Step::Sleep(Some(until)) if until == late + TIMEOUT));
    state.leave(consumer, late);
    state.end_settle(0, 0, 1, false, late);
    let heir = state.join(SessionId::generate(), true, 100, TIMEOUT).unwrap();
    assert_eq!(take_all(&mut state, &log, heir), [0, 1]);
}

#[test]
fn a_group_is_forgotten_only_when_nothing_is_lost_by_it() {
    let (log, session, keep) = (log(1), SessionId::generate(), Duration::from_mins(10));
    let mut state = state();
    let consumer = state.join(session, true, 100, TIMEOUT).unwrap();
    assert_eq!(take_all(&mut state, &log, consumer), [0]);
    let now = Instant::now();
    assert!(!state.retire(now + keep * 2, keep), "it has a subscription");
    state.leave(consumer, now);
    assert!(!state.retire(now, keep), "it knows an attempt");
    assert!(state.begin_settle(0, 0, session, true).is_some());
    assert!(!state.retire(now + keep * 2, keep), "an acknowledgement is on its way");
    state.end_settle(0, 0, 0, true, now);
    assert!(state.retire(now, keep));
    assert!(state.join(session, true, 1, TIMEOUT).is_none(), "who comes now must load it again");
}

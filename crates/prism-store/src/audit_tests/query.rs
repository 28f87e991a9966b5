use std::time::{Duration, Instant};

use prism_core::permission::Reach;
use prism_core::{NamespaceName, UnixMillis};
use prost::Message as _;

use super::{START, World, newest};
use crate::{EntryDraft, EntryFilter, EntryQuery, Order};

fn actor(name: &str) -> EntryFilter {
    EntryFilter { actor: Some(name.to_owned()), ..EntryFilter::default() }
}

/// A log in which `bob` is rare and far back: 1 entry of the start, 3 of bob, `common` of alice, a second apart.
async fn log(common: usize) -> World {
    let world = World::new().await;
    world.advance(Duration::from_secs(1));
    for _ in 0..3 {
        world.append("bob", 1).await;
        world.advance(Duration::from_secs(1));
    }
    world.append("alice", common).await;
    world
}

async fn sequences(world: &World, filter: EntryFilter, order: Order, limit: usize) -> Vec<u64> {
    world.read(filter, order, limit).await.unwrap().iter().map(|entry| entry.sequence).collect()
}

#[tokio::test]
async fn every_filter_finds_what_it_should_in_both_directions() {
    let world = log(5).await;
    let draft = EntryDraft {
        actor: "carl".to_owned(),
        operation: "Other".to_owned(),
        namespace: "n".to_owned(),
        ..Default::default()
    };
    world.store.write(move |tx| tx.append_entry(draft)).await.unwrap();
    let at = |seconds| Some(START + Duration::from_secs(seconds));
    let none = EntryFilter::default;
    for (filter, expected) in [
        (none(), (1..=10).collect::<Vec<u64>>()),
        (actor("bob"), vec![2, 3, 4]),
        (actor("nobody"), vec![]),
        (EntryFilter { operation: Some("Other".to_owned()), ..none() }, vec![10]),
        (EntryFilter { namespace: Some("shop".to_owned()), ..none() }, (2..=9).collect()),
        (EntryFilter { start: at(2), end: at(4), ..none() }, vec![3, 4]),
        (EntryFilter { start: at(2), ..actor("bob") }, vec![3, 4]),
        (EntryFilter { end: at(2), ..none() }, vec![1, 2]),
        (EntryFilter { end: at(2), operation: Some("GetConfig".to_owned()), ..actor("bob") }, vec![2]),
        (EntryFilter { start: at(4), namespace: Some("n".to_owned()), ..none() }, vec![10]),
    ] {
        let mut backwards = sequences(&world, filter.clone(), newest(i64::MAX), 100).await;
        backwards.reverse();
        assert_eq!(backwards, expected, "{filter:?}");
        for size in [1, 2, 100] {
            // In small chunks it is the same.
            let (mut order, mut found) = (Order::OldestAfter(0), Vec::new());
            let mut back = (newest(i64::MAX), Vec::new());
            loop {
                let query = |order| EntryQuery {
                    filter: filter.clone(),
                    reach: Reach::Installation,
                    order,
                    until: None,
                    limit: size,
                };
                let sequence = |encoded: &bytes::Bytes| {
                    prism_proto::admin::v1::AuditLogEntry::decode(encoded.clone()).unwrap().sequence
                };
                let forth = world.store.audit_chunk(query(order)).await.unwrap();
                let backwards = world.store.audit_chunk(query(back.0)).await.unwrap();
                found.extend(forth.entries.iter().map(sequence));
                back.1.extend(backwards.entries.iter().map(sequence));
                (order, back.0) = (forth.next, backwards.next);
                if forth.end && backwards.end {
                    break;
                }
            }
            back.1.reverse();
            assert_eq!((&found, &back.1), (&expected, &expected), "{filter:?}, {size} at a time");
        }
    }
}

#[tokio::test]
async fn a_query_ends_where_it_was_told_to() {
    let world = log(10).await;
    let query = |order, until| EntryQuery {
        filter: EntryFilter::default(),
        reach: Reach::Installation,
        order,
        until: Some(until),
        limit: 100,
    };
    let count = async |order, until| world.store.audit_chunk(query(order, until)).await.unwrap().entries.len();
    assert_eq!(count(Order::OldestAfter(2), 5).await, 3);
    assert_eq!(count(Order::OldestAfter(5), 5).await, 0);
    assert_eq!(count(newest(6), 5).await, 5);
    assert_eq!(count(newest(100), 5).await, 5);
    let timed = EntryFilter { start: Some(START), ..EntryFilter::default() };
    let chunk = world.store.audit_chunk(EntryQuery { filter: timed, ..query(newest(100), 5) }).await.unwrap();
    assert_eq!((chunk.entries.len(), chunk.end), (5, true));
}

#[tokio::test]
async fn a_bound_caller_reads_its_namespaces_from_their_beginning_on() {
    let world = log(3).await;
    let name = |name: &str| NamespaceName::parse("namespace", name).unwrap();
    let read = async |reach: Reach, namespace: Option<&str>| {
        let filter = EntryFilter { namespace: namespace.map(str::to_owned), ..EntryFilter::default() };
        let query = EntryQuery { filter, reach, order: Order::OldestAfter(0), until: None, limit: 100 };
        world.store.audit_chunk(query).await.unwrap().entries.len()
    };
    let shop = || Reach::Namespaces([name("shop")].into());
    assert_eq!(read(shop(), None).await, 0, "what another namespace of that name left behind");
    world.store.write(move |tx| tx.create_namespace(&name("shop"), "", <_>::default()).map(drop)).await.unwrap();
    world.append("alice", 2).await;
    // Those of the moment in which the namespace was made are its own; the clock stands still here.
    assert_eq!(read(shop(), None).await, 5);
    assert_eq!(read(Reach::Namespaces([name("shop"), name("other")].into()), None).await, 5);
    assert_eq!(read(shop(), Some("other")).await, 0);
    assert_eq!(read(Reach::Nowhere, None).await, 0);
    assert_eq!(read(Reach::Installation, Some("shop")).await, 8);
}

#[tokio::test]
async fn what_is_read_is_what_was_hashed() {
    let world = log(3).await;
    let query = EntryQuery {
        filter: EntryFilter::default(),
        reach: Reach::Installation,
        order: Order::OldestAfter(0),
        until: None,
        limit: 100,
    };
    let chunk = world.store.audit_chunk(query).await.unwrap();
    let mut previous = prism_proto::audit_chain::GENESIS;
    for encoded in &chunk.entries {
        let entry = prism_proto::admin::v1::AuditLogEntry::decode(encoded.clone()).unwrap();
        previous = prism_proto::audit_chain::verify_link(&previous, &entry).unwrap();
        assert_eq!(entry.encode_to_vec(), encoded.as_ref());
    }
}

/// What SQLite says it does for each kind of query, on a log in which nothing is known of the distribution.
#[tokio::test]
async fn queries_go_by_the_index_that_fits() {
    let world = log(12_000).await;
    let plan = async |filter: EntryFilter, order: Order| {
        let query = EntryQuery { filter, reach: Reach::Installation, order, until: None, limit: 100 };
        world.store.database.readers.run(move |connection| crate::audit_query::plan(connection, &query)).await.unwrap()
    };
    let at = |seconds| Some(START + Duration::from_secs(seconds));
    let none = EntryFilter::default;
    let (back, onwards) = (newest(i64::MAX), Order::OldestAfter(0));
    for (filter, order, expected) in [
        (none(), back, "SEARCH audit USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"),
        (none(), onwards, "SEARCH audit USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"),
        (actor("bob"), back, "SEARCH audit USING INDEX audit_by_actor (actor=? AND rowid>? AND rowid<?)"),
        (actor("bob"), onwards, "SEARCH audit USING INDEX audit_by_actor (actor=? AND rowid>? AND rowid<?)"),
        (actor("alice"), back, "SEARCH audit USING INDEX audit_by_actor (actor=? AND rowid>? AND rowid<?)"),
        (
            EntryFilter { operation: Some("GetConfig".to_owned()), ..actor("bob") },
            back,
            "SEARCH audit USING INDEX audit_by_actor (actor=? AND rowid>? AND rowid<?)",
        ),
        (
            EntryFilter { operation: Some("CutAuditLog".to_owned()), ..actor("alice") },
            back,
            "SEARCH audit USING INDEX audit_by_operation (operation=? AND rowid>? AND rowid<?)",
        ),
        (
            EntryFilter { namespace: Some("n".to_owned()), ..actor("alice") },
            back,
            "SEARCH audit USING INDEX audit_by_namespace (namespace=? AND rowid>? AND rowid<?)",
        ),
        // Who follows looks at what is new.
        (actor("bob"), Order::OldestAfter(11_000), "SEARCH audit USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"),
        // By time, in the order of time.
        (EntryFilter { end: at(2), ..none() }, back, "SEARCH audit USING INDEX audit_by_timestamp (timestamp<?)"),
        (
            EntryFilter { start: at(1), end: at(2), ..none() },
            back,
            "SEARCH audit USING INDEX audit_by_timestamp (timestamp>? AND timestamp<?)",
        ),
        (
            EntryFilter { start: at(1), ..actor("alice") },
            back,
            "SEARCH audit USING INDEX audit_by_timestamp (timestamp>? AND timestamp<?)",
        ),
        (
            EntryFilter { start: at(1), ..actor("bob") },
            back,
            "SEARCH audit USING INDEX audit_by_actor (actor=? AND rowid<?); USE TEMP B-TREE FOR ORDER BY",
        ),
    ] {
        assert_eq!(plan(filter.clone(), order).await, expected, "{filter:?} {order:?}");
    }
}

/// Where no index narrows the log down, a chunk looks at a bounded part of it.
#[tokio::test]
async fn a_chunk_looks_at_a_bounded_part() {
    let world = World::new().await;
    for _ in 0..2 {
        world.append("alice", 35_000).await;
    }
    world.advance(Duration::from_secs(10));
    world.append("alice", 1).await;
    let late = EntryFilter { start: Some(START + Duration::from_secs(5)), ..EntryFilter::default() };
    let mut query =
        EntryQuery { filter: late, reach: Reach::Installation, order: Order::OldestAfter(0), until: None, limit: 10 };
    let first = world.store.audit_chunk(query.clone()).await.unwrap();
    assert!(first.entries.is_empty() && !first.end);
    assert_eq!(first.next, Order::OldestAfter(65_536));
    query.order = first.next;
    let second = world.store.audit_chunk(query).await.unwrap();
    assert!(second.entries.len() == 1 && second.end);
}

#[tokio::test]
async fn a_large_log_streams_whole_and_in_order() {
    let world = World::new().await;
    for _ in 0..4 {
        world.append("alice", 50_000).await;
    }
    let started = Instant::now();
    let mut query = EntryQuery {
        filter: EntryFilter::default(),
        reach: Reach::Installation,
        order: Order::OldestAfter(0),
        until: None,
        limit: usize::MAX,
    };
    let (mut count, mut bytes, mut chunks) = (0, 0, 0);
    loop {
        let chunk = world.store.audit_chunk(query.clone()).await.unwrap();
        for encoded in &chunk.entries {
            count += 1;
            bytes += encoded.len();
            let entry = prism_proto::audit_chain::EncodedEntry::parse(encoded).unwrap();
            assert_eq!(entry.sequence, count);
        }
        chunks += 1;
        query.order = chunk.next;
        if chunk.end {
            break;
        }
    }
    println!("{count} entries, {bytes} bytes, {chunks} chunks in {:?}", started.elapsed());
    assert_eq!(count, 200_001);
    assert!((98..=120).contains(&chunks), "chunks of 2048: {chunks}");
    assert_eq!(world.store.verify_audit().await.unwrap(), 200_001);
}

#[tokio::test]
async fn times_that_went_back_are_found_by_time() {
    let world = World::new().await;
    world.advance(Duration::from_secs(100));
    world.append("ahead", 2).await;
    let world = World { clock: prism_core::Clock::manual(START), ..world }.reopened().await;
    world.append("back", 2).await;
    let by_time = EntryFilter { end: Some(UnixMillis(START.0 + 50_000)), ..EntryFilter::default() };
    assert_eq!(sequences(&world, by_time.clone(), newest(i64::MAX), 100).await, [5, 4, 1]);
    let all = EntryFilter { end: None, start: Some(START), ..by_time };
    assert_eq!(sequences(&world, all, newest(i64::MAX), 100).await, [3, 2, 5, 4, 1]);
    assert_eq!(sequences(&world, EntryFilter::default(), newest(i64::MAX), 100).await, [5, 4, 3, 2, 1]);
}

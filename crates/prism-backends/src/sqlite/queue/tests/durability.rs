use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_loses_no_answered_publish_and_no_answered_acknowledgement() {
    let folder = tempfile::tempdir().unwrap();
    let (before, after) = (folder.path().join("before.db"), folder.path().join("after.db"));
    let fixture = open(&before, &[]);
    let publishers = (0..50).map(|_| {
        let queue = Arc::clone(&fixture.queue);
        tokio::spawn(async move {
            for _ in 0..4 {
                queue.publish("t", message("x")).await.unwrap();
            }
        })
    });
    futures::future::join_all(publishers).await;
    let mut consumer = subscribe(&fixture.queue).await;
    let all = consumer.take(200).await;
    let (odd, even): (Vec<_>, Vec<_>) = all.iter().cloned().partition(|delivery| delivery.offset % 2 == 1);
    let acknowledged = odd.iter().chain(even.iter().take(20));
    assert!(fixture.queue.acknowledge(consumer.session, ids(acknowledged)).await.unwrap().is_empty());

    let fixture = open_after_kill(&before, &after, &[]);
    let late = fixture.queue.acknowledge(consumer.session, ids(&even[20..21])).await.unwrap();
    assert_eq!(late, ids(&even[20..21]), "who received it is forgotten");
    let mut consumer = subscribe(&fixture.queue).await;
    let rest = consumer.rest(80).await;
    assert_eq!(offsets(&rest), offsets(&even[20..]));
    assert!(rest.iter().all(|delivery| delivery.attempt == 1));
    assert_eq!(fixture.queue.publish("t", message("x")).await.unwrap().offset, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn positions_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("q.db");
    let fixture = open(&path, &[]);
    fill(&fixture.queue, 10).await;
    fixture.queue.commit("t", "g", 0, 4).await.unwrap();
    drop(fixture);
    let fixture = open(&path, &[]);
    assert_eq!(offsets(&subscribe(&fixture.queue).await.take(6).await), [4, 5, 6, 7, 8, 9]);
    fixture.queue.seek("t", "g", vec![(0, 8)]).await.unwrap();
    drop(fixture);
    let fixture = open(&path, &[]);
    assert_eq!(offsets(&subscribe(&fixture.queue).await.rest(2).await), [8, 9]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_the_position_is_kept_of_what_is_settled() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = open(&folder.path().join("q.db"), &[]);
    fill(&fixture.queue, 100).await;
    let mut consumer = subscribe(&fixture.queue).await;
    let all = consumer.take(100).await;
    let rows = async || {
        let count = |connection: &rusqlite::Connection| {
            connection
                .query_row(
                    "SELECT (SELECT count(*) FROM _prism_queue_acks), max(committed) FROM _prism_queue_positions",
                    [],
                    |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)),
                )
                .map_err(prism_sqlite::error)
        };
        fixture.space.readers().run(count).await.unwrap()
    };
    let acknowledge = async |wanted: &dyn Fn(i64) -> bool| {
        let chosen = ids(all.iter().filter(|delivery| wanted(delivery.offset)));
        assert!(fixture.queue.acknowledge(consumer.session, chosen).await.unwrap().is_empty());
    };
    acknowledge(&|offset| offset < 10).await;
    assert_eq!(rows().await, (0, 10));
    acknowledge(&|offset| offset > 10 && offset % 2 == 0).await;
    assert_eq!(rows().await, (44, 10));
    acknowledge(&|offset| offset > 10 && offset % 2 == 1).await;
    assert_eq!(rows().await, (89, 10));
    acknowledge(&|offset| offset == 10).await;
    assert_eq!(rows().await, (0, 100));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_leaves_memory_and_disk_in_step() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = open(&folder.path().join("q.db"), &[]);
    fill(&fixture.queue, 20).await;
    let mut consumer = subscribe(&fixture.queue).await;
    consumer.take(20).await;
    for _ in 0..20 {
        // Polled once, then dropped: each is on its way.
        let seek = fixture.queue.seek("t", "g", vec![(0, 10)]);
        let _ = tokio::time::timeout(Duration::ZERO, seek).await;
        let publish = fixture.queue.publish("t", message("x"));
        let _ = tokio::time::timeout(Duration::ZERO, publish).await;
    }
    fixture.queue.seek("t", "g", vec![(0, 15)]).await.unwrap();
    let latest = fixture.queue.topic("t").await.unwrap().partitions[0].latest_offset;
    let mut seen = consumer.drain().await;
    seen.retain(|delivery| delivery.offset >= 15);
    let last = seen.split_off(seen.len() - (latest as usize - 15));
    assert_eq!(offsets(&last), (15..latest).collect::<Vec<_>>());
    assert!(
        fixture.queue.acknowledge(consumer.session, ids(&last)).await.unwrap().is_empty(),
        "its deliveries still stand"
    );
    drop(consumer);
    assert!(subscribe(&fixture.queue).await.drain().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_that_fails_ends_streams_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("q.db");
    let fixture = open(&path, &[]);
    fill(&fixture.queue, 3).await;
    let mut holder = subscribe(&fixture.queue).await;
    let mine = holder.take(3).await;
    let mut heir = subscribe(&fixture.queue).await;
    fixture.space.close(false).await.unwrap();
    let refused = fixture.queue.acknowledge(holder.session, ids(&mine)).await.unwrap_err();
    assert_eq!(refused.reason(), "STORAGE_CLOSED");
    assert_eq!(holder.subscription.in_flight(), 3, "not settled, so still in flight");
    assert_eq!(fixture.queue.publish("t", message("x")).await.unwrap_err().reason(), "STORAGE_CLOSED");
    drop(holder);
    assert_eq!(heir.next().await.unwrap().unwrap_err().reason(), "STORAGE_CLOSED");
    assert!(heir.next().await.is_none());
    drop((heir, fixture));
    let fixture = open(&path, &[]);
    assert_eq!(offsets(&subscribe(&fixture.queue).await.take(3).await), [0, 1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_and_partitions_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = open(&folder.path().join("q.db"), &[("partitions", "1024")]);
    fill(&fixture.queue, 1).await;
    let full = |connection: &rusqlite::Connection| {
        connection
            .execute_batch(
                "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 1000)
                 INSERT INTO _prism_queue_groups (topic, name) SELECT 1, 'other-' || x FROM n;
                 INSERT INTO _prism_queue_partitions (id, topic, number) VALUES ((1 << 20) - 1023, 1, 5000)",
            )
            .map(|()| ((), 0))
            .map_err(prism_sqlite::error)
    };
    fixture.space.write(full).await.unwrap();
    let refused = fixture.queue.commit("t", "g", 0, 0).await.unwrap_err();
    assert_eq!(refused.reason(), "TOO_MANY_CONSUMER_GROUPS");
    fixture.queue.commit("t", "other-1", 0, 0).await.unwrap();
    assert_eq!(fixture.queue.publish("u", message("x")).await.unwrap_err().reason(), "TOO_MANY_PARTITIONS");
}

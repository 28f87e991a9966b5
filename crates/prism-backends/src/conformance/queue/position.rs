use prism_core::Kind;

use super::*;

pub(super) async fn run(subject: &Subject) {
    seeking_goes_back_and_forth(subject).await;
    seeking_forgets_what_was_held(subject).await;
    a_seek_is_all_or_nothing(subject).await;
    committing_settles_what_is_before(subject).await;
    committing_never_goes_back(subject).await;
    a_subscription_starts_where_it_is_told(subject).await;
    positions_outside_the_log_are_refused(subject).await;
}

async fn seeking_goes_back_and_forth(subject: &Subject) {
    let queue = open(subject, "p-seek").await;
    fill(&queue, 10).await;
    let mut consumer = subscribe(&queue, "g").await;
    let all = consumer.take(10).await;
    assert!(consumer.acknowledge(&queue, &all).await.is_empty());
    queue.seek("t", "g", vec![(0, 4)]).await.unwrap();
    let again = consumer.take(6).await;
    assert_eq!(again.iter().map(number).collect::<Vec<_>>(), [4, 5, 6, 7, 8, 9]);
    assert_eq!(attempts(&again), [1; 6], "what was settled is new again");
    assert!(consumer.acknowledge(&queue, &again).await.is_empty());
    queue.seek("t", "g", vec![(0, 0)]).await.unwrap();
    queue.seek("t", "g", vec![(0, 8)]).await.unwrap();
    drop(consumer);
    let mut consumer = subscribe(&queue, "g").await;
    assert_eq!(consumer.numbers(2).await, [8, 9]);
    queue.seek("t", "g", vec![(0, 10)]).await.unwrap();
    assert!(consumer.is_silent().await);
    queue.publish("t", message("10")).await.unwrap();
    assert_eq!(consumer.numbers(1).await, [10]);
}

async fn seeking_forgets_what_was_held(subject: &Subject) {
    let queue = open(subject, "p-forget").await;
    fill(&queue, 3).await;
    let mut consumer = consume(&queue, SessionId::generate(), "g", StartPosition::Committed, 3).await;
    let before = consumer.take(3).await;
    queue.seek("t", "g", vec![(0, 3)]).await.unwrap();
    assert_eq!(consumer.subscription.in_flight(), 0);
    assert_eq!(consumer.acknowledge(&queue, &before).await, ids(&before), "they are not this session's any more");
    queue.seek("t", "g", vec![(0, 1)]).await.unwrap();
    let after = consumer.take(2).await;
    assert_eq!((ids(&after), attempts(&after)), (ids(&before[1..]), vec![1, 1]));
    assert_eq!(consumer.acknowledge(&queue, &before).await, ids(&before[..1]), "these are its again, by their ids");
}

async fn a_seek_is_all_or_nothing(subject: &Subject) {
    let queue = open_partitioned(subject, "p-all", "2").await;
    for number in 0..4 {
        queue.publish("t", Publication { partition: Some(number % 2), ..message(number.to_string()) }).await.unwrap();
    }
    let refused = queue.seek("t", "g", vec![(0, 2), (1, 3)]).await.unwrap_err();
    assert_eq!((refused.kind(), refused.fields()[0].field.as_str()), (Kind::InvalidArgument, "positions[1].offset"));
    let mut numbers = subscribe(&queue, "g").await.numbers(4).await;
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 1, 2, 3]);
    queue.seek("t", "g", vec![(0, 2), (1, 1)]).await.unwrap();
    assert_eq!(subscribe(&queue, "g").await.numbers(1).await, [3]);
    queue.seek("t", "g", Vec::new()).await.unwrap();
}

async fn committing_settles_what_is_before(subject: &Subject) {
    let queue = open(subject, "p-commit").await;
    fill(&queue, 8).await;
    queue.commit("t", "g", 0, 2).await.unwrap();
    let mut consumer = consume(&queue, SessionId::generate(), "g", StartPosition::Committed, 4).await;
    let held = consumer.take(4).await;
    assert_eq!(held.iter().map(number).collect::<Vec<_>>(), [2, 3, 4, 5]);
    queue.commit("t", "g", 0, 4).await.unwrap();
    assert_eq!(consumer.subscription.in_flight(), 2);
    assert_eq!(consumer.numbers(2).await, [6, 7], "it has room again");
    assert_eq!(consumer.acknowledge(&queue, &held).await, ids(&held[..2]));
    drop(consumer);
    let mut consumer = subscribe(&queue, "g").await;
    assert_eq!(consumer.numbers(2).await, [6, 7]);
    queue.commit("t", "g", 0, 8).await.unwrap();
    drop(consumer);
    assert!(subscribe(&queue, "g").await.is_silent().await);
}

async fn committing_never_goes_back(subject: &Subject) {
    let queue = open(subject, "p-forward").await;
    fill(&queue, 5).await;
    let mut consumer = subscribe(&queue, "g").await;
    let all = consumer.take(5).await;
    assert!(consumer.acknowledge(&queue, &all[3..4]).await.is_empty());
    queue.commit("t", "g", 0, 3).await.unwrap();
    queue.commit("t", "g", 0, 1).await.unwrap();
    queue.commit("t", "g", 0, 3).await.unwrap();
    drop(consumer);
    let mut consumer = subscribe(&queue, "g").await;
    assert_eq!(consumer.numbers(1).await, [4]);
    assert!(consumer.is_silent().await);
}

async fn a_subscription_starts_where_it_is_told(subject: &Subject) {
    let queue = open(subject, "p-start").await;
    fill(&queue, 5).await;
    let start = async |position| consume(&queue, SessionId::generate(), "g", position, 100).await;
    let mut latest = start(StartPosition::Latest).await;
    assert!(latest.is_silent().await);
    queue.publish("t", message("5")).await.unwrap();
    assert_eq!(latest.numbers(1).await, [5]);
    drop(latest);
    assert_eq!(start(StartPosition::Committed).await.numbers(1).await, [5], "the position moved to the latest");
    assert_eq!(start(StartPosition::Offset(3)).await.numbers(3).await, [3, 4, 5]);
    assert_eq!(start(StartPosition::Committed).await.numbers(3).await, [3, 4, 5]);
    assert_eq!(start(StartPosition::Earliest).await.numbers(6).await, [0, 1, 2, 3, 4, 5]);
    assert!(start(StartPosition::Offset(1_000_000)).await.is_silent().await);
    assert_eq!(subscribe(&queue, "new").await.numbers(1).await, [0], "a new group starts at the earliest");
}

async fn positions_outside_the_log_are_refused(subject: &Subject) {
    let queue = open(subject, "p-bounds").await;
    for refused in [queue.commit("t", "g", 0, 0).await, queue.seek("t", "g", vec![(0, 0)]).await] {
        let refused = refused.unwrap_err();
        assert_eq!((refused.kind(), refused.message()), (Kind::NotFound, "topic:t does not exist"));
    }
    fill(&queue, 2).await;
    for (partition, offset, field) in [(0, 3, "offset"), (0, -1, "offset"), (1, 0, "partition"), (-1, 0, "partition")] {
        let refused = queue.commit("t", "g", partition, offset).await.unwrap_err();
        assert_eq!((refused.kind(), refused.fields()[0].field.as_str()), (Kind::InvalidArgument, field));
        let refused = queue.seek("t", "g", vec![(partition, offset)]).await.unwrap_err();
        let field = format!("positions[0].{field}");
        assert_eq!((refused.kind(), &refused.fields()[0].field), (Kind::InvalidArgument, &field));
    }
    let twice = queue.seek("t", "g", vec![(0, 1), (0, 2)]).await.unwrap_err();
    assert_eq!(twice.fields()[0].field, "positions[1].partition");
    let negative = SubscribeRequest {
        topic: "t".to_owned(),
        group: "g".to_owned(),
        start: StartPosition::Offset(-1),
        max_in_flight: 1,
        consumer: ConsumerId { session: SessionId::generate(), subscription: 0 },
    };
    let refused = queue.subscribe(negative).await.err().unwrap();
    assert_eq!(refused.fields()[0].field, "start_offset");
}

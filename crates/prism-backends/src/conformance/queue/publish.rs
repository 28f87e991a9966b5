use std::collections::{BTreeSet, HashMap};

use prism_core::Kind;

use super::*;
use crate::driver::PartitionInfo;

pub(super) async fn run(subject: &Subject) {
    offsets_count_from_zero(subject).await;
    many_publishers_leave_no_gap(subject).await;
    a_key_keeps_to_its_partition(subject).await;
    a_named_partition_is_used_or_refused(subject).await;
    a_topic_keeps_its_partitions(subject).await;
    one_bad_message_leaves_the_others(subject).await;
    the_quota_refuses_message_by_message(subject).await;
    namespaces_do_not_meet(subject).await;
}

async fn offsets_count_from_zero(subject: &Subject) {
    let queue = open(subject, "q-offsets").await;
    assert_eq!(queue.topic("t").await.unwrap_err().kind(), Kind::NotFound);
    let published = fill(&queue, 3).await;
    assert_eq!(
        published.iter().map(|place| (place.partition, place.offset)).collect::<Vec<_>>(),
        [(0, 0), (0, 1), (0, 2)]
    );
    assert_eq!(published[0].timestamp, subject.clock.now().min(published[0].timestamp), "stored now or earlier");
    let ids: BTreeSet<_> = published.iter().map(|place| &place.message_id).collect();
    assert_eq!(ids.len(), 3, "ids are unique");
    let info = queue.topic("t").await.unwrap();
    assert_eq!(
        info.partitions,
        [PartitionInfo { partition: 0, earliest_offset: 0, latest_offset: 3, message_count: 3 }]
    );

    let headers = BTreeMap::from([("kind".to_owned(), "ünï".to_owned()), (String::new(), String::new())]);
    let payload = Bytes::from_static(b"\0\xff\n");
    let whole =
        Publication { payload: payload.clone(), headers: headers.clone(), partition_key: None, partition: None };
    let place = queue.publish("t", whole).await.unwrap();
    let mut consumer = consume(&queue, SessionId::generate(), "g", StartPosition::Offset(3), 10).await;
    let delivery = consumer.next().await;
    assert_eq!((delivery.payload, delivery.headers), (payload, headers));
    assert_eq!((delivery.offset, delivery.partition, delivery.attempt), (3, 0, 1));
    assert_eq!((delivery.message_id, delivery.timestamp), (place.message_id, place.timestamp));
}

async fn many_publishers_leave_no_gap(subject: &Subject) {
    let queue = open_partitioned(subject, "q-dense", "3").await;
    let publishers = (0..50).map(|publisher| {
        let queue = Arc::clone(&queue);
        tokio::spawn(async move {
            let mut places = Vec::new();
            for n in 0..10 {
                places.push(queue.publish("t", message((publisher * 10 + n).to_string())).await.unwrap());
            }
            places
        })
    });
    let places: Vec<_> = futures::future::join_all(publishers).await.into_iter().flat_map(Result::unwrap).collect();
    let mut by_partition: HashMap<i32, BTreeSet<i64>> = HashMap::new();
    for place in &places {
        assert!(by_partition.entry(place.partition).or_default().insert(place.offset), "an offset is given once");
    }
    assert_eq!(places.len(), 500);
    for info in queue.topic("t").await.unwrap().partitions {
        let offsets = &by_partition[&info.partition];
        assert!(offsets.iter().copied().eq(0..info.latest_offset), "offsets have no gap");
    }
    let mut numbers = subscribe(&queue, "g").await.numbers(500).await;
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(0..500), "every message is delivered");
}

async fn a_key_keeps_to_its_partition(subject: &Subject) {
    let queue = open_partitioned(subject, "q-keys", "8").await;
    let mut used = BTreeSet::new();
    for key in 0..40 {
        let keyed = || Publication { partition_key: Some(format!("key-{key}")), ..message("0") };
        let (first, second) = (queue.publish("t", keyed()).await.unwrap(), queue.publish("t", keyed()).await.unwrap());
        assert_eq!(first.partition, second.partition);
        used.insert(first.partition);
    }
    assert!(used.len() > 1, "keys are spread");
    let mut dealt = BTreeSet::new();
    for place in fill(&queue, 80).await {
        dealt.insert(place.partition);
    }
    assert!(dealt.len() > 1, "messages without a key are spread");
}

async fn a_named_partition_is_used_or_refused(subject: &Subject) {
    let queue = open_partitioned(subject, "q-named", "2").await;
    let to =
        |partition| Publication { partition: Some(partition), partition_key: Some("k".to_owned()), ..message("0") };
    for partition in [1, 0, 1] {
        assert_eq!(queue.publish("t", to(partition)).await.unwrap().partition, partition);
    }
    for partition in [-1, 2, i32::MAX, i32::MIN] {
        let refused = queue.publish("t", to(partition)).await.unwrap_err();
        assert_eq!((refused.kind(), refused.fields()[0].field.as_str()), (Kind::InvalidArgument, "partition"));
    }
}

async fn a_topic_keeps_its_partitions(subject: &Subject) {
    let (three, five) =
        (open_partitioned(subject, "q-keeps", "3").await, open_partitioned(subject, "q-keeps", "5").await);
    fill(&three, 1).await;
    fill(&five, 10).await;
    assert_eq!(five.topic("t").await.unwrap().partitions.len(), 3);
    let request = |topic: &str| SubscribeRequest {
        topic: topic.to_owned(),
        group: "g".to_owned(),
        start: StartPosition::Committed,
        max_in_flight: 1,
        consumer: ConsumerId { session: SessionId::generate(), subscription: 0 },
    };
    drop(five.subscribe(request("made-by-subscribing")).await.unwrap());
    assert_eq!(three.topic("made-by-subscribing").await.unwrap().partitions.len(), 5);
}

async fn one_bad_message_leaves_the_others(subject: &Subject) {
    let queue = open(subject, "q-batch").await;
    let bad = Publication { partition: Some(7), ..message("bad") };
    let results = queue.publish_many("t", vec![message("0"), bad, message("1")]).await.unwrap();
    let offsets: Vec<_> = results.iter().map(|result| result.as_ref().map_or(-1, |place| place.offset)).collect();
    assert_eq!(offsets, [0, -1, 1]);
    assert_eq!(subscribe(&queue, "g").await.numbers(2).await, [0, 1]);
    assert!(queue.publish_many("t", Vec::new()).await.unwrap().is_empty());
}

async fn the_quota_refuses_message_by_message(subject: &Subject) {
    let (queue, meter) = open_metered(subject, "q-quota", &[]).await;
    fill(&queue, 1).await;
    if meter.used() == 0 {
        // The driver's messages are not stored by Prism.
        return;
    }
    meter.set_limit(meter.used() + 5000);
    let sized = |bytes: usize| message("x".repeat(bytes));
    let results = queue.publish_many("t", vec![sized(100), sized(10_000), sized(100)]).await.unwrap();
    assert_eq!(results.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
    let refused = results[1].as_ref().unwrap_err();
    assert_eq!(
        (refused.kind(), refused.quota_violation().unwrap().quota),
        (Kind::ResourceExhausted, "max_storage_bytes")
    );

    let used = meter.used();
    let both = tokio::join!(queue.publish("t", sized(10_000)), queue.publish("t", sized(100)));
    assert!(both.0.is_err() && both.1.is_ok(), "one that does not fit does not take another with it");
    assert!((used + 100..used + 1000).contains(&meter.used()), "a refused message costs nothing");
    assert_eq!(queue.topic("t").await.unwrap().partitions[0].latest_offset, 4, "a refused message leaves no gap");
}

async fn namespaces_do_not_meet(subject: &Subject) {
    let (here, there) = (open(subject, "q-here").await, open(subject, "q-there").await);
    fill(&here, 1).await;
    assert_eq!(there.topic("t").await.unwrap_err().kind(), Kind::NotFound);
    let mut consumer = subscribe(&there, "g").await;
    assert!(consumer.is_silent().await);
    let mine = subscribe(&here, "g").await.next().await;
    assert_eq!(there.acknowledge(consumer.session, vec![mine.message_id.clone()]).await.unwrap(), [mine.message_id]);
}

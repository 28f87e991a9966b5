//! QueueService on the embedded backend: contract §4, §9 "queue" and "topics".

use std::collections::BTreeMap;
use std::time::Duration;

use prism_e2e::site::{config, unique, with_option};
use prism_e2e::wait::{next, silent};
use prism_e2e::{Options, Pattern, Refused as _, Session, Shared, Site};
use prism_proto::queue::v1::{
    AcknowledgeRequest, BatchMessage, CommitRequest, GetTopicInfoRequest, GetTopicInfoResponse, Message,
    PartitionPosition, PublishBatchRequest, PublishRequest, SeekRequest, StartPosition, SubscribeRequest,
};
use tonic::{Code, Status, Streaming};

static SERVER: Shared = Shared::new();

async fn site() -> Site {
    Site::new(SERVER.get(Options::new()).await).await
}

async fn with(site: &Site, options: &[(&str, &str)]) -> Session {
    let start = config(&unique("queue"), &site.namespace, Pattern::Queue);
    let config = options.iter().fold(start, |config, (key, value)| with_option(config, key, value));
    let name = site.configure(config).await;
    site.session_of(&name).await
}

async fn receive(stream: &mut Streaming<Message>) -> Message {
    next("a message", stream).await.unwrap().unwrap()
}

async fn quiet(stream: &mut Streaming<Message>) {
    assert!(silent(stream, Duration::from_millis(200)).await, "there should be nothing more");
}

fn from(topic: &str, group: &str, position: StartPosition) -> SubscribeRequest {
    SubscribeRequest {
        topic: topic.to_owned(),
        consumer_group: group.to_owned(),
        position: position.into(),
        ..Default::default()
    }
}

async fn subscribe(session: &Session, request: SubscribeRequest) -> Streaming<Message> {
    session.queue().subscribe(request).await.unwrap().into_inner()
}

async fn info(session: &Session, topic: &str) -> Result<GetTopicInfoResponse, Status> {
    let request = GetTopicInfoRequest { topic: topic.to_owned(), ..Default::default() };
    Ok(session.queue().get_topic_info(request).await?.into_inner())
}

#[tokio::test]
async fn a_message_arrives_as_it_was_sent_offsets_from_0_attempts_from_1() {
    let site = site().await;
    let session = with(&site, &[]).await;
    let headers = BTreeMap::from([("kind".to_owned(), "order".to_owned())]);
    let request = PublishRequest {
        topic: "t".to_owned(),
        payload: vec![0, 255, 10].into(),
        headers: headers.clone(),
        ..Default::default()
    };
    let published = session.queue().publish(request).await.unwrap().into_inner();
    assert_eq!((published.offset, published.partition), (0, 0));
    let mut stream = session.subscribe("t", "g").await.unwrap();
    let message = receive(&mut stream).await;
    assert_eq!((message.payload.as_ref(), &message.headers), (&[0, 255, 10][..], &headers));
    assert_eq!((message.offset, message.partition, message.attempt, message.topic.as_str()), (0, 0, 1, "t"));
    assert_eq!(message.timestamp, published.timestamp);
    assert_eq!(session.publish("t", b"").await.unwrap().offset, 1);
    assert_eq!(receive(&mut stream).await.offset, 1);
}

#[tokio::test]
async fn a_group_gets_each_message_once_and_groups_do_not_disturb_each_other() {
    let site = site().await;
    let session = with(&site, &[]).await;
    for number in 0..10 {
        session.publish("t", format!("{number}").as_bytes()).await.unwrap();
    }
    for group in ["one", "two"] {
        let mut stream = session.subscribe("t", group).await.unwrap();
        for number in 0..10 {
            let message = receive(&mut stream).await;
            assert_eq!(message.payload, number.to_string(), "order holds within a partition");
            assert!(session.acknowledge(&message.message_id).await.unwrap());
        }
        quiet(&mut stream).await;
    }
    let mut again = session.subscribe("t", "one").await.unwrap();
    quiet(&mut again).await;
}

#[tokio::test]
async fn consumers_of_a_group_share_its_messages() {
    let site = site().await;
    let session = with(&site, &[("partitions", "4")]).await;
    let mut one = session.subscribe("t", "g").await.unwrap();
    let mut two = session.subscribe("t", "g").await.unwrap();
    for number in 0..40 {
        let request = PublishRequest {
            topic: "t".to_owned(),
            partition: Some(number % 4),
            payload: number.to_string().into(),
            ..Default::default()
        };
        session.queue().publish(request).await.unwrap();
    }
    let (mut seen, mut counts) = (Vec::new(), [0, 0]);
    while seen.len() < 40 {
        let (which, message) = tokio::select! {
            message = one.message() => (0, message),
            message = two.message() => (1, message),
            () = tokio::time::sleep(Duration::from_secs(20)) => panic!("{} of 40 messages came", seen.len()),
        };
        let message = message.unwrap().unwrap();
        counts[which] += 1;
        session.acknowledge(&message.message_id).await.unwrap();
        seen.push(message.payload);
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 40, "no message twice");
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
}

#[tokio::test]
async fn what_is_not_acknowledged_in_time_is_delivered_again() {
    let site = site().await;
    let session = with(&site, &[("ack_timeout_ms", "1000")]).await;
    session.publish("t", b"1").await.unwrap();
    let mut stream = session.subscribe("t", "g").await.unwrap();
    let first = receive(&mut stream).await;
    let second = receive(&mut stream).await;
    assert_eq!((second.offset, second.attempt), (first.offset, 2));
    assert!(session.acknowledge(&second.message_id).await.unwrap());
    assert!(silent(&mut stream, Duration::from_millis(1500)).await, "acknowledged is acknowledged");
}

#[tokio::test]
async fn what_a_lost_consumer_held_is_delivered_to_another() {
    let site = site().await;
    let (session, other) = (with(&site, &[]).await, with(&site, &[]).await);
    for payload in [b"1", b"2", b"3"] {
        session.publish("t", payload).await.unwrap();
    }
    let mut stream = session.subscribe("t", "g").await.unwrap();
    let first = receive(&mut stream).await;
    receive(&mut stream).await;
    assert!(session.acknowledge(&first.message_id).await.unwrap());
    drop(stream);
    let mut stream = other.subscribe("t", "g").await.unwrap();
    let (again, last) = (receive(&mut stream).await, receive(&mut stream).await);
    assert_eq!((again.payload.as_ref(), again.attempt), (&b"2"[..], 2));
    assert_eq!(last.payload, "3");
}

#[tokio::test]
async fn a_message_is_acknowledged_by_the_session_that_received_it() {
    let site = site().await;
    let (session, other) = (with(&site, &[]).await, with(&site, &[]).await);
    session.publish("t", b"1").await.unwrap();
    let mut stream = session.subscribe("t", "g").await.unwrap();
    let message = receive(&mut stream).await;
    let acknowledge = async |session: &Session, ids: &[&str]| {
        let request =
            AcknowledgeRequest { message_ids: ids.iter().map(|id| (*id).to_owned()).collect(), ..Default::default() };
        let answer = session.queue().acknowledge(request).await.unwrap().into_inner();
        (answer.success, answer.failed_ids)
    };
    let id = message.message_id.as_str();
    assert_eq!(acknowledge(&other, &[id]).await, (false, vec![id.to_owned()]));
    assert_eq!(acknowledge(&session, &[id, "nonsense"]).await, (false, vec!["nonsense".to_owned()]));
    assert_eq!(acknowledge(&session, &[id]).await, (false, vec![id.to_owned()]), "it is settled");
    session.queue().acknowledge(AcknowledgeRequest::default()).await.refused().names(&["message_ids"]);
}

#[tokio::test]
async fn positions_earliest_latest_committed_and_an_offset() {
    let site = site().await;
    let session = with(&site, &[]).await;
    for payload in [b"0", b"1", b"2"] {
        session.publish("t", payload).await.unwrap();
    }
    let mut committed = subscribe(&session, from("t", "new", StartPosition::Unspecified)).await;
    assert_eq!(receive(&mut committed).await.offset, 0, "COMMITTED of a new group is the earliest");
    let mut earliest = subscribe(&session, from("t", "a", StartPosition::Earliest)).await;
    assert_eq!(receive(&mut earliest).await.offset, 0);
    let request = SubscribeRequest { start_offset: Some(2), ..from("t", "b", StartPosition::Unspecified) };
    let mut offset = subscribe(&session, request).await;
    assert_eq!(receive(&mut offset).await.offset, 2);
    let mut latest = subscribe(&session, from("t", "c", StartPosition::Latest)).await;
    quiet(&mut latest).await;
    session.publish("t", b"3").await.unwrap();
    assert_eq!(receive(&mut latest).await.offset, 3);
}

#[tokio::test]
async fn commit_settles_everything_before_its_offset() {
    let site = site().await;
    let session = with(&site, &[]).await;
    for payload in [b"0", b"1", b"2"] {
        session.publish("t", payload).await.unwrap();
    }
    let mut stream = session.subscribe("t", "g").await.unwrap();
    for _ in 0..3 {
        receive(&mut stream).await;
    }
    let commit = CommitRequest {
        topic: "t".to_owned(),
        partition: 0,
        offset: 2,
        consumer_group: "g".to_owned(),
        ..Default::default()
    };
    assert!(session.queue().commit(commit.clone()).await.unwrap().into_inner().success);
    drop(stream);
    let mut stream = session.subscribe("t", "g").await.unwrap();
    assert_eq!(receive(&mut stream).await.offset, 2, "the committed offset is the next one to deliver");
    session
        .queue()
        .commit(CommitRequest { consumer_group: String::new(), ..commit.clone() })
        .await
        .refused()
        .names(&["consumer_group"]);
    assert!(session.queue().commit(CommitRequest { partition: 9, ..commit }).await.is_err());
}

#[tokio::test]
async fn seek_moves_a_group() {
    let site = site().await;
    let session = with(&site, &[]).await;
    for payload in [b"0", b"1", b"2"] {
        session.publish("t", payload).await.unwrap();
    }
    let mut stream = session.subscribe("t", "g").await.unwrap();
    for _ in 0..3 {
        let message = receive(&mut stream).await;
        session.acknowledge(&message.message_id).await.unwrap();
    }
    drop(stream);
    let seek = |offset| SeekRequest {
        topic: "t".to_owned(),
        consumer_group: "g".to_owned(),
        positions: vec![PartitionPosition { partition: 0, offset }],
        ..Default::default()
    };
    assert!(session.queue().seek(seek(1)).await.unwrap().into_inner().success);
    let mut stream = session.subscribe("t", "g").await.unwrap();
    assert_eq!(receive(&mut stream).await.offset, 1);
    session.queue().seek(seek(-1)).await.refused().names(&["positions[0].offset"]);
}

#[tokio::test]
async fn partitions_by_number_by_key_and_as_many_as_the_topic_was_made_with() {
    let site = site().await;
    let session = with(&site, &[("partitions", "4")]).await;
    let publish = async |key: Option<&str>, partition: Option<i32>| {
        let request = PublishRequest {
            topic: "t".to_owned(),
            partition_key: key.map(ToOwned::to_owned),
            partition,
            ..Default::default()
        };
        session.queue().publish(request).await.map(tonic::Response::into_inner)
    };
    assert_eq!(publish(None, Some(3)).await.unwrap().partition, 3);
    let by_key = publish(Some("customer-1"), None).await.unwrap().partition;
    for _ in 0..5 {
        assert_eq!(publish(Some("customer-1"), None).await.unwrap().partition, by_key);
    }
    assert_eq!(publish(None, Some(4)).await.refused().code, Code::InvalidArgument);
    let found = info(&session, "t").await.unwrap();
    assert_eq!((found.partition_count, found.message_count, found.partitions.len()), (4, 7, 4));
    // Another config of the namespace asks for another number: the topic keeps its own.
    let wider = with(&site, &[("partitions", "8")]).await;
    wider.publish("t", b"x").await.unwrap();
    assert_eq!(info(&wider, "t").await.unwrap().partition_count, 4);
}

#[tokio::test]
async fn topic_info_tells_offsets_and_a_subscribe_makes_a_topic() {
    let site = site().await;
    let session = with(&site, &[]).await;
    assert_eq!(info(&session, "t").await.refused().code, Code::NotFound);
    let _stream = session.subscribe("t", "g").await.unwrap();
    let partition = info(&session, "t").await.unwrap().partitions[0];
    assert_eq!((partition.earliest_offset, partition.latest_offset, partition.message_count), (0, 0, 0));
    session.publish("t", b"1").await.unwrap();
    let partition = info(&session, "t").await.unwrap().partitions[0];
    assert_eq!(
        (partition.earliest_offset, partition.latest_offset, partition.message_count),
        (0, 1, 1),
        "the next to be written"
    );
}

#[tokio::test]
async fn a_batch_is_published_in_order() {
    let site = site().await;
    let session = with(&site, &[]).await;
    let messages =
        (0..100).map(|number| BatchMessage { payload: format!("{number}").into(), ..Default::default() }).collect();
    let request = PublishBatchRequest { topic: "t".to_owned(), messages, ..Default::default() };
    let answer = session.queue().publish_batch(request).await.unwrap().into_inner();
    assert_eq!((answer.success_count, answer.failure_count), (100, 0));
    assert_eq!(answer.results.iter().map(|result| result.offset).collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
    let mut stream = session.subscribe("t", "g").await.unwrap();
    for number in 0..100 {
        assert_eq!(receive(&mut stream).await.payload, number.to_string());
    }
}

#[tokio::test]
async fn max_in_flight_holds_messages_back() {
    let site = site().await;
    let session = with(&site, &[]).await;
    for _ in 0..5 {
        session.publish("t", b"x").await.unwrap();
    }
    let request = SubscribeRequest { max_in_flight: Some(2), ..from("t", "g", StartPosition::Earliest) };
    let mut stream = subscribe(&session, request.clone()).await;
    let first = receive(&mut stream).await;
    receive(&mut stream).await;
    quiet(&mut stream).await;
    session.acknowledge(&first.message_id).await.unwrap();
    assert_eq!(receive(&mut stream).await.offset, 2);
    quiet(&mut stream).await;
    for bad in [0, -1, 10_001] {
        let request = SubscribeRequest { max_in_flight: Some(bad), ..request.clone() };
        session.queue().subscribe(request).await.refused().names(&["max_in_flight"]);
    }
}

#[tokio::test]
async fn an_acknowledged_publish_and_a_commit_survive_a_crash() {
    let site = Site::new(std::sync::Arc::new(prism_e2e::Prism::start(Options::new()).await)).await;
    let session = with(&site, &[]).await;
    for payload in [b"0", b"1"] {
        session.publish("t", payload).await.unwrap();
    }
    let mut stream = session.subscribe("t", "g").await.unwrap();
    let first = receive(&mut stream).await;
    session.acknowledge(&first.message_id).await.unwrap();
    site.server.crash_and_restart().await;
    let session = session.on(&site.server.data_channel());
    let mut stream = session.subscribe("t", "g").await.unwrap();
    let message = receive(&mut stream).await;
    assert_eq!((message.offset, message.payload.as_ref()), (1, &b"1"[..]));
    quiet(&mut stream).await;
}

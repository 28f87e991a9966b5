//! PubSubService on the memory backend: contract §4, §9 "pub/sub".

use std::collections::BTreeMap;
use std::time::Duration;

use prism_e2e::wait::{next, silent};
use prism_e2e::{Options, Pattern, Refused as _, Session, Shared, Site};
use prism_proto::pubsub::v1::{Event, PublishRequest, SubscribeRequest, UnsubscribeRequest};
use tonic::{Status, Streaming};

static SERVER: Shared = Shared::new();

async fn site() -> Site {
    Site::new(SERVER.get(Options::new()).await).await
}

async fn subscribe(session: &Session, pattern: &str, group: Option<&str>) -> Result<Streaming<Event>, Status> {
    let request = SubscribeRequest {
        topic_pattern: pattern.to_owned(),
        queue_group: group.map(ToOwned::to_owned),
        ..Default::default()
    };
    Ok(session.pub_sub().subscribe(request).await?.into_inner())
}

async fn publish(session: &Session, topic: &str) -> String {
    let request = PublishRequest { topic: topic.to_owned(), payload: topic.to_owned().into(), ..Default::default() };
    session.pub_sub().publish(request).await.unwrap().into_inner().event_id
}

async fn quiet(stream: &mut Streaming<Event>) {
    assert!(silent(stream, Duration::from_millis(150)).await, "there should be nothing more");
}

#[tokio::test]
async fn a_subscription_is_live_when_its_initial_metadata_arrive() {
    let site = site().await;
    let (publisher, subscriber) = (site.session(Pattern::PubSub).await, site.session(Pattern::PubSub).await);
    for round in 0..50 {
        let topic = format!("t.{round}");
        let mut stream = subscribe(&subscriber, &topic, None).await.unwrap();
        let id = publish(&publisher, &topic).await;
        let event = next("the event", &mut stream).await.unwrap().unwrap();
        assert_eq!((event.event_id, event.topic, event.payload), (id, topic.clone(), topic.into()));
    }
}

#[tokio::test]
async fn an_event_arrives_as_it_was_sent() {
    let site = site().await;
    let session = site.session(Pattern::PubSub).await;
    let mut stream = subscribe(&session, "a.b", None).await.unwrap();
    let metadata = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
    let request = PublishRequest {
        topic: "a.b".to_owned(),
        payload: vec![0, 255].into(),
        metadata: metadata.clone(),
        ..Default::default()
    };
    let answer = session.pub_sub().publish(request).await.unwrap().into_inner();
    let event = next("the event", &mut stream).await.unwrap().unwrap();
    assert_eq!(
        (event.payload.as_ref(), event.metadata, event.timestamp),
        (&[0, 255][..], metadata, answer.published_at)
    );
    assert!(!event.subscription_id.is_empty());
}

#[tokio::test]
async fn a_star_is_one_part_and_a_greater_than_one_or_more() {
    let site = site().await;
    let session = site.session(Pattern::PubSub).await;
    let topics = ["a", "a.b", "a.c", "a.b.c", "x.b"];
    for (pattern, expected) in [
        ("a.b", &["a.b"][..]),
        ("a.*", &["a.b", "a.c"]),
        ("*.b", &["a.b", "x.b"]),
        ("a.>", &["a.b", "a.c", "a.b.c"]),
        ("*", &["a"]),
        (">", &topics),
        ("a.*.c", &["a.b.c"]),
    ] {
        let mut stream = subscribe(&session, pattern, None).await.unwrap();
        for topic in topics {
            publish(&session, topic).await;
        }
        for topic in expected {
            assert_eq!(next("an event", &mut stream).await.unwrap().unwrap().topic, *topic, "{pattern}");
        }
        quiet(&mut stream).await;
    }
}

#[tokio::test]
async fn a_queue_group_gets_each_event_once_and_everyone_else_too() {
    let site = site().await;
    let session = site.session(Pattern::PubSub).await;
    let mut one = subscribe(&session, "t", Some("workers")).await.unwrap();
    let mut two = subscribe(&session, "t", Some("workers")).await.unwrap();
    let mut all = subscribe(&session, "t", None).await.unwrap();
    for _ in 0..20 {
        publish(&session, "t").await;
    }
    let mut everything = Vec::new();
    for _ in 0..20 {
        everything.push(next("an event", &mut all).await.unwrap().unwrap().event_id);
    }
    let mut shared = Vec::new();
    while shared.len() < 20 {
        let event = tokio::select! {
            event = one.message() => event,
            event = two.message() => event,
            () = tokio::time::sleep(Duration::from_secs(20)) => panic!("{} of 20 came", shared.len()),
        };
        shared.push(event.unwrap().unwrap().event_id);
    }
    shared.sort();
    everything.sort();
    assert_eq!(shared, everything);
    quiet(&mut one).await;
    quiet(&mut two).await;
}

#[tokio::test]
async fn unsubscribe_ends_a_subscription() {
    let site = site().await;
    let session = site.session(Pattern::PubSub).await;
    let unsubscribe = async |pattern: &str, id: Option<String>| {
        let request =
            UnsubscribeRequest { topic_pattern: pattern.to_owned(), subscription_id: id, ..Default::default() };
        session.pub_sub().unsubscribe(request).await.unwrap().into_inner().success
    };
    let (mut one, mut two) =
        (subscribe(&session, "t", None).await.unwrap(), subscribe(&session, "t", None).await.unwrap());
    publish(&session, "t").await;
    let first = next("an event", &mut one).await.unwrap().unwrap();
    next("an event", &mut two).await.unwrap().unwrap();
    assert!(unsubscribe("t", Some(first.subscription_id)).await);
    assert!(next("its end", &mut one).await.is_none(), "ends with OK");
    publish(&session, "t").await;
    next("an event", &mut two).await.unwrap().unwrap();
    assert!(unsubscribe("t", None).await);
    assert!(next("its end", &mut two).await.is_none());
    assert!(!unsubscribe("t", None).await, "there is none left");
    // Another session's subscriptions are its own.
    let other = site.session(Pattern::PubSub).await;
    let mut theirs = subscribe(&other, "t", None).await.unwrap();
    assert!(!unsubscribe("t", None).await);
    publish(&session, "t").await;
    next("an event", &mut theirs).await.unwrap().unwrap();
}

#[tokio::test]
async fn namespaces_do_not_hear_each_other() {
    let (one, two) = (site().await, site().await);
    let (session, other) = (one.session(Pattern::PubSub).await, two.session(Pattern::PubSub).await);
    let mut theirs = subscribe(&other, ">", None).await.unwrap();
    publish(&session, "t").await;
    quiet(&mut theirs).await;
}

#[tokio::test]
async fn a_slow_subscriber_loses_events_and_stops_nobody() {
    let site = site().await;
    let session = site.session(Pattern::PubSub).await;
    let _slow = subscribe(&session, "t", None).await.unwrap();
    let payload = bytes::Bytes::from(vec![0; 100_000]);
    for _ in 0..500 {
        let request = PublishRequest { topic: "t".to_owned(), payload: payload.clone(), ..Default::default() };
        prism_e2e::wait::within("a publish", session.pub_sub().publish(request)).await.unwrap();
    }
}

#[tokio::test]
async fn malformed_topics_and_patterns_are_refused() {
    let site = site().await;
    let session = site.session(Pattern::PubSub).await;
    for bad in ["", "a..b", ".a", "a.", "a.*", ">", "a b", &"x".repeat(256)] {
        let request = PublishRequest { topic: bad.to_owned(), ..Default::default() };
        session.pub_sub().publish(request).await.refused().names(&["topic"]);
    }
    for bad in ["", "a..b", "a.>.b", "a*", "a.b>", &"x".repeat(256)] {
        subscribe(&session, bad, None).await.refused().names(&["topic_pattern"]);
    }
    subscribe(&session, "t", Some("")).await.refused().names(&["queue_group"]);
}

//! What PUBSUB means, on every driver.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use prism_core::Kind;
use prism_core::config::AccessPattern;
use prism_core::session::SessionId;

use super::Subject;
use crate::driver::{Event, PubSub, PubSubSubscription, Route};

/// How long an event may take to arrive.
const ARRIVES_WITHIN: Duration = Duration::from_secs(5);
/// How long nothing must arrive to believe that nothing will.
const SILENCE: Duration = Duration::from_millis(100);

/// Runs all checks.
pub async fn run(subject: &Subject) {
    delivers_events_whole(subject).await;
    matches_wildcards(subject).await;
    keeps_order(subject).await;
    gives_one_member_of_a_group_each_event(subject).await;
    ends_subscriptions(subject).await;
    loses_only_what_the_slow_do_not_take(subject).await;
    keeps_namespaces_apart(subject).await;
    refuses_handles_of_a_removed_namespace(subject).await;
}

async fn open(subject: &Subject, namespace: &str) -> Arc<dyn PubSub> {
    match subject.open(namespace, AccessPattern::PubSub, &[]).await.0 {
        Route::PubSub(events) => events,
        _ => panic!("the backend opened another pattern"),
    }
}

async fn subscribe(events: &Arc<dyn PubSub>, pattern: &str, group: Option<&str>) -> PubSubSubscription {
    events.subscribe(SessionId::generate(), pattern, group).await.unwrap()
}

async fn publish(events: &Arc<dyn PubSub>, topic: &str, payload: &str) {
    events.publish(topic, Bytes::from(payload.to_owned()), BTreeMap::new()).await.unwrap();
}

async fn next(subscription: &mut PubSubSubscription) -> Event {
    tokio::time::timeout(ARRIVES_WITHIN, subscription.events.next()).await.expect("an event is due").expect("it runs")
}

async fn waiting(subscription: &mut PubSubSubscription) -> Vec<Bytes> {
    let mut payloads = Vec::new();
    while let Ok(Some(event)) = tokio::time::timeout(SILENCE, subscription.events.next()).await {
        payloads.push(event.payload);
    }
    payloads
}

async fn ended(subscription: &mut PubSubSubscription) -> bool {
    matches!(tokio::time::timeout(ARRIVES_WITHIN, subscription.events.next()).await, Ok(None))
}

async fn delivers_events_whole(subject: &Subject) {
    let events = open(subject, "ps-whole").await;
    publish(&events, "a.b", "nobody listens").await;
    let mut subscription = subscribe(&events, "a.b", None).await;
    let metadata = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
    let (id, at) = events.publish("a.b", Bytes::from_static(b"\0\xff"), metadata.clone()).await.unwrap();
    let event = next(&mut subscription).await;
    assert_eq!((event.event_id, event.timestamp), (id, at));
    assert_eq!((event.topic.as_str(), &event.payload[..], event.metadata), ("a.b", &b"\0\xff"[..], metadata));
    assert!(waiting(&mut subscription).await.is_empty());
}

async fn matches_wildcards(subject: &Subject) {
    let events = open(subject, "ps-wild").await;
    let mut subscriptions = Vec::new();
    for (pattern, expected) in [("a.*", vec!["a.b", "a.c"]), ("a.>", vec!["a.b", "a.b.c", "a.c"]), ("a.b", vec!["a.b"])]
    {
        subscriptions.push((subscribe(&events, pattern, None).await, expected));
    }
    for topic in ["a", "a.b", "a.b.c", "b", "a.c"] {
        publish(&events, topic, topic).await;
    }
    for (mut subscription, expected) in subscriptions {
        assert_eq!(waiting(&mut subscription).await, expected);
    }
}

async fn keeps_order(subject: &Subject) {
    let events = open(subject, "ps-order").await;
    let mut subscription = subscribe(&events, ">", None).await;
    for n in 0..100 {
        publish(&events, "t", &n.to_string()).await;
    }
    for n in 0..100 {
        assert_eq!(next(&mut subscription).await.payload, n.to_string());
    }
}

async fn gives_one_member_of_a_group_each_event(subject: &Subject) {
    let events = open(subject, "ps-group").await;
    let mut members = Vec::new();
    for _ in 0..3 {
        members.push(subscribe(&events, "t", Some("g")).await);
    }
    let mut other_group = subscribe(&events, "*", Some("h")).await;
    let mut alone = subscribe(&events, "t", None).await;
    for n in 0..30 {
        publish(&events, "t", &n.to_string()).await;
    }
    let mut all = Vec::new();
    for member in &mut members {
        let got = waiting(member).await;
        assert!(!got.is_empty(), "each member takes its share");
        all.extend(got);
    }
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 30, "each event went to exactly one member");
    assert_eq!(waiting(&mut other_group).await.len(), 30);
    assert_eq!(waiting(&mut alone).await.len(), 30);
    // The group goes on when members leave.
    members.truncate(1);
    for n in 0..10 {
        publish(&events, "t", &n.to_string()).await;
    }
    assert_eq!(waiting(&mut members[0]).await.len(), 10);
}

async fn ends_subscriptions(subject: &Subject) {
    let events = open(subject, "ps-end").await;
    let (session, stranger) = (SessionId::generate(), SessionId::generate());
    let mut one = events.subscribe(session, "t.*", None).await.unwrap();
    let mut two = events.subscribe(session, "t.*", Some("g")).await.unwrap();
    let mut other = events.subscribe(session, "t.>", None).await.unwrap();
    assert!(!events.unsubscribe(stranger, "t.*", None).await.unwrap(), "another session's");
    assert!(!events.unsubscribe(stranger, "t.*", Some(&one.subscription_id)).await.unwrap(), "another session's");
    assert!(!events.unsubscribe(session, "t", None).await.unwrap());
    assert!(events.unsubscribe(session, "t.*", Some(&one.subscription_id)).await.unwrap());
    assert!(!events.unsubscribe(session, "t.*", Some(&one.subscription_id)).await.unwrap(), "only once");
    assert!(ended(&mut one).await);
    publish(&events, "t.x", "still").await;
    assert_eq!(next(&mut two).await.payload, "still");
    assert!(events.unsubscribe(session, "t.*", None).await.unwrap());
    assert!(ended(&mut two).await);
    assert_eq!(next(&mut other).await.payload, "still");
    drop(other);
    assert!(!events.unsubscribe(session, "t.>", None).await.unwrap(), "a dropped subscription is gone");
}

async fn loses_only_what_the_slow_do_not_take(subject: &Subject) {
    let events = open(subject, "ps-slow").await;
    let mut slow = subscribe(&events, "t", None).await;
    let mut quick = subscribe(&events, "t", None).await;
    for n in 0..5000 {
        publish(&events, "t", &n.to_string()).await;
        assert_eq!(next(&mut quick).await.payload, n.to_string());
    }
    let kept = waiting(&mut slow).await;
    assert!(!kept.is_empty() && kept.len() < 5000, "bounded: {}", kept.len());
    assert_eq!(kept[0], "0", "the newest are lost");
    publish(&events, "t", "after").await;
    assert_eq!(next(&mut slow).await.payload, "after", "it is served again");
}

async fn keeps_namespaces_apart(subject: &Subject) {
    let (one, two) = (open(subject, "ps-one").await, open(subject, "ps-two").await);
    let mut subscription = subscribe(&one, ">", None).await;
    publish(&two, "t", "not here").await;
    publish(&open(subject, "ps-one").await, "t", "here").await;
    assert_eq!(waiting(&mut subscription).await, ["here"]);
}

async fn refuses_handles_of_a_removed_namespace(subject: &Subject) {
    let events = open(subject, "ps-removed").await;
    let mut subscription = subscribe(&events, "t", None).await;
    let namespace = subject.config("ps-removed", AccessPattern::PubSub, &[]).namespace;
    subject.backend.remove_namespace(&namespace).await.unwrap();
    assert!(ended(&mut subscription).await);
    let refused = events.publish("t", Bytes::new(), BTreeMap::new()).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::FailedPrecondition);
    assert!(events.subscribe(SessionId::generate(), "t", None).await.is_err());
}

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use prism_core::session::SessionId;
use prism_core::{Clock, Result, UnixMillis};
use tokio::sync::mpsc;
use tracing::warn;
use uuid::Uuid;

use crate::driver::{Event, PubSub, PubSubSubscription, namespace_removed, topic_matches};

/// Most events that wait for one subscriber.
const MAX_WAITING_EVENTS: usize = 1024;
/// Most bytes that wait for one subscriber: large events must not fill the memory. One event always fits.
const MAX_WAITING_BYTES: usize = 64 * 1024 * 1024;
/// What an event takes besides its texts and payload, roughly.
const EVENT_OVERHEAD: usize = 256;
/// A subscriber that loses events is mentioned in the log at most this often.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// PUBSUB of one namespace.
pub(super) struct MemoryPubSub {
    clock: Clock,
    hub: Arc<Hub>,
}

#[derive(Default)]
struct Hub {
    subscribers: RwLock<Subscribers>,
    closed: AtomicBool,
}

#[derive(Default)]
struct Subscribers {
    /// Those without wildcards, by topic.
    exact: HashMap<String, Vec<Arc<Subscriber>>>,
    /// Those with wildcards.
    wild: Vec<Arc<Subscriber>>,
    /// For each queue group its number of members and how many events it has had.
    groups: HashMap<String, (usize, AtomicUsize)>,
}

struct Subscriber {
    id: String,
    session: SessionId,
    pattern: String,
    group: Option<String>,
    sender: mpsc::Sender<Event>,
    waiting_bytes: Arc<AtomicUsize>,
    /// Events lost since the last warning.
    lost: AtomicU64,
    /// When the next warning is due.
    warn_at: AtomicI64,
}

/// Topics without wildcards are found by a look-up.
fn is_wild(pattern: &str) -> bool {
    pattern.split('.').any(|part| matches!(part, "*" | ">"))
}

fn size(event: &Event) -> usize {
    let metadata: usize = event.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    event.payload.len() + event.topic.len() + metadata + EVENT_OVERHEAD
}

impl Subscriber {
    /// Hands the event over unless too much waits already.
    fn offer(&self, event: &Event) -> bool {
        let size = size(event);
        let before = self.waiting_bytes.fetch_add(size, Ordering::Relaxed);
        let fits = before == 0 || before + size <= MAX_WAITING_BYTES;
        if fits && self.sender.try_send(event.clone()).is_ok() {
            return true;
        }
        self.waiting_bytes.fetch_sub(size, Ordering::Relaxed);
        false
    }

    fn count_lost(&self, now: UnixMillis) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        let due = self.warn_at.load(Ordering::Relaxed);
        let next = (now + WARN_EVERY).0;
        // Who moves the time on is the one who writes.
        if now.0 >= due && self.warn_at.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let lost = self.lost.swap(0, Ordering::Relaxed);
            warn!(subscription.id = self.id, session.id = %self.session, lost, "a subscriber does not keep up; it lost events");
        }
    }
}

impl Subscribers {
    fn add(&mut self, subscriber: Arc<Subscriber>) {
        if let Some(group) = &subscriber.group {
            self.groups.entry(group.clone()).or_default().0 += 1;
        }
        if is_wild(&subscriber.pattern) {
            self.wild.push(subscriber);
        } else {
            self.exact.entry(subscriber.pattern.clone()).or_default().push(subscriber);
        }
    }

    /// Removes the subscribers to `pattern` that `leaves` names; returns whether there was one.
    fn remove(&mut self, pattern: &str, leaves: impl Fn(&Subscriber) -> bool) -> bool {
        let mut gone = Vec::new();
        let mut part = |all: &mut Vec<Arc<Subscriber>>| {
            gone.extend(all.extract_if(.., |subscriber| subscriber.pattern == pattern && leaves(subscriber)));
        };
        if is_wild(pattern) {
            part(&mut self.wild);
        } else if let Some(all) = self.exact.get_mut(pattern) {
            part(all);
            if all.is_empty() {
                self.exact.remove(pattern);
            }
        }
        for group in gone.iter().filter_map(|subscriber| subscriber.group.as_ref()) {
            if let Some((members, _)) = self.groups.get_mut(group) {
                *members -= 1;
                if *members == 0 {
                    self.groups.remove(group);
                }
            }
        }
        !gone.is_empty()
    }

    fn matching(&self, topic: &str) -> impl Iterator<Item = &Arc<Subscriber>> {
        let exact = self.exact.get(topic).map(Vec::as_slice).unwrap_or_default();
        exact.iter().chain(self.wild.iter().filter(move |subscriber| topic_matches(&subscriber.pattern, topic)))
    }

    fn publish(&self, event: &Event) {
        let mut groups: BTreeMap<&str, Vec<&Arc<Subscriber>>> = BTreeMap::new();
        for subscriber in self.matching(&event.topic) {
            match &subscriber.group {
                Some(group) => groups.entry(group).or_default().push(subscriber),
                None if subscriber.offer(event) => {}
                None => subscriber.count_lost(event.timestamp),
            }
        }
        for (group, members) in groups {
            let turn = self.groups.get(group).map_or(0, |(_, turns)| turns.fetch_add(1, Ordering::Relaxed));
            let first = turn % members.len();
            // A member that does not keep up is passed over; only when all are full the event is lost.
            let mut in_turn = members.iter().cycle().skip(first).take(members.len());
            if !in_turn.any(|member| member.offer(event))
                && let Some(member) = members.get(first)
            {
                member.count_lost(event.timestamp);
            }
        }
    }
}

impl Hub {
    fn remove(&self, pattern: &str, leaves: impl Fn(&Subscriber) -> bool) -> bool {
        self.subscribers.write().unwrap_or_else(PoisonError::into_inner).remove(pattern, leaves)
    }
}

/// The receiving end; it leaves the hub when it is dropped.
struct Events {
    receiver: mpsc::Receiver<Event>,
    waiting_bytes: Arc<AtomicUsize>,
    hub: Arc<Hub>,
    id: String,
    pattern: String,
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        let received = self.receiver.poll_recv(context);
        if let Poll::Ready(Some(event)) = &received {
            self.waiting_bytes.fetch_sub(size(event), Ordering::Relaxed);
        }
        received
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.hub.remove(&self.pattern, |subscriber| subscriber.id == self.id);
    }
}

impl MemoryPubSub {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, hub: Arc::default() }
    }

    /// Refuses what comes and ends all subscriptions.
    pub(super) fn close(&self) {
        let mut subscribers = self.hub.subscribers.write().unwrap_or_else(PoisonError::into_inner);
        self.hub.closed.store(true, Ordering::SeqCst);
        *subscribers = Subscribers::default();
    }
}

#[async_trait]
impl PubSub for MemoryPubSub {
    async fn publish(
        &self,
        topic: &str,
        payload: Bytes,
        metadata: BTreeMap<String, String>,
    ) -> Result<(String, UnixMillis)> {
        let event = Event {
            event_id: Uuid::now_v7().to_string(),
            topic: topic.to_owned(),
            // A copy: what came over the wire is a slice of a buffer that may be much larger.
            payload: Bytes::copy_from_slice(&payload),
            metadata,
            timestamp: self.clock.now(),
        };
        let subscribers = self.hub.subscribers.read().unwrap_or_else(PoisonError::into_inner);
        if self.hub.closed.load(Ordering::SeqCst) {
            return Err(namespace_removed());
        }
        subscribers.publish(&event);
        Ok((event.event_id, event.timestamp))
    }

    async fn subscribe(
        &self,
        session: SessionId,
        pattern: &str,
        queue_group: Option<&str>,
    ) -> Result<PubSubSubscription> {
        let (sender, receiver) = mpsc::channel(MAX_WAITING_EVENTS);
        let id = Uuid::now_v7().to_string();
        let waiting_bytes = Arc::new(AtomicUsize::new(0));
        let subscriber = Subscriber {
            id: id.clone(),
            session,
            pattern: pattern.to_owned(),
            group: queue_group.filter(|group| !group.is_empty()).map(str::to_owned),
            sender,
            waiting_bytes: Arc::clone(&waiting_bytes),
            lost: AtomicU64::new(0),
            warn_at: AtomicI64::new(0),
        };
        {
            let mut subscribers = self.hub.subscribers.write().unwrap_or_else(PoisonError::into_inner);
            if self.hub.closed.load(Ordering::SeqCst) {
                return Err(namespace_removed());
            }
            subscribers.add(Arc::new(subscriber));
        }
        let hub = Arc::clone(&self.hub);
        let events = Events { receiver, waiting_bytes, hub, id: id.clone(), pattern: pattern.to_owned() };
        Ok(PubSubSubscription { subscription_id: id, events: Box::pin(events) })
    }

    async fn unsubscribe(&self, session: SessionId, pattern: &str, subscription_id: Option<&str>) -> Result<bool> {
        Ok(self.hub.remove(pattern, |subscriber| {
            subscriber.session == session && subscription_id.is_none_or(|id| subscriber.id == id)
        }))
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    async fn publish(events: &MemoryPubSub, bytes: usize) {
        events.publish("t", Bytes::from(vec![0; bytes]), BTreeMap::new()).await.unwrap();
    }

    #[tokio::test]
    async fn what_waits_is_bounded_by_bytes_too() {
        let events = MemoryPubSub::new(Clock::system());
        let mut subscription = events.subscribe(SessionId::generate(), "t", None).await.unwrap();
        publish(&events, MAX_WAITING_BYTES + 1).await;
        publish(&events, 1).await;
        assert_eq!(subscription.events.next().await.unwrap().payload.len(), MAX_WAITING_BYTES + 1, "one always fits");
        let third = MAX_WAITING_BYTES / 3;
        for _ in 0..10 {
            publish(&events, third).await;
        }
        drop(events);
        let mut kept = 0;
        while let Ok(Some(_)) = tokio::time::timeout(Duration::from_millis(50), subscription.events.next()).await {
            kept += 1;
        }
        assert_eq!(kept, 2);
    }

    #[tokio::test]
    async fn nothing_stays_of_who_has_left() {
        let events = MemoryPubSub::new(Clock::system());
        for pattern in ["a.b", "a.*"] {
            drop(events.subscribe(SessionId::generate(), pattern, Some("g")).await.unwrap());
        }
        let subscribers = events.hub.subscribers.read().unwrap();
        assert!(subscribers.exact.is_empty() && subscribers.wild.is_empty() && subscribers.groups.is_empty());
    }
}

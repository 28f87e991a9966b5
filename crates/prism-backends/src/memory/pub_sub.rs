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
/// Most bytes that wait for one subscriber: large events must not fill the memory. One event fits whatever its size.
const MAX_WAITING_BYTES: usize = 8 * 1024 * 1024;
/// Most bytes that wait for all subscribers of a namespace; an event counts once, however many wait for it.
const MAX_NAMESPACE_BYTES: usize = 64 * 1024 * 1024;
/// A subscriber may have this part of the bytes that are left of a namespace's: those who do not keep up leave some for those
/// who do, whatever their number.
const SHARE_OF_THE_REST: usize = 4;
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
    /// Bytes of the events that wait for anybody.
    waiting_bytes: Arc<AtomicUsize>,
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
    sender: mpsc::Sender<Arc<Waiting>>,
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

/// An event on its way. All who wait for it share it; it gives its room back with the last of them.
struct Waiting {
    event: Event,
    bytes: usize,
    /// What the namespace has left with this one in it; `None` = it does not fit.
    left: Option<usize>,
    in_all: Arc<AtomicUsize>,
}

impl Waiting {
    fn new(event: Event, in_all: &Arc<AtomicUsize>) -> Arc<Self> {
        let metadata: usize = event.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
        let bytes = event.payload.len() + event.topic.len() + metadata + EVENT_OVERHEAD;
        let before = in_all.fetch_add(bytes, Ordering::Relaxed);
        let left = MAX_NAMESPACE_BYTES.checked_sub(before + bytes);
        Arc::new(Self { event, bytes, left, in_all: Arc::clone(in_all) })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.in_all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Subscriber {
    /// Hands the event over unless too much waits already.
    fn offer(&self, event: &Arc<Waiting>) -> bool {
        let Some(left) = event.left else { return false };
        let before = self.waiting_bytes.fetch_add(event.bytes, Ordering::Relaxed);
        let fits = before == 0 || before + event.bytes <= MAX_WAITING_BYTES.min(left / SHARE_OF_THE_REST);
        if fits && self.sender.try_send(Arc::clone(event)).is_ok() {
            return true;
        }
        self.waiting_bytes.fetch_sub(event.bytes, Ordering::Relaxed);
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

    fn publish(&self, event: &Arc<Waiting>) {
        let (topic, now) = (&event.event.topic, event.event.timestamp);
        let mut groups: BTreeMap<&str, Vec<&Arc<Subscriber>>> = BTreeMap::new();
        for subscriber in self.matching(topic) {
            match &subscriber.group {
                Some(group) => groups.entry(group).or_default().push(subscriber),
                None if subscriber.offer(event) => {}
                None => subscriber.count_lost(now),
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
                member.count_lost(now);
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
    receiver: mpsc::Receiver<Arc<Waiting>>,
    waiting_bytes: Arc<AtomicUsize>,
    hub: Arc<Hub>,
    id: String,
    pattern: String,
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.receiver.poll_recv(context).map(|received| {
            let waiting = received?;
            self.waiting_bytes.fetch_sub(waiting.bytes, Ordering::Relaxed);
            Some(waiting.event.clone())
        })
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
        let (id, now) = (event.event_id.clone(), event.timestamp);
        subscribers.publish(&Waiting::new(event, &self.hub.waiting_bytes));
        Ok((id, now))
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
    async fn what_waits_is_bounded_for_the_namespace_and_leaves_room_for_who_keeps_up() {
        let events = MemoryPubSub::new(Clock::system());
        let waiting = || events.hub.waiting_bytes.load(Ordering::Relaxed);
        let mut slow = Vec::new();
        for n in 0..200 {
            let topic = format!("slow.{n}");
            slow.push(events.subscribe(SessionId::generate(), &topic, None).await.unwrap());
            for _ in 0..20 {
                events.publish(&topic, Bytes::from(vec![0; 512 * 1024]), BTreeMap::new()).await.unwrap();
            }
        }
        assert!((MAX_NAMESPACE_BYTES / 2..=MAX_NAMESPACE_BYTES).contains(&waiting()), "{}", waiting());
        drop(slow.split_off(100));
        let mut keeps_up = events.subscribe(SessionId::generate(), "t", None).await.unwrap();
        for _ in 0..100 {
            publish(&events, 64 * 1024).await;
            keeps_up.events.next().await.unwrap();
        }
        drop(slow);
        assert_eq!(waiting(), 0);
        let many =
            futures::future::join_all((0..100).map(|_| events.subscribe(SessionId::generate(), "t", None))).await;
        publish(&events, 4 << 20).await;
        assert!(waiting() < 5 << 20, "one event counts once");
        for subscription in many {
            subscription.unwrap().events.next().await.unwrap();
        }
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

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use async_trait::async_trait;
use prism_core::config::Config;
use prism_core::session::SessionId;
use prism_core::{Error, Kind, Result};
use tokio::sync::{Mutex, Notify};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tracing::warn;

use super::MAX_PARTITIONS;
use super::acknowledge::{Acknowledger, Settle};
use super::combine::Combiner;
use super::log::{self, LogRecord};
use super::message_id::MessageId;
use super::positions::Target;
use super::publish::{Publish, Publisher};
use super::topic::Topic;
use crate::driver::{
    PartitionInfo, Publication, Published, Queue, QueueSubscription, StartPosition, SubscribeRequest, TopicInfo,
};
use crate::sqlite::space::Space;

/// Default of option `ack_timeout_ms`.
const ACK_TIMEOUT_MS: i64 = 30_000;
/// Default of option `retention_ms`: messages are kept.
const KEEP_EVERYTHING: i64 = 0;
/// Longest time between two looks for messages past their retention.
const TRIM_EVERY: Duration = Duration::from_mins(1);
/// Shortest time between two looks.
const TRIM_PAUSE: Duration = Duration::from_millis(500);

/// The queue of one namespace, shared by all its sessions: deliveries are known in one place only.
pub(crate) struct Coordinator {
    space: Arc<Space>,
    topics: RwLock<Topics>,
    /// Held while a topic is loaded or made, so that there is never a second one.
    loading: Mutex<()>,
    publisher: Arc<Combiner<Publisher>>,
    acknowledger: Arc<Combiner<Acknowledger>>,
    /// The shortest retention of the topics made since the queue was opened, in milliseconds.
    shortest_retention: AtomicI64,
    shorter: Arc<Notify>,
    tidying: AbortHandle,
}

#[derive(Default)]
struct Topics {
    by_name: HashMap<String, Arc<Topic>>,
    by_id: HashMap<i64, Arc<Topic>>,
}

impl Coordinator {
    /// Opens the queue of a space; at most one at a time. Must be called within a Tokio runtime.
    pub(crate) fn open(space: Arc<Space>) -> Result<Arc<Self>> {
        let runtime = tokio::runtime::Handle::try_current().map_err(Error::internal)?;
        let shorter = Arc::new(Notify::new());
        Ok(Arc::new_cyclic(|coordinator| Self {
            publisher: Combiner::new(Arc::clone(&space), Publisher { clock: space.clock.clone() }),
            acknowledger: Combiner::new(Arc::clone(&space), Acknowledger),
            tidying: runtime.spawn(tidy_until_dropped(Weak::clone(coordinator), Arc::clone(&shorter))).abort_handle(),
            shortest_retention: AtomicI64::new(i64::MAX),
            shorter,
            topics: RwLock::default(),
            loading: Mutex::new(()),
            space,
        }))
    }

    /// The queue as sessions with this config see it.
    pub(crate) fn handle(self: &Arc<Self>, config: &Config) -> Arc<dyn Queue> {
        let millis = |option, default| u64::try_from(config.option_i64(option, default)).unwrap_or(0);
        Arc::new(EmbeddedQueue {
            coordinator: Arc::clone(self),
            partitions: usize::try_from(config.option_i64("partitions", 1)).unwrap_or(1).max(1),
            ack_timeout: Duration::from_millis(millis("ack_timeout_ms", ACK_TIMEOUT_MS)),
            retention_ms: config.option_i64("retention_ms", KEEP_EVERYTHING),
        })
    }

    fn loaded(&self, name: &str) -> Option<Arc<Topic>> {
        self.topics.read().unwrap_or_else(PoisonError::into_inner).by_name.get(name).cloned()
    }

    /// The topic called `name`; with `make` (partitions, retention) it is made when it does not exist, else NOT_FOUND.
    async fn topic(&self, name: &str, make: Option<(usize, i64)>) -> Result<Arc<Topic>> {
        if let Some(topic) = self.loaded(name) {
            return Ok(topic);
        }
        let _loading = self.loading.lock().await;
        if let Some(topic) = self.loaded(name) {
            return Ok(topic);
        }
        let wanted = name.to_owned();
        let found = self.space.readers().run(move |connection| log::find(connection, &wanted)).await?;
        let record = match (found, make) {
            (Some(record), _) => record,
            (None, Some((partitions, retention_ms))) => self.make(name, partitions, retention_ms).await?,
            (None, None) => return Err(Error::not_found(format_args!("topic:{name}"))),
        };
        let topic = Topic::new(record);
        let mut topics = self.topics.write().unwrap_or_else(PoisonError::into_inner);
        topics.by_id.insert(topic.log.id, Arc::clone(&topic));
        topics.by_name.insert(name.to_owned(), Arc::clone(&topic));
        Ok(topic)
    }

    async fn make(&self, name: &str, partitions: usize, retention_ms: i64) -> Result<LogRecord> {
        let name = name.to_owned();
        let make = move |connection: &_| {
            log::find_or_make(connection, &name, partitions, retention_ms, MAX_PARTITIONS).map(|record| (record, 0))
        };
        let record = self.space.write(make).await?;
        if retention_ms != KEEP_EVERYTHING
            && retention_ms < self.shortest_retention.fetch_min(retention_ms, Ordering::Relaxed)
        {
            self.shorter.notify_one();
        }
        Ok(record)
    }

    /// Messages of `ids` that `session` holds, as they are to be settled, each with which of `ids` it is about.
    fn held(&self, session: SessionId, ids: &[String]) -> Vec<(Settle, Vec<usize>)> {
        let mut by_topic: HashMap<i64, Vec<(usize, MessageId)>> = HashMap::new();
        for (number, id) in ids.iter().enumerate() {
            if let Some(id) = MessageId::parse(id) {
                by_topic.entry(id.topic).or_default().push((number, id));
            }
        }
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        let named =
            by_topic.into_iter().filter_map(|(topic, wanted)| Some((Arc::clone(topics.by_id.get(&topic)?), wanted)));
        let named: Vec<_> = named.collect();
        drop(topics);
        let mut held: Vec<(Settle, Vec<usize>)> = Vec::new();
        for (topic, wanted) in named {
            let (numbers, wanted): (Vec<_>, Vec<_>) = wanted.into_iter().unzip();
            for group in topic.groups() {
                let mut of_group: HashMap<(usize, i64), (Vec<i64>, Vec<usize>)> = HashMap::new();
                let epochs = group.begin_settle(session, &wanted);
                for ((epoch, id), number) in epochs.into_iter().zip(&wanted).zip(&numbers) {
                    let Some(epoch) = epoch else { continue };
                    let (offsets, about) = of_group.entry((id.partition as usize, epoch)).or_default();
                    offsets.push(id.offset);
                    about.push(*number);
                }
                for ((index, epoch), (offsets, about)) in of_group {
                    let Ok(partition) = topic.log.partition(index).map(|partition| partition.id) else { continue };
                    held.push((Settle { group: Arc::clone(&group), index, partition, epoch, offsets }, about));
                }
            }
        }
        held
    }

    /// Removes what is past its topic's retention and forgets groups that nobody uses; answers when to look again.
    pub(super) async fn tidy(&self) -> Result<Duration> {
        let topics: Vec<_> =
            self.topics.read().unwrap_or_else(PoisonError::into_inner).by_id.values().cloned().collect();
        for topic in topics {
            topic.retire_idle(Instant::now());
        }
        let now = self.space.clock.now();
        let (stale, shortest) = self.space.readers().run(move |connection| log::stale(connection, now)).await?;
        for partition in stale {
            while self.space.write(move |connection| log::trim(connection, partition, now)).await? {}
        }
        let asked = self.shortest_retention.load(Ordering::Relaxed);
        let half = u64::try_from(shortest.unwrap_or(asked).min(asked) / 2).unwrap_or(0);
        Ok(Duration::from_millis(half).clamp(TRIM_PAUSE, TRIM_EVERY))
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.tidying.abort();
    }
}

async fn tidy_until_dropped(coordinator: Weak<Coordinator>, shorter: Arc<Notify>) {
    let mut pause = TRIM_PAUSE;
    loop {
        // A shorter retention cuts the pause, but not below the shortest one.
        tokio::time::sleep(TRIM_PAUSE).await;
        let _ = tokio::time::timeout(pause.saturating_sub(TRIM_PAUSE), shorter.notified()).await;
        let Some(coordinator) = coordinator.upgrade() else { return };
        pause = match coordinator.tidy().await {
            Ok(pause) => pause,
            Err(failed) if matches!(failed.reason(), "NAMESPACE_REMOVED" | "STORAGE_CLOSED") => return,
            Err(failed) => {
                let (namespace, reason, cause) = (&coordinator.space.namespace, failed.reason(), failed.cause());
                warn!(%namespace, reason, ?cause, "messages past their retention could not be removed; next try in a minute");
                TRIM_EVERY
            }
        };
    }
}

/// A session's view of the queue: the coordinator with the options of its config.
struct EmbeddedQueue {
    coordinator: Arc<Coordinator>,
    /// For topics made through this handle.
    partitions: usize,
    /// For topics made through this handle; 0 = keeps everything.
    retention_ms: i64,
    ack_timeout: Duration,
}

impl EmbeddedQueue {
    async fn made(&self, topic: &str) -> Result<Arc<Topic>> {
        self.coordinator.topic(topic, Some((self.partitions, self.retention_ms))).await
    }

    /// One result for each message.
    async fn store(&self, topic: &Arc<Topic>, messages: Vec<(usize, Publication)>) -> Result<Vec<Result<Published>>> {
        let publisher = &self.coordinator.publisher;
        let messages: Arc<[_]> = messages.into();
        match publisher.submit(Publish { topic: Arc::clone(topic), messages: Arc::clone(&messages) }).await {
            Ok(places) => Ok(places.into_iter().map(Ok).collect()),
            // Together they are too much; each on its own, in order, some may fit.
            Err(refused) if refused.kind() == Kind::ResourceExhausted => {
                let alone = |message: &(usize, Publication)| Publish {
                    topic: Arc::clone(topic),
                    messages: Arc::from([message.clone()]),
                };
                let waiting: Vec<_> = messages.iter().map(|message| publisher.enqueue(alone(message))).collect();
                let mut results = Vec::with_capacity(waiting.len());
                for result in waiting {
                    results.push(one(result.await.map_err(Error::internal).flatten()));
                }
                Ok(results)
            }
            Err(failed) => Err(failed),
        }
    }

    fn targets(topic: &Topic, target: &Target) -> Vec<(usize, Target)> {
        (0..topic.log.partitions.len()).map(|index| (index, target.clone())).collect()
    }
}

fn one(published: Result<Vec<Published>>) -> Result<Published> {
    published?.pop().ok_or_else(|| Error::internal("a publish has no result"))
}

#[async_trait]
impl Queue for EmbeddedQueue {
    async fn publish(&self, topic: &str, message: Publication) -> Result<Published> {
        let topic = self.made(topic).await?;
        let index = topic.log.route(&message)?;
        one(self.coordinator.publisher.submit(Publish { topic, messages: Arc::from([(index, message)]) }).await)
    }

    async fn publish_many(&self, topic: &str, messages: Vec<Publication>) -> Result<Vec<Result<Published>>> {
        let topic = self.made(topic).await?;
        let mut routed = Vec::with_capacity(messages.len());
        let mut refusals = Vec::with_capacity(messages.len());
        for message in messages {
            refusals.push(topic.log.route(&message).map(|index| routed.push((index, message))).err());
        }
        let mut results = if routed.is_empty() { Vec::new() } else { self.store(&topic, routed).await? }.into_iter();
        let missing = || Err(Error::internal("a publish has no result"));
        Ok(refusals
            .into_iter()
            .map(|refused| refused.map_or_else(|| results.next().unwrap_or_else(missing), Err))
            .collect())
    }

    async fn subscribe(&self, request: SubscribeRequest) -> Result<Box<dyn QueueSubscription>> {
        let target = match request.start {
            StartPosition::Committed => None,
            StartPosition::Earliest => Some(Target::Earliest),
            StartPosition::Latest => Some(Target::Latest),
            StartPosition::Offset(offset) if offset < 0 => {
                return Err(Error::invalid("start_offset", "must not be negative"));
            }
            // One offset for all partitions: each starts as near to it as its log allows.
            StartPosition::Offset(offset) => Some(Target::Nearest(offset)),
        };
        let topic = self.made(&request.topic).await?;
        loop {
            let group = topic.group(&self.coordinator.space, &request.group).await?;
            if let Some(target) = &target
                && !group.seek(Self::targets(&topic, target)).await?
            {
                continue;
            }
            if let Some(joined) = group.join(request.consumer.session, request.max_in_flight, self.ack_timeout) {
                return Ok(Box::new(joined));
            }
        }
    }

    async fn acknowledge(&self, session: SessionId, message_ids: Vec<String>) -> Result<Vec<String>> {
        let (settles, about): (Vec<_>, Vec<_>) = self.coordinator.held(session, &message_ids).into_iter().unzip();
        let mut failed = vec![true; message_ids.len()];
        if !settles.is_empty() {
            let stood = self.coordinator.acknowledger.submit(settles).await?;
            for number in about.into_iter().zip(stood).filter(|(_, stood)| *stood).flat_map(|(numbers, _)| numbers) {
                if let Some(failed) = failed.get_mut(number) {
                    *failed = false;
                }
            }
        }
        Ok(message_ids.into_iter().zip(failed).filter_map(|(id, failed)| failed.then_some(id)).collect())
    }

    async fn commit(&self, topic: &str, group: &str, partition: i32, offset: i64) -> Result<()> {
        let topic = self.coordinator.topic(topic, None).await?;
        let index = topic.log.index("partition", partition)?;
        while !topic.group(&self.coordinator.space, group).await?.commit(index, offset).await? {}
        Ok(())
    }

    async fn seek(&self, topic: &str, group: &str, positions: Vec<(i32, i64)>) -> Result<()> {
        let topic = self.coordinator.topic(topic, None).await?;
        let mut targets: Vec<(usize, Target)> = Vec::with_capacity(positions.len());
        for (number, (partition, offset)) in positions.into_iter().enumerate() {
            let index = topic.log.index(&format!("positions[{number}].partition"), partition)?;
            if targets.iter().any(|(named, _)| *named == index) {
                return Err(Error::invalid(format!("positions[{number}].partition"), "is named twice"));
            }
            targets.push((index, Target::Exact { offset, field: format!("positions[{number}].offset") }));
        }
        while !topic.group(&self.coordinator.space, group).await?.seek(targets.clone()).await? {}
        Ok(())
    }

    async fn topic(&self, topic: &str) -> Result<TopicInfo> {
        let name = topic.to_owned();
        let found = self.coordinator.space.readers().run(move |connection| log::find(connection, &name)).await?;
        let record = found.ok_or_else(|| Error::not_found(format_args!("topic:{topic}")))?;
        let partitions = record.partitions.iter().zip(0..).map(|((_, earliest, next), partition)| PartitionInfo {
            partition,
            earliest_offset: *earliest,
            latest_offset: *next,
            message_count: next - earliest,
        });
        Ok(TopicInfo { partitions: partitions.collect() })
    }
}

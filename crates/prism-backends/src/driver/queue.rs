use std::collections::BTreeMap;
use std::pin::Pin;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use prism_core::session::SessionId;
use prism_core::{Result, UnixMillis};

/// A message to publish.
#[derive(Clone, Debug)]
pub struct Publication {
    /// Payload.
    pub payload: Bytes,
    /// Headers.
    pub headers: BTreeMap<String, String>,
    /// Messages with the same key go to the same partition.
    pub partition_key: Option<String>,
    /// The partition itself; INVALID_ARGUMENT `partition` when the topic has no such partition.
    pub partition: Option<i32>,
}

/// Where a message went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Its id; the same id that its deliveries carry.
    pub message_id: String,
    /// Its offset within the partition, from 0.
    pub offset: i64,
    /// Its partition, from 0.
    pub partition: i32,
    /// When it was stored.
    pub timestamp: UnixMillis,
}

/// Where a subscription starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StartPosition {
    /// Where the group stands; a new group at the earliest message.
    #[default]
    Committed,
    /// At the earliest message: the group's position moves there.
    Earliest,
    /// After the latest message: the group's position moves there.
    Latest,
    /// At this offset in every partition: the group's position moves there.
    Offset(i64),
}

/// Who consumes: the session, and which of its subscriptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConsumerId {
    /// The session; acknowledgements are checked against it.
    pub session: SessionId,
    /// Distinguishes subscriptions of one session.
    pub subscription: u64,
}

/// A subscription as asked for.
#[derive(Clone, Debug)]
pub struct SubscribeRequest {
    /// Topic; made when it does not exist.
    pub topic: String,
    /// Consumer group.
    pub group: String,
    /// Where to start.
    pub start: StartPosition,
    /// Most messages delivered and not yet acknowledged, 1 to 10000.
    pub max_in_flight: usize,
    /// Who consumes.
    pub consumer: ConsumerId,
}

/// A delivered message.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Id to acknowledge with.
    pub message_id: String,
    /// Payload.
    pub payload: Bytes,
    /// Headers.
    pub headers: BTreeMap<String, String>,
    /// Offset within the partition.
    pub offset: i64,
    /// Partition.
    pub partition: i32,
    /// When it was published.
    pub timestamp: UnixMillis,
    /// Counts deliveries of this message to this group, from 1.
    pub attempt: i32,
}

/// A running subscription. Dropping it gives its unacknowledged messages back to the group at once.
pub trait QueueSubscription: Send + Sync {
    /// The deliveries. Ends only when the subscription is stopped and drained, or fails.
    fn deliveries(&mut self) -> Pin<Box<dyn Stream<Item = Result<Delivery>> + Send>>;

    /// Stops new deliveries, for a drain or a gentle termination; the stream ends when what is in flight is acknowledged or
    /// its time is up.
    fn stop(&self);

    /// Messages delivered and not yet acknowledged.
    fn in_flight(&self) -> usize;
}

/// One partition of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionInfo {
    /// Number, from 0.
    pub partition: i32,
    /// Offset of the earliest message kept; equals `latest_offset` when there is none.
    pub earliest_offset: i64,
    /// Offset that the next message gets.
    pub latest_offset: i64,
    /// Messages kept.
    pub message_count: i64,
}

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicInfo {
    /// Its partitions, by number.
    pub partitions: Vec<PartitionInfo>,
}

/// QUEUE: contract §4 `QueueService` and §9 "queue", "topics".
///
/// Within a group a message goes to one consumer at a time, in offset order of its partition; it is delivered again, lowest
/// offset first, when its consumer goes away or does not acknowledge within `ack_timeout_ms`.
#[async_trait]
pub trait Queue: Send + Sync + 'static {
    /// Publishes one message; makes the topic with the config's `partitions` when it does not exist. Durable when it returns.
    async fn publish(&self, topic: &str, message: Publication) -> Result<Published>;

    /// Publishes many, each on its own: one result per message, in order.
    async fn publish_many(&self, topic: &str, messages: Vec<Publication>) -> Result<Vec<Result<Published>>>;

    /// Subscribes; the subscription is live when this returns.
    async fn subscribe(&self, request: SubscribeRequest) -> Result<Box<dyn QueueSubscription>>;

    /// Settles messages that `session` received, durably; returns the ids it did not hold.
    async fn acknowledge(&self, session: SessionId, message_ids: Vec<String>) -> Result<Vec<String>>;

    /// Sets a group's position in one partition: `offset` is the next to deliver, everything before it is settled.
    /// NOT_FOUND for an unknown topic, INVALID_ARGUMENT for an unknown partition or an offset outside the log.
    async fn commit(&self, topic: &str, group: &str, partition: i32, offset: i64) -> Result<()>;

    /// Moves a group's position in partitions, forwards or backwards; all or none. Errors as for `commit`.
    async fn seek(&self, topic: &str, group: &str, positions: Vec<(i32, i64)>) -> Result<()>;

    /// Describes a topic; NOT_FOUND when it does not exist.
    async fn topic(&self, topic: &str) -> Result<TopicInfo>;
}

//! `prism.queue.v1.QueueService`.

use std::collections::HashSet;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use futures::{Stream, StreamExt};
use prism_backends::driver::{
    ConsumerId, Delivery, Publication, Published, Queue, QueueSubscription, Route, StartPosition,
    SubscribeRequest as Subscription,
};
use prism_core::limits::{MAX_BATCH, MAX_TEXT_BYTES};
use prism_core::{Error, Result};
use prism_proto::queue::v1::queue_service_server::QueueService;
use prism_proto::queue::v1::{
    AcknowledgeRequest, AcknowledgeResponse, CommitRequest, CommitResponse, GetTopicInfoRequest, GetTopicInfoResponse,
    Message, PartitionInfo, PublishBatchRequest, PublishBatchResponse, PublishRequest, PublishResponse, SeekRequest,
    SeekResponse, StartPosition as Position, SubscribeRequest,
};
use prism_rpc::convert::timestamp;
use tonic::{Request, Response, Status};

use super::wrong_route;
use crate::call;
use crate::cause;
use crate::fields::Fields;
use crate::gate::Gate;
use crate::rpc::Rpc;
use crate::session::{Registration, Session};
use crate::stream::{self, Kind, Outlet, Responses};

/// Messages in flight when a subscription does not say how many.
const DEFAULT_IN_FLIGHT: i32 = 100;
/// Most messages in flight of one subscription, and ids of one Acknowledge.
const MAX_IN_FLIGHT: usize = 10_000;
/// Most partitions of one Seek, as many as a topic can have.
const MAX_POSITIONS: usize = 1024;
/// Longest message id accepted, in bytes; Prism's own are far shorter.
const MAX_MESSAGE_ID_BYTES: usize = 512;

type Deliveries = Pin<Box<dyn Stream<Item = Result<Delivery>> + Send>>;

/// The service.
pub struct Service(pub Arc<Gate>);

#[tonic::async_trait]
impl QueueService for Service {
    type SubscribeStream = Responses<Message>;

    async fn publish(&self, request: Request<PublishRequest>) -> Result<Response<PublishResponse>, Status> {
        self.0.unary(Rpc::QueuePublish, request, |session, request| self.publish_one(session, request)).await
    }

    async fn publish_batch(
        &self,
        request: Request<PublishBatchRequest>,
    ) -> Result<Response<PublishBatchResponse>, Status> {
        self.0.unary(Rpc::QueuePublishBatch, request, |session, request| self.publish_many(session, request)).await
    }

    async fn subscribe(&self, request: Request<SubscribeRequest>) -> Result<Response<Self::SubscribeStream>, Status> {
        let (mut permit, context, request) = self.0.open(Rpc::QueueSubscribe, request).await?;
        let session = Arc::clone(permit.session());
        let topic = request.topic.clone();
        let number = session.number_subscription();
        let opened = call::run(&permit, context.deadline, open(&session, number, request)).await;
        let (subscription, deliveries) = opened.map_err(|error| context.status(&error))?;
        let registration = session.register(number, &subscription);
        permit.opened(true);
        let body =
            |outlet| deliver(outlet, session, topic, Open { deliveries, subscription, _registration: registration });
        Ok(stream::start(&self.0, permit, context, Kind::Subscription, body))
    }

    async fn acknowledge(&self, request: Request<AcknowledgeRequest>) -> Result<Response<AcknowledgeResponse>, Status> {
        self.0.unary(Rpc::Acknowledge, request, acknowledge).await
    }

    async fn commit(&self, request: Request<CommitRequest>) -> Result<Response<CommitResponse>, Status> {
        let work = |session: Arc<Session>, request: CommitRequest| async move {
            let mut fields = Fields::new();
            fields.word("topic", &request.topic);
            fields.word("consumer_group", &request.consumer_group);
            fields.range("partition", request.partition.into(), 0, i32::MAX.into());
            fields.range("offset", request.offset, 0, i64::MAX);
            fields.finish()?;
            let group = &request.consumer_group;
            queue(&session)?.commit(&request.topic, group, request.partition, request.offset).await?;
            Ok(CommitResponse { success: true })
        };
        self.0.unary(Rpc::Commit, request, work).await
    }

    async fn seek(&self, request: Request<SeekRequest>) -> Result<Response<SeekResponse>, Status> {
        self.0.unary(Rpc::Seek, request, seek).await
    }

    async fn get_topic_info(
        &self,
        request: Request<GetTopicInfoRequest>,
    ) -> Result<Response<GetTopicInfoResponse>, Status> {
        self.0.unary(Rpc::GetTopicInfo, request, topic_info).await
    }
}

impl Service {
    async fn publish_one(&self, session: Arc<Session>, request: PublishRequest) -> Result<PublishResponse> {
        let mut fields = Fields::new();
        fields.word("topic", &request.topic);
        fields.payload("payload", request.payload.len(), &self.0.limits);
        fields.map("headers", &request.headers);
        if let Some(key) = &request.partition_key {
            fields.text("partition_key", key, 0, MAX_TEXT_BYTES);
        }
        if let Some(partition) = request.partition {
            fields.range("partition", partition.into(), 0, i32::MAX.into());
        }
        fields.finish()?;
        let message = Publication {
            payload: request.payload,
            headers: request.headers,
            partition_key: request.partition_key,
            partition: request.partition,
        };
        Ok(published(queue(&session)?.publish(&request.topic, message).await?))
    }

    async fn publish_many(&self, session: Arc<Session>, request: PublishBatchRequest) -> Result<PublishBatchResponse> {
        let mut fields = Fields::new();
        fields.word("topic", &request.topic);
        if fields.count("messages", request.messages.len(), 1, MAX_BATCH) {
            for (number, message) in request.messages.iter().enumerate() {
                fields.payload(format_args!("messages[{number}].payload"), message.payload.len(), &self.0.limits);
                fields.map(&format!("messages[{number}].headers"), &message.headers);
                if let Some(key) = &message.partition_key {
                    fields.text(format_args!("messages[{number}].partition_key"), key, 0, MAX_TEXT_BYTES);
                }
            }
        }
        fields.finish()?;
        let messages = request.messages.into_iter().map(|message| Publication {
            payload: message.payload,
            headers: message.headers,
            partition_key: message.partition_key,
            partition: None,
        });
        let outcomes = queue(&session)?.publish_many(&request.topic, messages.collect()).await?;
        let failed = outcomes.iter().filter(|outcome| outcome.is_err()).count();
        // Nothing was published: the cause says more than a count.
        if failed == outcomes.len()
            && let Some(Err(error)) = outcomes.first()
        {
            return Err(error.clone());
        }
        Ok(PublishBatchResponse {
            success_count: (outcomes.len() - failed) as i32,
            failure_count: failed as i32,
            results: outcomes.into_iter().map(|outcome| outcome.map(published).unwrap_or_default()).collect(),
        })
    }
}

async fn acknowledge(session: Arc<Session>, request: AcknowledgeRequest) -> Result<AcknowledgeResponse> {
    let mut ids = request.message_ids;
    if !request.message_id.is_empty() {
        ids.push(request.message_id);
    }
    let mut fields = Fields::new();
    if fields.count("message_ids", ids.len(), 1, MAX_IN_FLIGHT) {
        for (number, id) in ids.iter().enumerate() {
            fields.text(format_args!("message_ids[{number}]"), id, 1, MAX_MESSAGE_ID_BYTES);
        }
    }
    fields.finish()?;
    // An id that is there twice is settled once.
    let mut seen = HashSet::with_capacity(ids.len());
    ids.retain(|id| seen.insert(id.clone()));
    let failed_ids = queue(&session)?.acknowledge(session.id(), ids).await?;
    Ok(AcknowledgeResponse { success: failed_ids.is_empty(), failed_ids })
}

async fn seek(session: Arc<Session>, request: SeekRequest) -> Result<SeekResponse> {
    let mut fields = Fields::new();
    fields.word("topic", &request.topic);
    fields.word("consumer_group", &request.consumer_group);
    if fields.count("positions", request.positions.len(), 1, MAX_POSITIONS) {
        let mut seen = HashSet::new();
        for (number, position) in request.positions.iter().enumerate() {
            fields.range(format_args!("positions[{number}].partition"), position.partition.into(), 0, i32::MAX.into());
            fields.range(format_args!("positions[{number}].offset"), position.offset, 0, i64::MAX);
            let first = seen.insert(position.partition);
            fields.require(first, format_args!("positions[{number}].partition"), "is there twice");
        }
    }
    fields.finish()?;
    let positions = request.positions.iter().map(|position| (position.partition, position.offset)).collect();
    queue(&session)?.seek(&request.topic, &request.consumer_group, positions).await?;
    Ok(SeekResponse { success: true })
}

async fn topic_info(session: Arc<Session>, request: GetTopicInfoRequest) -> Result<GetTopicInfoResponse> {
    let mut fields = Fields::new();
    fields.word("topic", &request.topic);
    fields.finish()?;
    let found = queue(&session)?.topic(&request.topic).await?;
    Ok(GetTopicInfoResponse {
        topic: request.topic,
        partition_count: found.partitions.len() as i32,
        message_count: found.partitions.iter().map(|partition| partition.message_count).sum(),
        partitions: found.partitions.iter().map(partition_info).collect(),
    })
}

fn partition_info(partition: &prism_backends::driver::PartitionInfo) -> PartitionInfo {
    PartitionInfo {
        partition: partition.partition,
        earliest_offset: partition.earliest_offset,
        latest_offset: partition.latest_offset,
        message_count: partition.message_count,
    }
}

async fn open(
    session: &Session,
    number: u64,
    request: SubscribeRequest,
) -> Result<(Arc<dyn QueueSubscription>, Deliveries)> {
    let mut fields = Fields::new();
    fields.word("topic", &request.topic);
    fields.word("consumer_group", &request.consumer_group);
    let max_in_flight = request.max_in_flight.unwrap_or(DEFAULT_IN_FLIGHT);
    fields.range("max_in_flight", max_in_flight.into(), 1, MAX_IN_FLIGHT as i64);
    let start = start_position(&mut fields, &request);
    fields.finish()?;
    let wanted = Subscription {
        topic: request.topic,
        group: request.consumer_group,
        start,
        max_in_flight: max_in_flight as usize,
        consumer: ConsumerId { session: session.id(), subscription: number },
    };
    let mut subscription = queue(session)?.subscribe(wanted).await?;
    let deliveries = subscription.deliveries();
    Ok((Arc::from(subscription), deliveries))
}

fn start_position(fields: &mut Fields, request: &SubscribeRequest) -> StartPosition {
    let position = Position::try_from(request.position);
    fields.require(position.is_ok(), "position", "is not a known start position");
    if let Some(offset) = request.start_offset {
        fields.range("start_offset", offset, 0, i64::MAX);
        let alone = matches!(position, Ok(Position::Unspecified) | Err(_));
        fields.require(alone, "start_offset", "must not be given together with position");
        return StartPosition::Offset(offset);
    }
    match position.unwrap_or_default() {
        Position::Unspecified | Position::Committed => StartPosition::Committed,
        Position::Earliest => StartPosition::Earliest,
        Position::Latest => StartPosition::Latest,
    }
}

/// An open subscription. The registration goes last, so that the session settles when the messages are given back.
struct Open {
    deliveries: Deliveries,
    subscription: Arc<dyn QueueSubscription>,
    _registration: Registration,
}

/// Delivers until the subscription ends. When the session is on its way out it is stopped, and ends when what is in flight is
/// settled or its time is up; the driver gives the rest to others.
async fn deliver(outlet: Outlet<Message>, session: Arc<Session>, topic: String, open: Open) -> Result<()> {
    let Open { mut deliveries, subscription, _registration } = open;
    let told = OnceLock::new();
    let stop = async {
        let _ = told.set(stream::left(&session).await);
        subscription.stop();
        std::future::pending::<Infallible>().await
    };
    let pump = async {
        while let Some(delivery) = deliveries.next().await {
            outlet.send(message(delivery?, &topic)).await;
        }
        Ok::<_, Error>(())
    };
    tokio::select! {
        biased;
        ended = pump => ended?,
        never = stop => match never {},
    }
    Err(told.into_inner().unwrap_or_else(|| cause::draining().retry_after(cause::RETRY)))
}

fn message(delivery: Delivery, topic: &str) -> Message {
    Message {
        message_id: delivery.message_id,
        payload: delivery.payload,
        headers: delivery.headers,
        offset: delivery.offset,
        partition: delivery.partition,
        timestamp: Some(timestamp(delivery.timestamp)),
        topic: topic.to_owned(),
        attempt: delivery.attempt,
    }
}

fn published(published: Published) -> PublishResponse {
    PublishResponse {
        message_id: published.message_id,
        offset: published.offset,
        partition: published.partition,
        timestamp: Some(timestamp(published.timestamp)),
    }
}

fn queue(session: &Session) -> Result<&Arc<dyn Queue>> {
    match session.route()? {
        Route::Queue(queue) => Ok(queue),
        _ => Err(wrong_route()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(start_offset: Option<i64>, position: i32) -> Result<StartPosition> {
        let mut fields = Fields::new();
        let request = SubscribeRequest { start_offset, position, ..SubscribeRequest::default() };
        let start = start_position(&mut fields, &request);
        fields.finish().map(|()| start)
    }

    #[test]
    fn a_subscription_starts_at_a_position_or_an_offset() {
        assert_eq!(start(None, 0).unwrap(), StartPosition::Committed);
        assert_eq!(start(None, 1).unwrap(), StartPosition::Earliest);
        assert_eq!(start(None, 2).unwrap(), StartPosition::Latest);
        assert_eq!(start(None, 3).unwrap(), StartPosition::Committed);
        assert_eq!(start(Some(7), 0).unwrap(), StartPosition::Offset(7));
        for (offset, position, field) in
            [(None, 4, "position"), (None, -1, "position"), (Some(-1), 0, "start_offset"), (Some(1), 1, "start_offset")]
        {
            assert_eq!(start(offset, position).unwrap_err().fields()[0].field, field);
        }
    }
}

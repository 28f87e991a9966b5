//! `prism.pubsub.v1.PubSubService`.

use std::sync::Arc;

use futures::StreamExt;
use prism_backends::driver::{PubSub, PubSubSubscription, Route};
use prism_core::Result;
use prism_core::limits::MAX_TEXT_BYTES;
use prism_proto::pubsub::v1::pub_sub_service_server::PubSubService;
use prism_proto::pubsub::v1::{
    Event, PublishRequest, PublishResponse, SubscribeRequest, UnsubscribeRequest, UnsubscribeResponse,
};
use prism_rpc::convert::timestamp;
use tonic::{Request, Response, Status};

use super::wrong_route;
use crate::call;
use crate::fields::Fields;
use crate::gate::Gate;
use crate::rpc::Rpc;
use crate::session::Session;
use crate::stream::{self, Kind, Outlet, Responses};

/// The service.
pub struct Service(pub Arc<Gate>);

#[tonic::async_trait]
impl PubSubService for Service {
    type SubscribeStream = Responses<Event>;

    async fn publish(&self, request: Request<PublishRequest>) -> Result<Response<PublishResponse>, Status> {
        let work = |session: Arc<Session>, request: PublishRequest| async move {
            let mut fields = Fields::new();
            fields.topic("topic", &request.topic);
            fields.payload("payload", request.payload.len(), &self.0.limits);
            fields.map("metadata", &request.metadata);
            fields.finish()?;
            let (event_id, at) = bus(&session)?.publish(&request.topic, request.payload, request.metadata).await?;
            Ok(PublishResponse { event_id, published_at: Some(timestamp(at)) })
        };
        self.0.unary(Rpc::EventPublish, request, work).await
    }

    async fn subscribe(&self, request: Request<SubscribeRequest>) -> Result<Response<Self::SubscribeStream>, Status> {
        let (mut permit, context, request) = self.0.open(Rpc::EventSubscribe, request).await?;
        let opened = call::run(&permit, context.deadline, open(permit.session(), request)).await;
        // Live from here on: the initial metadata leave after this.
        let subscription = opened.map_err(|error| context.status(&error))?;
        permit.opened(true);
        Ok(stream::start(&self.0, permit, context, Kind::Events, |outlet| deliver(outlet, subscription)))
    }

    async fn unsubscribe(&self, request: Request<UnsubscribeRequest>) -> Result<Response<UnsubscribeResponse>, Status> {
        let work = |session: Arc<Session>, request: UnsubscribeRequest| async move {
            let mut fields = Fields::new();
            fields.topic_pattern("topic_pattern", &request.topic_pattern);
            if let Some(id) = &request.subscription_id {
                fields.text("subscription_id", id, 1, MAX_TEXT_BYTES);
            }
            fields.finish()?;
            let id = request.subscription_id.as_deref();
            let success = bus(&session)?.unsubscribe(session.id(), &request.topic_pattern, id).await?;
            Ok(UnsubscribeResponse { success })
        };
        self.0.unary(Rpc::Unsubscribe, request, work).await
    }
}

async fn open(session: &Session, request: SubscribeRequest) -> Result<PubSubSubscription> {
    let mut fields = Fields::new();
    fields.topic_pattern("topic_pattern", &request.topic_pattern);
    if let Some(group) = &request.queue_group {
        fields.word("queue_group", group);
    }
    fields.finish()?;
    bus(session)?.subscribe(session.id(), &request.topic_pattern, request.queue_group.as_deref()).await
}

/// Delivers until the subscription is removed.
async fn deliver(outlet: Outlet<Event>, mut subscription: PubSubSubscription) -> Result<()> {
    while let Some(event) = subscription.events.next().await {
        let event = Event {
            event_id: event.event_id,
            topic: event.topic,
            payload: event.payload,
            metadata: event.metadata,
            timestamp: Some(timestamp(event.timestamp)),
            subscription_id: subscription.subscription_id.clone(),
        };
        outlet.send(event).await;
    }
    Ok(())
}

fn bus(session: &Session) -> Result<&Arc<dyn PubSub>> {
    match session.route()? {
        Route::PubSub(bus) => Ok(bus),
        _ => Err(wrong_route()),
    }
}

//! Streams, and how terminations, drains, maintenance and absent clients end them.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Node, SOON, Setup, eventually, next, refused, said};
use prism_core::control::{DataNode, DrainOutcome, DrainScope, NamespaceStatus, Quota};
use prism_core::limits::Limits;
use prism_core::session::{EndReason, SessionId};
use prism_proto::keyvalue::v1::GetRequest;
use prism_proto::keyvalue::v1::key_value_service_client::KeyValueServiceClient;
use prism_proto::pubsub::v1::pub_sub_service_client::PubSubServiceClient;
use prism_proto::pubsub::v1::{self as events, Event, UnsubscribeRequest};
use prism_proto::queue::v1::queue_service_client::QueueServiceClient;
use prism_proto::queue::v1::{self as queue, AcknowledgeRequest, Message};
use prism_proto::session::v1::{CloseSessionRequest, CreateSessionResponse, HeartbeatRequest, SessionStatus};
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

async fn listen(node: &Node, token: &str) -> Result<Streaming<Event>, Status> {
    let request = events::SubscribeRequest {
        session_token: token.to_owned(),
        topic_pattern: "news.>".to_owned(),
        queue_group: None,
    };
    PubSubServiceClient::new(node.channel.clone()).subscribe(request).await.map(tonic::Response::into_inner)
}

async fn announce(node: &Node, token: &str) -> Result<(), Status> {
    let request = events::PublishRequest {
        session_token: token.to_owned(),
        topic: "news.now".to_owned(),
        payload: "p".into(),
        metadata: [].into(),
    };
    PubSubServiceClient::new(node.channel.clone()).publish(request).await.map(|_| ())
}

async fn publish(node: &Node, token: &str) -> Result<(), Status> {
    let request = queue::PublishRequest {
        session_token: token.to_owned(),
        topic: "work".to_owned(),
        payload: "p".into(),
        ..Default::default()
    };
    QueueServiceClient::new(node.channel.clone()).publish(request).await.map(|_| ())
}

async fn consume(node: &Node, token: &str) -> Result<Streaming<Message>, Status> {
    let request = queue::SubscribeRequest {
        session_token: token.to_owned(),
        topic: "work".to_owned(),
        consumer_group: "g".to_owned(),
        ..Default::default()
    };
    QueueServiceClient::new(node.channel.clone()).subscribe(request).await.map(tonic::Response::into_inner)
}

async fn acknowledge(node: &Node, token: &str, message: &Message) {
    let request = AcknowledgeRequest {
        session_token: token.to_owned(),
        message_id: message.message_id.clone(),
        message_ids: Vec::new(),
    };
    assert!(QueueServiceClient::new(node.channel.clone()).acknowledge(request).await.unwrap().into_inner().success);
}

/// A consumer with one message in flight.
async fn consumer(node: &Node) -> (CreateSessionResponse, Streaming<Message>, Message) {
    let session = node.session("queue").await;
    publish(node, &session.session_token).await.unwrap();
    let mut stream = consume(node, &session.session_token).await.unwrap();
    let message = next(&mut stream).await.unwrap().unwrap();
    (session, stream, message)
}

fn id(session: &CreateSessionResponse) -> SessionId {
    SessionId::parse(&session.session_id).unwrap()
}

async fn status_of(node: &Node, token: &str) -> SessionStatus {
    let request = HeartbeatRequest { session_token: token.to_owned() };
    node.sessions().heartbeat(request).await.unwrap().into_inner().status()
}

fn everything() -> DrainScope {
    DrainScope::default()
}

#[tokio::test]
async fn a_forced_termination_cuts_at_once_and_kills_the_token() {
    let node = Node::start().await;
    let session = node.session("events").await;
    let mut stream = listen(&node, &session.session_token).await.unwrap();
    announce(&node, &session.session_token).await.unwrap();
    assert_eq!(next(&mut stream).await.unwrap().unwrap().topic, "news.now");
    let begun = Instant::now();
    node.plane.terminate(id(&session), true, "abuse").await;
    let status = next(&mut stream).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!(said(&status), (Code::Aborted, "SESSION_TERMINATED".to_owned()));
    assert_eq!(status.get_details_error_info().unwrap().metadata["reason"], "abuse");
    refused(announce(&node, &session.session_token).await, Code::Unauthenticated, "SESSION_TOKEN_INVALID");
}

#[tokio::test]
async fn a_cut_does_not_wait_for_a_client_that_does_not_read() {
    let node = Node::start().await;
    let (session, stream, _) = consumer(&node).await;
    for _ in 0..90 {
        publish(&node, &session.session_token).await.unwrap();
    }
    let termination = node.plane.terminate(id(&session), true, "").await;
    assert_eq!(termination.pending_operations, 1, "a subscription with messages in flight");
    // What was in flight is there for the next consumer, though the first has not read a thing.
    let other = node.session("queue").await.session_token;
    let mut second = consume(&node, &other).await.unwrap();
    assert_eq!(next(&mut second).await.unwrap().unwrap().offset, 0);
    drop(stream);
}

#[tokio::test]
async fn a_gentle_termination_lets_what_runs_finish() {
    let node = Node::start().await;
    let (session, mut stream, message) = consumer(&node).await;
    let token = &session.session_token;
    let termination = node.plane.terminate(id(&session), false, "moving").await;
    assert_eq!(termination.pending_operations, 1);
    refused(publish(&node, token).await, Code::Unavailable, "DRAINING");
    refused(consume(&node, token).await, Code::Unavailable, "DRAINING");
    assert_eq!(status_of(&node, token).await, SessionStatus::Expiring);
    // A message that comes now goes to somebody else.
    let other = node.session("queue").await.session_token;
    publish(&node, &other).await.unwrap();
    acknowledge(&node, token, &message).await;
    let status = next(&mut stream).await.unwrap_err();
    assert_eq!(said(&status), (Code::Aborted, "SESSION_TERMINATED".to_owned()));
    assert_eq!(status.get_details_error_info().unwrap().metadata["reason"], "moving");
    eventually("the session ends", || node.control.end_of(&session.session_id) == Some(EndReason::Terminated)).await;
    let beat = node.sessions().heartbeat(HeartbeatRequest { session_token: token.clone() }).await;
    refused(beat, Code::Unauthenticated, "SESSION_TOKEN_INVALID");
}

#[tokio::test]
async fn a_drain_ends_what_is_idle_and_leaves_what_runs() {
    let node = Node::start().await;
    let idle = node.session("events").await;
    let mut listening = listen(&node, &idle.session_token).await.unwrap();
    let (busy, mut stream, message) = consumer(&node).await;
    assert_eq!(node.plane.drain_preview(&everything()), DrainOutcome { drained: 1, remaining: 1 });
    let outcome = node.plane.drain(&everything(), Duration::from_millis(200), false).await;
    assert_eq!(outcome, DrainOutcome { drained: 1, remaining: 1 });
    assert_eq!(said(&next(&mut listening).await.unwrap_err()), (Code::Unavailable, "DRAINING".to_owned()));
    assert_eq!(node.control.end_of(&idle.session_id), Some(EndReason::Drained));
    // What remains is as it was, and new sessions are admitted.
    assert_eq!(status_of(&node, &busy.session_token).await, SessionStatus::Active);
    publish(&node, &busy.session_token).await.unwrap();
    node.session("kv").await;
    acknowledge(&node, &busy.session_token, &message).await;
    assert_eq!(said(&next(&mut stream).await.unwrap_err()), (Code::Unavailable, "DRAINING".to_owned()));
}

#[tokio::test]
async fn a_drain_is_complete_when_what_ran_is_done() {
    let node = Node::start().await;
    let (busy, mut stream, message) = consumer(&node).await;
    let plane = Arc::clone(&node.plane);
    let drain = tokio::spawn(async move { plane.drain(&everything(), Duration::from_secs(30), false).await });
    tokio::time::timeout(SOON, async {
        while status_of(&node, &busy.session_token).await != SessionStatus::Expiring {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    let status = refused(node.try_session("kv").await, Code::Unavailable, "DRAINING");
    assert!(status.get_details_retry_info().unwrap().retry_delay.is_some());
    acknowledge(&node, &busy.session_token, &message).await;
    assert_eq!(said(&next(&mut stream).await.unwrap_err()), (Code::Unavailable, "DRAINING".to_owned()));
    let outcome = tokio::time::timeout(SOON, drain).await.unwrap().unwrap();
    assert_eq!(outcome, DrainOutcome { drained: 1, remaining: 0 });
}

#[tokio::test]
async fn a_forced_drain_leaves_nothing() {
    let node = Node::start().await;
    let (busy, mut stream, _) = consumer(&node).await;
    node.session("kv").await;
    let outcome = node.plane.drain(&everything(), Duration::from_millis(100), true).await;
    assert_eq!(outcome, DrainOutcome { drained: 2, remaining: 0 });
    assert_eq!(said(&next(&mut stream).await.unwrap_err()), (Code::Unavailable, "DRAINING".to_owned()));
    assert_eq!(node.control.end_of(&busy.session_id), Some(EndReason::Drained));
    // Only what is in scope is touched.
    let kept = node.session("kv").await;
    let scope = DrainScope { namespace: Some(common::namespace("other")), node: None };
    assert_eq!(node.plane.drain(&scope, SOON, true).await, DrainOutcome::default());
    let get = GetRequest { session_token: kept.session_token, key: "k".to_owned() };
    KeyValueServiceClient::new(node.channel.clone()).get(get).await.unwrap();
}

#[tokio::test]
async fn maintenance_and_suspension_end_streams() {
    let node = Node::start().await;
    let token = node.session("events").await.session_token;
    let mut stream = listen(&node, &token).await.unwrap();
    node.control.maintenance(Some((true, None)));
    tokio::time::sleep(Duration::from_millis(50)).await;
    node.control.maintenance(None);
    announce(&node, &token).await.unwrap();
    assert!(next(&mut stream).await.unwrap().is_some(), "allow_reads keeps subscriptions");
    node.control.maintenance(Some((false, None)));
    assert_eq!(said(&next(&mut stream).await.unwrap_err()), (Code::Unavailable, "MAINTENANCE".to_owned()));
    node.control.maintenance(None);
    let mut stream = listen(&node, &token).await.unwrap();
    node.control.namespace("default", NamespaceStatus::Suspended, Quota::default());
    let status = next(&mut stream).await.unwrap_err();
    assert_eq!(said(&status), (Code::FailedPrecondition, "NAMESPACE_SUSPENDED".to_owned()));
}

#[tokio::test]
async fn a_close_waits_for_what_runs_unless_forced() {
    let node = Node::start().await;
    let (session, mut stream, message) = consumer(&node).await;
    let token = &session.session_token;
    let close = |force| CloseSessionRequest { session_token: token.clone(), force };
    let closing = node.sessions().close_session(close(false)).await.unwrap().into_inner();
    assert_eq!(closing.pending_operations, 1);
    refused(publish(&node, token).await, Code::FailedPrecondition, "SESSION_CLOSING");
    acknowledge(&node, token, &message).await;
    assert_eq!(said(&next(&mut stream).await.unwrap_err()), (Code::Aborted, "SESSION_CLOSED".to_owned()));
    eventually("the session ends", || node.control.end_of(&session.session_id) == Some(EndReason::Closed)).await;

    let (session, mut stream, _) = consumer(&node).await;
    let close = CloseSessionRequest { session_token: session.session_token, force: true };
    assert_eq!(node.sessions().close_session(close).await.unwrap().into_inner().pending_operations, 1);
    assert_eq!(said(&next(&mut stream).await.unwrap_err()), (Code::Aborted, "SESSION_CLOSED".to_owned()));
}

#[tokio::test]
async fn streams_are_bounded_and_given_back_when_the_client_goes() {
    let limits = Limits { max_streams_per_session: 2, ..Limits::default() };
    let node = Node::start_with(Setup { limits, ..Setup::default() }).await;
    let token = node.session("events").await.session_token;
    let (first, _second) = (listen(&node, &token).await.unwrap(), listen(&node, &token).await.unwrap());
    refused(listen(&node, &token).await, Code::ResourceExhausted, "TOO_MANY_STREAMS");
    drop(first);
    eventually("the stream is given back", || node.plane.figures(SOON).total.active_streams == 1).await;
    listen(&node, &token).await.unwrap();
}

#[tokio::test]
async fn a_stream_ends_at_the_clients_deadline() {
    let node = Node::start().await;
    let token = node.session("events").await.session_token;
    let mut request = tonic::Request::new(events::SubscribeRequest {
        session_token: token,
        topic_pattern: ">".to_owned(),
        queue_group: None,
    });
    request.set_timeout(Duration::from_millis(300));
    let mut stream = PubSubServiceClient::new(node.channel.clone()).subscribe(request).await.unwrap().into_inner();
    assert_eq!(said(&next(&mut stream).await.unwrap_err()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".to_owned()));
    assert_eq!(node.plane.figures(SOON).total.active_streams, 0);
}

#[tokio::test]
async fn an_unsubscribed_stream_ends_well() {
    let node = Node::start().await;
    let token = node.session("events").await.session_token;
    let mut stream = listen(&node, &token).await.unwrap();
    let request =
        UnsubscribeRequest { session_token: token, topic_pattern: "news.>".to_owned(), subscription_id: None };
    let mut client = PubSubServiceClient::new(node.channel.clone());
    assert!(client.unsubscribe(request.clone()).await.unwrap().into_inner().success);
    assert!(next(&mut stream).await.unwrap().is_none());
    assert!(!client.unsubscribe(request).await.unwrap().into_inner().success);
}

#[tokio::test]
async fn a_deleted_namespace_takes_its_sessions_and_data_along() {
    let node = Node::start().await;
    let session = node.session("events").await;
    let mut stream = listen(&node, &session.session_token).await.unwrap();
    let name = common::namespace("default");
    node.control.change(|snapshot| _ = snapshot.namespaces.remove(&name));
    node.plane.remove_namespace(&name).await.unwrap();
    let status = next(&mut stream).await.unwrap_err();
    assert_eq!(said(&status), (Code::Aborted, "SESSION_TERMINATED".to_owned()));
    assert_eq!(node.control.end_of(&session.session_id), Some(EndReason::NamespaceDeleted));
    assert_eq!(node.plane.namespace_figures(&name).await.storage_bytes_used, 0);
}

#[tokio::test]
async fn backends_are_checked_and_figures_filled() {
    let node = Node::start().await;
    let token = node.session("events").await.session_token;
    let _stream = listen(&node, &token).await.unwrap();
    let reports = node.plane.backends().await;
    let names: Vec<_> = reports.iter().map(|report| report.instance.as_str()).collect();
    assert_eq!(names, ["memory", "sqlite"]);
    let figures = node.plane.figures(Duration::from_mins(1));
    assert_eq!((figures.total.active_sessions, figures.total.active_streams), (1, 1));
    assert_eq!(figures.namespaces["default"].active_streams, 1);
    assert!(node.metrics.render().contains("prism_data_sessions{namespace=\"default\"} 1"));
}

//! What namespaces, maintenance, grants and rates let through, and the bounds of requests.

mod common;

use std::time::Duration;

use common::{Node, Setup, fields, refused};
use prism_core::control::{NamespaceStatus, Quota};
use prism_core::limits::Limits;
use prism_core::{Clock, UnixMillis};
use prism_proto::config::v1::ListConfigsRequest;
use prism_proto::keyvalue::v1::key_value_service_client::KeyValueServiceClient;
use prism_proto::keyvalue::v1::{BatchGetRequest, BatchPutEntry, BatchPutRequest, GetRequest, ListRequest, PutRequest};
use prism_proto::queue::v1::queue_service_client::QueueServiceClient;
use prism_proto::queue::v1::{AcknowledgeRequest, BatchMessage, PublishBatchRequest, PublishRequest, SeekRequest};
use prism_proto::session::v1::create_session_request::{Auth, Config};
use prism_proto::session::v1::{CloseSessionRequest, GetSessionRequest, HeartbeatRequest};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt;

fn kv(node: &Node) -> KeyValueServiceClient<Channel> {
    KeyValueServiceClient::new(node.channel.clone())
}

async fn get(node: &Node, token: &str) -> Result<Response<prism_proto::keyvalue::v1::GetResponse>, Status> {
    kv(node).get(GetRequest { session_token: token.to_owned(), key: "k".to_owned() }).await
}

fn a_put(token: &str) -> PutRequest {
    PutRequest { session_token: token.to_owned(), key: "k".to_owned(), value: "v".into(), ..PutRequest::default() }
}

async fn put(node: &Node, token: &str) -> Result<Response<prism_proto::keyvalue::v1::PutResponse>, Status> {
    kv(node).put(a_put(token)).await
}

async fn heartbeat(node: &Node, token: &str) -> Result<(), Status> {
    node.sessions().heartbeat(HeartbeatRequest { session_token: token.to_owned() }).await.map(|_| ())
}

#[tokio::test]
async fn a_namespace_is_read_only_or_suspended_at_once() {
    let node = Node::start().await;
    let token = node.session("kv").await.session_token;
    put(&node, &token).await.unwrap();
    node.control.namespace("default", NamespaceStatus::ReadOnly, Quota::default());
    refused(put(&node, &token).await, Code::FailedPrecondition, "NAMESPACE_READ_ONLY");
    get(&node, &token).await.unwrap();
    node.session("kv").await;
    node.control.namespace("default", NamespaceStatus::Suspended, Quota::default());
    refused(get(&node, &token).await, Code::FailedPrecondition, "NAMESPACE_SUSPENDED");
    refused(node.try_session("kv").await, Code::FailedPrecondition, "NAMESPACE_SUSPENDED");
    let described = node.sessions().get_session(GetSessionRequest { session_token: token.clone() }).await;
    refused(described, Code::FailedPrecondition, "NAMESPACE_SUSPENDED");
    heartbeat(&node, &token).await.unwrap();
    let close = CloseSessionRequest { session_token: token, force: false };
    assert!(node.sessions().close_session(close).await.unwrap().into_inner().success);
}

#[tokio::test]
async fn maintenance_refuses_with_the_operators_words_and_ends_by_itself() {
    let clock = Clock::manual(UnixMillis(1_000_000_000_000));
    let node = Node::start_with(Setup { clock: clock.clone(), ..Setup::default() }).await;
    let token = node.session("kv").await.session_token;
    let queue = node.session("queue").await.session_token;
    node.control.maintenance(Some((false, Some(clock.now() + Duration::from_secs(10)))));
    let status = refused(get(&node, &token).await, Code::Unavailable, "MAINTENANCE");
    assert_eq!(status.message(), "new disks");
    assert_eq!(status.get_details_retry_info().unwrap().retry_delay, Some(Duration::from_secs(10)));
    refused(node.try_session("kv").await, Code::Unavailable, "MAINTENANCE");
    heartbeat(&node, &token).await.unwrap();
    let acknowledge =
        AcknowledgeRequest { session_token: queue.clone(), message_id: "x".to_owned(), message_ids: vec![] };
    let mut queues = QueueServiceClient::new(node.channel.clone());
    assert_eq!(queues.acknowledge(acknowledge).await.unwrap().into_inner().failed_ids, ["x"]);

    node.control.maintenance(Some((true, None)));
    get(&node, &token).await.unwrap();
    let status = refused(put(&node, &token).await, Code::Unavailable, "MAINTENANCE");
    assert_eq!(status.get_details_retry_info().unwrap().retry_delay, Some(Duration::from_secs(30)));
    let seek = SeekRequest { session_token: queue, ..SeekRequest::default() };
    refused(queues.seek(seek).await, Code::Unavailable, "MAINTENANCE");

    node.control.maintenance(Some((false, Some(clock.now() + Duration::from_secs(10)))));
    clock.advance(Duration::from_secs(10));
    put(&node, &token).await.unwrap();
}

#[tokio::test]
async fn pattern_and_grant_are_checked_before_anything_is_done() {
    let node = Node::start().await;
    let queue = node.session("queue").await.session_token;
    refused(get(&node, &queue).await, Code::FailedPrecondition, "WRONG_PATTERN");
    for (read, write) in [(true, false), (false, true), (false, false)] {
        let auth = Some(Auth::ApiKey(node.control.key("default", read, write)));
        let request = common::create(auth, Some(Config::ConfigName("kv".to_owned())));
        let token = node.sessions().create_session(request).await.unwrap().into_inner().session_token;
        for (outcome, allowed, permission) in [
            (get(&node, &token).await.map(|_| ()), read, "read"),
            (put(&node, &token).await.map(|_| ()), write, "write"),
        ] {
            if allowed {
                outcome.unwrap();
            } else {
                let status = refused(outcome, Code::PermissionDenied, "PERMISSION_DENIED");
                assert_eq!(status.get_details_error_info().unwrap().metadata["permission"], permission);
            }
        }
    }
}

#[tokio::test]
async fn a_rate_is_a_bucket_of_one_second() {
    let node = Node::start().await;
    let token = node.session("kv").await.session_token;
    node.control.namespace("default", NamespaceStatus::Active, Quota { max_rps: 5, ..Quota::default() });
    let mut outcomes = Vec::new();
    for _ in 0..30 {
        outcomes.push(get(&node, &token).await);
    }
    let refusals: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
    assert!((15..=25).contains(&refusals.len()), "{}", refusals.len());
    let quota = refusals[0].get_details_quota_failure().unwrap();
    assert_eq!(quota.violations[0].subject, "namespace:default");
    assert!(quota.violations[0].description.starts_with("max_rps: limit 5"));
    assert!(refusals[0].get_details_retry_info().unwrap().retry_delay.unwrap() <= Duration::from_millis(200));
    // Session calls are not data operations.
    for _ in 0..20 {
        heartbeat(&node, &token).await.unwrap();
    }
}

#[tokio::test]
async fn sessions_of_one_config_share_its_rate_limit() {
    let node = Node::start().await;
    let (one, other) = (node.session("kv-limited").await.session_token, node.session("kv-limited").await.session_token);
    let mut allowed = 0;
    for token in [&one, &other, &one, &other, &one, &other] {
        allowed += usize::from(get(&node, token).await.is_ok());
    }
    assert!((3..=4).contains(&allowed), "a burst of three, and what comes back meanwhile: {allowed}");
}

#[tokio::test]
async fn fields_have_their_bounds() {
    let limits = Limits { max_key_bytes: 16, max_value_bytes: 32, ..Limits::default() };
    let node = Node::start_with(Setup { limits, ..Setup::default() }).await;
    let token = node.session("kv").await.session_token;
    let wrong = PutRequest { key: String::new(), value: vec![0; 33].into(), ttl_seconds: Some(0), ..a_put(&token) };
    let status = refused(kv(&node).put(wrong).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    assert_eq!(fields(&status), ["key", "value", "ttl_seconds"]);
    let entry = |key: &str| BatchPutEntry { key: key.to_owned(), ..BatchPutEntry::default() };
    let twice = BatchPutRequest { session_token: token.clone(), entries: vec![entry("a"), entry("a")] };
    assert_eq!(fields(&kv(&node).batch_put(twice).await.unwrap_err()), ["entries[1].key"]);
    let many = BatchGetRequest { session_token: token.clone(), keys: vec!["a".to_owned(); 1001] };
    assert_eq!(fields(&kv(&node).batch_get(many).await.unwrap_err()), ["keys"]);
    let negative = ListRequest { session_token: token, page_size: -1, ..ListRequest::default() };
    assert_eq!(fields(&kv(&node).list(negative).await.unwrap_err()), ["page_size"]);

    let queue = node.session("queue").await.session_token;
    let mut queues = QueueServiceClient::new(node.channel.clone());
    let publish = PublishRequest { session_token: queue.clone(), topic: "a*".to_owned(), ..PublishRequest::default() };
    assert_eq!(fields(&queues.publish(publish).await.unwrap_err()), ["topic"]);
    let big = BatchMessage { payload: vec![0; 33].into(), ..BatchMessage::default() };
    let batch = PublishBatchRequest { session_token: queue, topic: "t".to_owned(), messages: vec![big] };
    assert_eq!(fields(&queues.publish_batch(batch).await.unwrap_err()), ["messages[0].payload"]);
}

#[tokio::test]
async fn lists_page_without_loss_and_hold_to_their_filter() {
    let node = Node::start().await;
    let token = node.session("kv").await.session_token;
    let entries =
        (0..25).map(|n| BatchPutEntry { key: format!("k{n:02}"), value: "v".into(), ttl_seconds: None }).collect();
    kv(&node).batch_put(BatchPutRequest { session_token: token.clone(), entries }).await.unwrap();
    let (mut seen, mut page_token) = (Vec::new(), None);
    loop {
        let request = ListRequest {
            session_token: token.clone(),
            prefix: "k".to_owned(),
            page_size: 7,
            page_token,
            keys_only: true,
        };
        let page = kv(&node).list(request).await.unwrap().into_inner();
        seen.extend(page.entries.into_iter().map(|entry| entry.key));
        page_token = page.next_page_token;
        let Some(next) = page_token.clone() else { break };
        let other = ListRequest { session_token: token.clone(), page_token: Some(next), ..ListRequest::default() };
        assert_eq!(fields(&kv(&node).list(other).await.unwrap_err()), ["page_token"]);
    }
    assert_eq!(seen, (0..25).map(|n| format!("k{n:02}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn every_call_counts() {
    let node = Node::start().await;
    let token = node.session("kv").await.session_token;
    get(&node, &token).await.unwrap();
    refused(get(&node, "nonsense").await, Code::Unauthenticated, "SESSION_TOKEN_INVALID");
    refused(
        kv(&node).get(GetRequest { session_token: token.clone(), key: String::new() }).await,
        Code::InvalidArgument,
        "INVALID_ARGUMENT",
    );
    let total = node.metrics.total_figures(Duration::from_mins(1));
    assert_eq!((total.requests_total, total.errors_total), (4, 2), "create, get, and two that failed");
}

#[tokio::test]
async fn what_cannot_be_read_is_refused_with_a_reason() {
    let limits = Limits { max_value_bytes: 1024, ..Limits::default() };
    let node = Node::start_with(Setup { limits, ..Setup::default() }).await;
    let raw = async |path: &'static str, message: ListConfigsRequest| {
        let mut client = tonic::client::Grpc::new(node.channel.clone());
        client.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<ListConfigsRequest, ListConfigsRequest>::default();
        client.unary(Request::new(message), http::uri::PathAndQuery::from_static(path), codec).await
    };
    // Field 1 is a number here, and text in the message that is expected.
    let number = || ListConfigsRequest { pattern: Some(1), namespace: None };
    let outcome = raw("/prism.keyvalue.v1.KeyValueService/Get", number()).await;
    refused(outcome, Code::InvalidArgument, "MALFORMED_MESSAGE");
    for unknown in ["/prism.keyvalue.v1.KeyValueService/Nothing", "/nobody.Service/Nothing", "/nothing"] {
        assert_eq!(raw(unknown, number()).await.unwrap_err().code(), Code::Unimplemented, "{unknown}");
    }
    let token = node.session("kv").await.session_token;
    let huge = PutRequest { value: vec![0; 1 << 20].into(), ..a_put(&token) };
    refused(kv(&node).put(huge).await, Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
    let total = node.metrics.total_figures(Duration::from_mins(1));
    assert_eq!(total.errors_total, 2, "each failed call of an RPC counts");
}

#[tokio::test]
async fn what_is_too_much_at_once_is_refused() {
    let limits = Limits { max_in_flight: 0, ..Limits::default() };
    let node = Node::start_with(Setup { limits, ..Setup::default() }).await;
    refused(get(&node, "").await, Code::ResourceExhausted, "TOO_MANY_IN_FLIGHT");
}

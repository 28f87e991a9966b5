//! The life of sessions.

mod common;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::{Node, Setup, create, eventually, fields, next, refused, said};
use prism_core::limits::SessionPolicy;
use prism_core::secret::{Random, SecretKind};
use prism_core::session::EndReason;
use prism_core::{Clock, UnixMillis};
use prism_proto::config::v1::config_service_client::ConfigServiceClient;
use prism_proto::config::v1::{
    AccessPattern, BackendConfig, BackendType, ClientConfig, GetConfigRequest, ListConfigsRequest,
    ValidateConfigRequest,
};
use prism_proto::keyvalue::v1::GetRequest;
use prism_proto::keyvalue::v1::key_value_service_client::KeyValueServiceClient;
use prism_proto::pubsub::v1::SubscribeRequest;
use prism_proto::pubsub::v1::pub_sub_service_client::PubSubServiceClient;
use prism_proto::session::v1::create_session_request::{Auth, Config};
use prism_proto::session::v1::{
    CloseSessionRequest, GetSessionRequest, HeartbeatRequest, MtlsAuth, RefreshSessionRequest, SessionStatus,
};
use tonic::{Code, Request, Status};

fn get(token: &str) -> GetRequest {
    GetRequest { session_token: token.to_owned(), key: "k".to_owned() }
}

fn with_header<T>(message: T, name: &'static str, value: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(name, value.parse().unwrap());
    request
}

fn inline(namespace: &str, pattern: AccessPattern, backend: BackendType, options: &[(&str, &str)]) -> ClientConfig {
    ClientConfig {
        name: "mine".to_owned(),
        version: "1".to_owned(),
        pattern: pattern.into(),
        backend: Some(BackendConfig {
            r#type: backend.into(),
            options: options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            pool: None,
        }),
        namespace: namespace.to_owned(),
        ..ClientConfig::default()
    }
}

#[tokio::test]
async fn a_session_lives_from_create_to_close() {
    let node = Node::start().await;
    let created = node.session("kv").await;
    assert!(created.session_token.starts_with("prs_"));
    assert_eq!(created.config.as_ref().unwrap().name, "kv");
    assert!(created.supported_features.iter().any(|feature| feature == "ttl"));
    let token = created.session_token.clone();

    let described =
        node.sessions().get_session(GetSessionRequest { session_token: token.clone() }).await.unwrap().into_inner();
    assert_eq!((described.session_id.clone(), described.status()), (created.session_id.clone(), SessionStatus::Active));
    assert_eq!(described.metrics.unwrap().requests_total, 1);
    let beat = node.sessions().heartbeat(HeartbeatRequest { session_token: token.clone() }).await.unwrap().into_inner();
    assert!((290..=300).contains(&beat.ttl_seconds));

    let close = CloseSessionRequest { session_token: token.clone(), force: false };
    let closed = node.sessions().close_session(close.clone()).await.unwrap().into_inner();
    assert!(closed.success);
    assert_eq!(closed.pending_operations, 0);
    assert_eq!(node.control.end_of(&created.session_id), Some(EndReason::Closed));
    let dead = refused(node.sessions().close_session(close).await, Code::Unauthenticated, "SESSION_TOKEN_INVALID");
    let foreign = Random::system().secret(SecretKind::AdminKey).token.into_exposed();
    let unknown = Random::system().secret(SecretKind::Session).token.into_exposed();
    for token in ["", "nonsense", &node.key, &foreign, &unknown] {
        let outcome = KeyValueServiceClient::new(node.channel.clone()).get(get(token)).await;
        let status = refused(outcome, Code::Unauthenticated, "SESSION_TOKEN_INVALID");
        assert_eq!(status.message(), dead.message());
    }
}

#[tokio::test]
async fn the_token_may_come_in_the_header() {
    let node = Node::start().await;
    let token = node.session("kv").await.session_token;
    let mut client = KeyValueServiceClient::new(node.channel.clone());
    client.get(with_header(get(""), "x-session-token", &token)).await.unwrap();
    client.get(with_header(get(&token), "x-session-token", &token)).await.unwrap();
    let other = node.session("kv").await.session_token;
    let outcome = client.get(with_header(get(&token), "x-session-token", &other)).await;
    assert_eq!(fields(&refused(outcome, Code::InvalidArgument, "INVALID_ARGUMENT")), ["session_token"]);
    let answer = client.get(with_header(get(&token), "x-request-id", "mine")).await.unwrap();
    assert_eq!(answer.metadata().get("x-request-id").unwrap(), "mine");
}

#[tokio::test]
async fn only_a_client_key_of_the_namespace_opens_a_session() {
    let node = Node::start().await;
    let kv = || Some(Config::ConfigName("kv".to_owned()));
    let mtls = Auth::Mtls(MtlsAuth { client_cert: "PEM".into() });
    let unknown = Random::system().secret(SecretKind::ClientKey).token.into_exposed();
    for (auth, reason) in [
        (None, "CREDENTIAL_REQUIRED"),
        (Some(Auth::ApiKey(String::new())), "CLIENT_KEY_INVALID"),
        (Some(Auth::ApiKey(unknown)), "CLIENT_KEY_INVALID"),
        (Some(Auth::JwtToken("eyJ".to_owned())), "JWT_NOT_CONFIGURED"),
        (Some(mtls), "CLIENT_CERTIFICATE_REQUIRED"),
    ] {
        refused(node.sessions().create_session(create(auth, kv())).await, Code::Unauthenticated, reason);
    }
    // Authentication comes before everything else, also before NOT_FOUND.
    let absent = Some(Config::ConfigName("absent".to_owned()));
    refused(node.sessions().create_session(create(None, absent)).await, Code::Unauthenticated, "CREDENTIAL_REQUIRED");
    refused(node.try_session("absent").await, Code::NotFound, "NOT_FOUND");
    refused(node.try_session("kv-other").await, Code::PermissionDenied, "NAMESPACE_NOT_ALLOWED");
    assert_eq!(
        fields(&refused(node.try_session("BAD").await, Code::InvalidArgument, "INVALID_ARGUMENT")),
        ["config_name"]
    );
    let key = || Some(Auth::ApiKey(node.key.clone()));
    let mut request = create(key(), None);
    request.client_id = "x".repeat(1025);
    request.metadata.insert(String::new(), String::new());
    let status = refused(node.sessions().create_session(request).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    assert_eq!(fields(&status), ["client_id", "metadata", "config"]);
}

#[tokio::test]
async fn an_inline_config_is_held_to_the_rules_of_a_named_one() {
    let node = Node::start().await;
    let key = |key: &str| Some(Auth::ApiKey(key.to_owned()));
    let open =
        |auth, config| async { node.sessions().create_session(create(auth, Some(Config::InlineConfig(config)))).await };
    let good = inline("default", AccessPattern::KeyValue, BackendType::Memory, &[]);
    open(key(&node.key), good.clone()).await.unwrap();
    let wrong = inline("default", AccessPattern::Queue, BackendType::Memory, &[]);
    let status = refused(open(key(&node.key), wrong).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    assert_eq!(fields(&status), ["inline_config.pattern"]);
    // Whether the other namespace exists or not, the answer is the same.
    for other in ["other", "absent"] {
        let foreign = inline(other, AccessPattern::KeyValue, BackendType::Memory, &[]);
        refused(open(key(&node.key), foreign).await, Code::PermissionDenied, "NAMESPACE_NOT_ALLOWED");
    }
    let options = [("collections", "t"), ("schema", "CREATE TABLE IF NOT EXISTS t (id TEXT PRIMARY KEY)")];
    let schema = inline("default", AccessPattern::PagedReader, BackendType::Sqlite, &options);
    let reader = node.control.key("default", true, false);
    refused(open(key(&reader), schema.clone()).await, Code::PermissionDenied, "PERMISSION_DENIED");
    open(key(&node.key), schema).await.unwrap();
}

#[tokio::test]
async fn sessions_survive_a_restart() {
    let node = Node::start().await;
    let token = node.session("kv").await.session_token;
    let node = node.restart().await;
    KeyValueServiceClient::new(node.channel.clone()).get(get(&token)).await.unwrap();
    // A graceful end of the process keeps them too.
    node.plane.shutdown(Instant::now() + Duration::from_secs(5)).await;
    let node = node.restart().await;
    KeyValueServiceClient::new(node.channel.clone()).get(get(&token)).await.unwrap();
}

#[tokio::test]
async fn a_shutdown_lets_nothing_new_in_and_reports() {
    let node = Node::start().await;
    let token = node.session("kv").await.session_token;
    let mut events = PubSubServiceClient::new(node.channel.clone());
    let listener = node.session("events").await.session_token;
    let wanted = SubscribeRequest { session_token: listener, topic_pattern: ">".to_owned(), queue_group: None };
    let mut stream = events.subscribe(wanted).await.unwrap().into_inner();
    let begun = Instant::now();
    node.plane.shutdown(begun + Duration::from_secs(30)).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "nothing is running, so nothing is waited for");
    assert_eq!(said(&next(&mut stream).await.unwrap_err()), (Code::Unavailable, "DRAINING".to_owned()));
    refused(node.try_session("kv").await, Code::Unavailable, "DRAINING");
    let outcome = KeyValueServiceClient::new(node.channel.clone()).get(get(&token)).await;
    refused(outcome, Code::Unavailable, "DRAINING");
    assert!(node.control.ended.lock().unwrap().is_empty());
    assert_eq!(node.control.reported.lock().unwrap().len(), 1, "the session that did something is reported");
}

#[tokio::test]
async fn an_idle_session_expires_and_its_stream_is_told() {
    let clock = Clock::manual(UnixMillis(1_000_000_000_000));
    let policy = SessionPolicy { idle_after: Duration::from_millis(40), ..SessionPolicy::default() };
    let node = Node::start_with(Setup { clock: clock.clone(), policy, ..Setup::default() }).await;
    let idle = node.session("events").await;
    let wanted = SubscribeRequest {
        session_token: idle.session_token.clone(),
        topic_pattern: "a".to_owned(),
        queue_group: None,
    };
    let mut stream = PubSubServiceClient::new(node.channel.clone()).subscribe(wanted).await.unwrap().into_inner();
    let beating = node.session("kv").await.session_token;
    clock.advance(Duration::from_secs(200));
    node.sessions().heartbeat(HeartbeatRequest { session_token: beating.clone() }).await.unwrap();
    clock.advance(Duration::from_secs(100));
    // Dead at that moment, before anyone has swept.
    let heartbeat = HeartbeatRequest { session_token: idle.session_token.clone() };
    refused(node.sessions().heartbeat(heartbeat).await, Code::Unauthenticated, "SESSION_TOKEN_INVALID");
    assert_eq!(said(&next(&mut stream).await.unwrap_err()), (Code::Aborted, "SESSION_EXPIRED".to_owned()));
    eventually("the end is durable", || node.control.end_of(&idle.session_id) == Some(EndReason::Expired)).await;
    node.sessions().heartbeat(HeartbeatRequest { session_token: beating }).await.unwrap();
}

#[tokio::test]
async fn an_end_that_cannot_be_saved_is_not_lost() {
    let clock = Clock::manual(UnixMillis(1_000_000_000_000));
    let policy = SessionPolicy { idle_after: Duration::from_millis(40), ..SessionPolicy::default() };
    let node = Node::start_with(Setup { clock: clock.clone(), policy, ..Setup::default() }).await;
    let session = node.session("kv").await;
    node.control.failing.store(true, Ordering::SeqCst);
    let close = CloseSessionRequest { session_token: session.session_token.clone(), force: true };
    refused(node.sessions().close_session(close).await, Code::Unavailable, "STORE");
    // A close that failed has changed nothing.
    KeyValueServiceClient::new(node.channel.clone()).get(get(&session.session_token)).await.unwrap();
    clock.advance(Duration::from_secs(301));
    tokio::time::sleep(Duration::from_millis(100)).await;
    node.control.failing.store(false, Ordering::SeqCst);
    eventually("the end is durable", || node.control.end_of(&session.session_id).is_some()).await;
}

#[tokio::test]
async fn a_refresh_is_clamped_to_the_maximum_age() {
    let clock = Clock::manual(UnixMillis(1_000_000_000_000));
    let node = Node::start_with(Setup { clock: clock.clone(), ..Setup::default() }).await;
    let session = node.session("kv").await;
    let refresh = |seconds: i64| RefreshSessionRequest {
        session_token: session.session_token.clone(),
        extension: Some(prost_types::Duration { seconds, nanos: 0 }),
    };
    let end = node.sessions().refresh_session(refresh(48 * 3600)).await.unwrap().into_inner().new_expires_at;
    assert_eq!(end, session.expires_at);
    for bad in [refresh(0), refresh(-1), RefreshSessionRequest { extension: None, ..refresh(1) }] {
        let status = refused(node.sessions().refresh_session(bad).await, Code::InvalidArgument, "INVALID_ARGUMENT");
        assert_eq!(fields(&status), ["extension"]);
    }
}

#[tokio::test]
async fn configs_are_discovered_within_the_credentials_namespace() {
    let node = Node::start().await;
    let token = node.session("kv").await.session_token;
    let mut configs = ConfigServiceClient::new(node.channel.clone());
    let bearer = format!("Bearer {}", node.key);
    let list = |pattern| ListConfigsRequest { pattern, namespace: None };
    let seen =
        configs.list_configs(with_header(list(None), "x-session-token", &token)).await.unwrap().into_inner().configs;
    let names: Vec<_> = seen.iter().map(|config| config.name.as_str()).collect();
    assert_eq!(names, ["events", "kv", "kv-limited", "queue", "reader", "transact"]);
    let queues = configs.list_configs(with_header(list(Some(2)), "authorization", &bearer)).await.unwrap().into_inner();
    assert_eq!(queues.configs.len(), 1);
    refused(configs.list_configs(list(None)).await, Code::Unauthenticated, "CREDENTIAL_REQUIRED");
    let bad = configs.list_configs(with_header(list(Some(99)), "authorization", &bearer)).await;
    assert_eq!(fields(&refused(bad, Code::InvalidArgument, "INVALID_ARGUMENT")), ["pattern"]);
    let other = ListConfigsRequest { pattern: None, namespace: Some("other".to_owned()) };
    let outcome = configs.list_configs(with_header(other, "authorization", &bearer)).await;
    refused(outcome, Code::PermissionDenied, "NAMESPACE_NOT_ALLOWED");
    for (name, version, found) in
        [("kv", None, true), ("kv", Some("1"), true), ("kv", Some("2"), false), ("kv-other", None, false)]
    {
        let request = GetConfigRequest { name: name.to_owned(), version: version.map(str::to_owned) };
        let outcome: Result<_, Status> = configs.get_config(with_header(request, "authorization", &bearer)).await;
        assert_eq!(outcome.is_ok(), found, "{name} {version:?}");
    }
    let mut config = inline("other", AccessPattern::KeyValue, BackendType::Memory, &[]);
    config.cache = Some(prism_proto::config::v1::CacheConfig { enabled: true, ..Default::default() });
    let request = ValidateConfigRequest { config: Some(config) };
    let verdict = configs.validate_config(with_header(request, "authorization", &bearer)).await.unwrap().into_inner();
    assert!(!verdict.valid);
    assert!(verdict.errors[0].starts_with("config.namespace"));
    assert!(verdict.warnings[0].starts_with("config.cache"));
}

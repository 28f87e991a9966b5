//! Nothing is done by half: what is durable holds on the node too, whoever has stopped waiting, and the other way round.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{Hold, Node, SOON, Setup, create, eventually, refused};
use prism_core::config::{AccessPattern, BackendType};
use prism_core::control::{DataNode, DrainOutcome, DrainScope, NamespaceStatus, Quota};
use prism_core::limits::Limits;
use prism_core::session::{EndReason, SessionId};
use prism_proto::config::v1::config_service_client::ConfigServiceClient;
use prism_proto::config::v1::{self as config, ClientConfig, GetConfigRequest};
use prism_proto::reader::v1::CountRequest;
use prism_proto::reader::v1::reader_service_client::ReaderServiceClient;
use prism_proto::session::v1::create_session_request::{Auth, Config};
use prism_proto::session::v1::session_service_client::SessionServiceClient;
use prism_proto::session::v1::{
    CloseSessionRequest, CreateSessionResponse, GetSessionRequest, GetSessionResponse, HeartbeatRequest,
    RefreshSessionRequest, SessionStatus,
};
use prism_proto::transact::v1::transact_service_client::TransactServiceClient;
use prism_proto::transact::v1::transaction_request::Request as Step;
use prism_proto::transact::v1::{self as transact, TransactionRequest};
use tonic::{Code, Request, Status};

async fn status_of(node: &Node, token: &str) -> Result<SessionStatus, Status> {
    let request = HeartbeatRequest { session_token: token.to_owned() };
    node.sessions().heartbeat(request).await.map(|beat| beat.into_inner().status())
}

async fn dies(node: &Node, token: &str) {
    let dead = async {
        while status_of(node, token).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, dead).await.expect("the token is still good");
    refused(status_of(node, token).await, Code::Unauthenticated, "SESSION_TOKEN_INVALID");
}

fn hold(node: &Node, at: Hold) {
    node.control.hold.send_replace(at);
}

fn id(session: &CreateSessionResponse) -> SessionId {
    SessionId::parse(&session.session_id).unwrap()
}

#[tokio::test]
async fn a_drain_that_runs_out_of_time_leaves_no_half_ended_session() {
    let node = Node::start().await;
    let session = node.session("kv").await;
    hold(&node, Hold::After);
    let outcome = node.plane.drain(&DrainScope::default(), Duration::from_millis(100), false).await;
    assert_eq!(outcome, DrainOutcome { drained: 1, remaining: 0 }, "its end was begun");
    assert_eq!(node.control.end_of(&session.session_id), Some(EndReason::Drained));
    // Until the control plane has answered it takes nothing new.
    assert_eq!(status_of(&node, &session.session_token).await.unwrap(), SessionStatus::Expiring);
    hold(&node, Hold::Nowhere);
    dies(&node, &session.session_token).await;
}

#[tokio::test]
async fn a_session_goes_on_when_a_drain_that_is_over_could_not_end_it() {
    let node = Node::start().await;
    let session = node.session("kv").await;
    hold(&node, Hold::Before);
    node.plane.drain(&DrainScope::default(), Duration::from_millis(100), false).await;
    node.control.failing.store(true, Ordering::SeqCst);
    hold(&node, Hold::Nowhere);
    let active = async {
        while status_of(&node, &session.session_token).await.unwrap() != SessionStatus::Active {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, active).await.expect("it takes nothing new for ever");
}

#[tokio::test]
async fn a_forced_drain_cuts_all_at_once_however_slow_the_control_plane_is() {
    let node = Node::start().await;
    let mut tokens = Vec::new();
    for _ in 0..70 {
        tokens.push(node.session("kv").await.session_token);
    }
    hold(&node, Hold::Before);
    let plane = Arc::clone(&node.plane);
    let drain = async move { plane.drain(&DrainScope::default(), Duration::ZERO, true).await };
    let drain = tokio::spawn(drain);
    eventually("all are cut", || node.plane.figures(SOON).total.active_sessions == 0).await;
    drain.abort();
    let _ = drain.await;
    hold(&node, Hold::Nowhere);
    eventually("all ends are saved", || node.control.live.lock().unwrap().is_empty()).await;
}

#[tokio::test]
async fn a_close_is_completed_without_its_client() {
    let node = Node::start().await;
    let session = node.session("kv").await;
    hold(&node, Hold::After);
    let (mut client, token) = (node.sessions(), session.session_token.clone());
    let request = CloseSessionRequest { session_token: token, force: false };
    let close = tokio::spawn(async move { client.close_session(request).await });
    eventually("the end is durable", || node.control.end_of(&session.session_id).is_some()).await;
    close.abort();
    tokio::time::sleep(Duration::from_millis(100)).await;
    hold(&node, Hold::Nowhere);
    dies(&node, &session.session_token).await;
}

#[tokio::test]
async fn a_refresh_is_completed_without_its_client() {
    let node = Node::start().await;
    *node.control.life.lock().unwrap() = Duration::from_secs(100);
    let session = node.session("kv").await;
    hold(&node, Hold::After);
    let extension = Some(prost_types::Duration { seconds: 1000, nanos: 0 });
    let request = RefreshSessionRequest { session_token: session.session_token.clone(), extension };
    let mut client = node.sessions();
    let refresh = tokio::spawn(async move { client.refresh_session(request).await });
    let durable = || node.control.live.lock().unwrap()[&id(&session)].expires_at;
    let first = durable();
    eventually("the extension is durable", || durable() > first).await;
    refresh.abort();
    tokio::time::sleep(Duration::from_millis(100)).await;
    hold(&node, Hold::Nowhere);
    let request = GetSessionRequest { session_token: session.session_token.clone() };
    let described = |r| async { node.sessions().get_session(r).await.unwrap().into_inner() };
    let later = async {
        loop {
            let answer: GetSessionResponse = described(request.clone()).await;
            if answer.expires_at.unwrap().seconds > session.expires_at.unwrap().seconds {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, later).await.expect("the node goes by the old end");
}

#[tokio::test]
async fn a_termination_is_saved_though_its_operator_is_gone() {
    let node = Node::start().await;
    let session = node.session("kv").await;
    hold(&node, Hold::Before);
    let (plane, wanted) = (Arc::clone(&node.plane), id(&session));
    let termination = tokio::spawn(async move { plane.terminate(wanted, false, "").await });
    dies(&node, &session.session_token).await;
    termination.abort();
    let _ = termination.await;
    hold(&node, Hold::Nowhere);
    eventually("the end is durable", || node.control.end_of(&session.session_id) == Some(EndReason::Terminated)).await;
}

#[tokio::test]
async fn a_session_whose_client_gave_up_before_it_knew_the_token_is_ended() {
    let node = Node::start().await;
    // Without the client's transport, which has a clock of its own.
    let mut client = SessionServiceClient::new(node.plane.service());
    hold(&node, Hold::After);
    let auth = Some(Auth::ApiKey(node.key.clone()));
    let mut request = Request::new(create(auth, Some(Config::ConfigName("kv".to_owned()))));
    request.set_timeout(Duration::from_millis(100));
    let answer = tokio::time::timeout(SOON, client.create_session(request)).await.expect("answered at the deadline");
    refused(answer, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    assert_eq!(node.control.live.lock().unwrap().len(), 1);
    hold(&node, Hold::Nowhere);
    eventually("it is ended", || node.control.live.lock().unwrap().is_empty()).await;
    assert_eq!(node.control.ended.lock().unwrap()[0].1, EndReason::Closed);
    assert_eq!(node.plane.figures(SOON).total.active_sessions, 0);
    let total = node.metrics.total_figures(Duration::from_mins(1));
    assert_eq!((total.requests_total, total.errors_total), (1, 1));
}

#[tokio::test]
async fn earlier_versions_of_a_config_are_found_by_their_name_and_within_the_deadline() {
    let node = Node::start().await;
    let draft = |name: &str, namespace: &str, version: &str, ttl: &str| {
        let options = [("ack_timeout_ms", ttl)];
        let mut draft = common::draft(name, namespace, AccessPattern::Queue, BackendType::Sqlite, &options);
        version.clone_into(&mut draft.version);
        Arc::new(draft.validate("config", &common::catalog(), |_| true).unwrap())
    };
    *node.control.earlier.lock().unwrap() = vec![
        draft("queue", "default", "0.9", "1000"),
        draft("queue", "default", "0.9", "2000"),
        draft("queue", "other", "0.8", "1000"),
        draft("kv-other", "other", "0.9", "1000"),
        draft("gone", "default", "0.9", "1000"),
    ];
    let mut client = ConfigServiceClient::new(node.plane.service());
    let get = |name: &str, version: &str| {
        let mut request = Request::new(GetConfigRequest { name: name.to_owned(), version: Some(version.to_owned()) });
        request.metadata_mut().insert("authorization", format!("Bearer {}", node.key).parse().unwrap());
        request
    };
    let found = client.get_config(get("queue", "0.9")).await.unwrap().into_inner().config.unwrap();
    assert_eq!(found.version, "0.9");
    assert_eq!(found.backend.unwrap().options["ack_timeout_ms"], "2000", "the newest with that version");
    for (name, version) in [("queue", "0.7"), ("queue", "0.8"), ("kv-other", "0.9"), ("gone", "0.9")] {
        refused(client.get_config(get(name, version)).await, Code::NotFound, "NOT_FOUND");
    }
    hold(&node, Hold::Before);
    let mut request = get("queue", "0.9");
    request.set_timeout(Duration::from_millis(100));
    let answer = tokio::time::timeout(SOON, client.get_config(request)).await.expect("answered at the deadline");
    refused(answer, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
}

fn with_schema(schema: Option<&str>) -> ClientConfig {
    let options = [Some(("collections", "fresh")), schema.map(|schema| ("schema", schema))];
    ClientConfig {
        name: "mine".to_owned(),
        version: "1".to_owned(),
        pattern: config::AccessPattern::PagedReader.into(),
        backend: Some(config::BackendConfig {
            r#type: config::BackendType::Sqlite.into(),
            options: options.into_iter().flatten().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
            pool: None,
        }),
        namespace: "default".to_owned(),
        ..ClientConfig::default()
    }
}

async fn open_inline(node: &Node, config: ClientConfig) -> Result<CreateSessionResponse, Status> {
    let request = create(Some(Auth::ApiKey(node.key.clone())), Some(Config::InlineConfig(config)));
    node.sessions().create_session(request).await.map(tonic::Response::into_inner)
}

async fn table_exists(node: &Node) -> bool {
    let session_token = open_inline(node, with_schema(None)).await.unwrap().session_token;
    let request = CountRequest { session_token, collection: "fresh".to_owned(), ..CountRequest::default() };
    ReaderServiceClient::new(node.channel.clone()).count(request).await.is_ok()
}

#[tokio::test]
async fn a_refused_session_has_made_no_tables() {
    const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS fresh (id TEXT PRIMARY KEY)";
    let node = Node::start().await;
    node.control.failing.store(true, Ordering::SeqCst);
    refused(open_inline(&node, with_schema(Some(SCHEMA))).await, Code::Unavailable, "STORE");
    node.control.failing.store(false, Ordering::SeqCst);
    assert!(!table_exists(&node).await, "refused by the control plane");

    node.control.namespace("default", NamespaceStatus::ReadOnly, Quota::default());
    let outcome = open_inline(&node, with_schema(Some(SCHEMA))).await;
    refused(outcome, Code::FailedPrecondition, "NAMESPACE_READ_ONLY");
    assert!(!table_exists(&node).await, "refused by the namespace");

    // The namespace becomes read-only while the session is being admitted.
    node.control.namespace("default", NamespaceStatus::Active, Quota::default());
    node.control.ended.lock().unwrap().clear();
    let before = node.control.live.lock().unwrap().len();
    hold(&node, Hold::After);
    let change = async {
        eventually("it is admitted", || node.control.live.lock().unwrap().len() > before).await;
        node.control.namespace("default", NamespaceStatus::ReadOnly, Quota::default());
        hold(&node, Hold::Nowhere);
    };
    let (outcome, ()) = tokio::join!(open_inline(&node, with_schema(Some(SCHEMA))), change);
    refused(outcome, Code::FailedPrecondition, "NAMESPACE_READ_ONLY");
    assert_eq!(node.control.live.lock().unwrap().len(), before, "the admission was taken back");
    assert!(!table_exists(&node).await, "refused after its admission");

    node.control.namespace("default", NamespaceStatus::Active, Quota::default());
    open_inline(&node, with_schema(Some(SCHEMA))).await.unwrap();
    assert!(table_exists(&node).await);
}

#[tokio::test]
async fn a_session_does_not_outlive_a_namespace_that_is_deleted_during_its_admission() {
    let node = Node::start().await;
    hold(&node, Hold::After);
    let delete = async {
        eventually("it is admitted", || !node.control.live.lock().unwrap().is_empty()).await;
        let name = common::namespace("default");
        node.control.change(|snapshot| _ = snapshot.namespaces.remove(&name));
        node.plane.remove_namespace(&name).await.unwrap();
        hold(&node, Hold::Nowhere);
    };
    let (outcome, ()) = tokio::join!(node.try_session("kv"), delete);
    refused(outcome, Code::Aborted, "SESSION_TERMINATED");
    assert_eq!(node.plane.figures(SOON).total.active_sessions, 0);
    assert!(node.control.live.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_node_has_room_for_so_many_sessions() {
    let limits = Limits { max_sessions: 2, ..Limits::default() };
    let node = Node::start_with(Setup { limits, ..Setup::default() }).await;
    let first = node.session("kv").await.session_token;
    node.session("kv").await;
    refused(node.try_session("kv").await, Code::ResourceExhausted, "TOO_MANY_SESSIONS");
    assert_eq!(node.control.live.lock().unwrap().len(), 2, "it was not admitted");
    node.sessions().close_session(CloseSessionRequest { session_token: first, force: false }).await.unwrap();
    node.session("kv").await;

    // Those that are being admitted count, so that many at once are no more than one after the other.
    let limits = Limits { max_sessions: 3, ..Limits::default() };
    let node = Node::start_with(Setup { limits, ..Setup::default() }).await;
    hold(&node, Hold::Before);
    let release = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        hold(&node, Hold::Nowhere);
    };
    let (outcomes, ()) = tokio::join!(futures::future::join_all((0..10).map(|_| node.try_session("kv"))), release);
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 3);
}

fn step(step: Step) -> TransactionRequest {
    TransactionRequest { request: Some(step) }
}

fn a_write(id: usize) -> Step {
    let value = prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(id.to_string())) };
    Step::Write(transact::WriteRequest {
        data: Some(transact::DataWrite {
            table: "items".to_owned(),
            record: [("id".to_owned(), value)].into(),
            mode: transact::WriteMode::Insert.into(),
            id_field: None,
        }),
        ..transact::WriteRequest::default()
    })
}

#[tokio::test]
async fn the_end_of_a_transaction_does_not_wait_for_a_client_that_does_not_read() {
    let node = Node::start().await;
    let counted = || node.metrics.total_figures(Duration::from_mins(1)).requests_total;
    let ends = [Step::Commit(transact::CommitTransaction {}), Step::Rollback(transact::RollbackTransaction {})];
    for (id, last) in ends.into_iter().enumerate() {
        let token = node.session("transact").await.session_token;
        let before = counted();
        let begin = transact::BeginTransaction { session_token: token, options: None };
        let steps = [Step::Begin(begin), a_write(id), last].map(step);
        let requests = futures::StreamExt::chain(futures::stream::iter(steps), futures::stream::pending());
        // Without a transport, which would take a few answers on the client's behalf.
        let mut client = TransactServiceClient::new(node.plane.service());
        let mut stream = client.transaction(requests).await.unwrap().into_inner();
        assert!(common::next(&mut stream).await.unwrap().is_some(), "it has started");
        eventually("it is over", || counted() > before).await;
        let outcome = node.plane.drain(&DrainScope::default(), SOON, false).await;
        assert_eq!(outcome, DrainOutcome { drained: 1, remaining: 0 });
        // The answers wait for it.
        let mut answers = 0;
        while common::next(&mut stream).await.unwrap().is_some() {
            answers += 1;
        }
        assert_eq!(answers, 2, "the write's result, and the end");
    }
    assert_eq!(node.metrics.total_figures(Duration::from_mins(1)).errors_total, 0);
}

#[tokio::test]
async fn the_driver_says_how_many_writes_a_transaction_may_have() {
    let node = Node::start().await;
    let token = node.session("transact").await.session_token;
    let begin = Step::Begin(transact::BeginTransaction { session_token: token, options: None });
    let steps: Vec<_> = std::iter::once(begin).chain((0..1000).map(a_write)).map(step).collect();
    let requests = futures::stream::iter(steps);
    let mut client = TransactServiceClient::new(node.channel.clone());
    let mut stream = client.transaction(requests).await.unwrap().into_inner();
    let mut answers = 0;
    let refusal = loop {
        match common::next(&mut stream).await {
            Ok(Some(_)) => answers += 1,
            Ok(None) => panic!("all were accepted"),
            Err(status) => break status,
        }
    };
    refused::<()>(Err(refusal), Code::ResourceExhausted, "TRANSACTION_TOO_LARGE");
    assert_eq!(answers, 1 + 256);
}

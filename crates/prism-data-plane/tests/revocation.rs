//! What stands on a credential falls with it: streams, what runs, what waits, what is being admitted, what was asleep.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::proofs::{Authority, Signer, Tls, spiffe, trust};
use common::{Hold, Node, SOON, Setup, eventually, given, next, open, refused, said};
use prism_core::control::DataNode;
use prism_core::session::EndReason;
use prism_core::{Clock, UnixMillis};
use prism_proto::keyvalue::v1::key_value_service_client::KeyValueServiceClient;
use prism_proto::keyvalue::v1::{GetRequest, GetResponse};
use prism_proto::pubsub::v1::pub_sub_service_client::PubSubServiceClient;
use prism_proto::pubsub::v1::{self as events, Event};
use prism_proto::queue::v1::queue_service_client::QueueServiceClient;
use prism_proto::queue::v1::{self as queue, Message};
use prism_proto::reader::v1::CountRequest;
use prism_proto::reader::v1::reader_service_client::ReaderServiceClient;
use prism_proto::session::v1::create_session_request::Auth;
use prism_proto::session::v1::{HeartbeatRequest, MtlsAuth, RefreshSessionRequest};
use prism_proto::transact::v1::transact_service_client::TransactServiceClient;
use prism_proto::transact::v1::transaction_request::Request as Step;
use prism_proto::transact::v1::{self as transact, TransactionRequest, TransactionResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};
use tonic_types::StatusExt;

const REASON: &str = "its credential was revoked or lost this namespace";
const MTLS: Auth = Auth::Mtls(MtlsAuth { client_cert: bytes::Bytes::new() });

async fn listen(channel: &Channel, token: &str) -> Streaming<Event> {
    let request = events::SubscribeRequest {
        session_token: token.to_owned(),
        topic_pattern: "news".to_owned(),
        queue_group: None,
    };
    PubSubServiceClient::new(channel.clone()).subscribe(request).await.unwrap().into_inner()
}

async fn announce(channel: &Channel, token: &str) -> Result<(), Status> {
    let request = events::PublishRequest {
        session_token: token.to_owned(),
        topic: "news".to_owned(),
        payload: "p".into(),
        metadata: [].into(),
    };
    PubSubServiceClient::new(channel.clone()).publish(request).await.map(|_| ())
}

async fn publish(channel: Channel, token: String) -> Result<(), Status> {
    let request = queue::PublishRequest { session_token: token, topic: "work".to_owned(), ..Default::default() };
    QueueServiceClient::new(channel).publish(request).await.map(|_| ())
}

/// A consumer with one message in flight.
async fn consume(channel: &Channel, token: &str) -> Streaming<Message> {
    publish(channel.clone(), token.to_owned()).await.unwrap();
    let request = queue::SubscribeRequest {
        session_token: token.to_owned(),
        topic: "work".to_owned(),
        consumer_group: "g".to_owned(),
        ..Default::default()
    };
    let mut stream = QueueServiceClient::new(channel.clone()).subscribe(request).await.unwrap().into_inner();
    assert!(next(&mut stream).await.unwrap().is_some());
    stream
}

/// A transaction with one write. Without its sender it would be over.
async fn transaction(
    channel: &Channel,
    token: &str,
) -> (mpsc::Sender<TransactionRequest>, Streaming<TransactionResponse>) {
    let (steps, requests) = mpsc::channel(8);
    let begin = transact::BeginTransaction { session_token: token.to_owned(), options: None };
    let value = prost_types::Value { kind: Some(prost_types::value::Kind::StringValue("lost".to_owned())) };
    let data = transact::DataWrite {
        table: "items".to_owned(),
        record: [("id".to_owned(), value)].into(),
        mode: transact::WriteMode::Insert.into(),
        id_field: None,
    };
    let write = transact::WriteRequest { data: Some(data), ..transact::WriteRequest::default() };
    for step in [Step::Begin(begin), Step::Write(write)] {
        steps.send(TransactionRequest { request: Some(step) }).await.unwrap();
    }
    let requests = ReceiverStream::new(requests);
    let mut answers = TransactServiceClient::new(channel.clone()).transaction(requests).await.unwrap().into_inner();
    for _ in 0..2 {
        assert!(next(&mut answers).await.unwrap().is_some());
    }
    (steps, answers)
}

async fn rows(node: &Node, token: &str) -> i64 {
    let request = CountRequest { session_token: token.to_owned(), collection: "items".to_owned(), filter: None };
    ReaderServiceClient::new(node.channel.clone()).count(request).await.unwrap().into_inner().count
}

#[track_caller]
fn cut(status: &Status) {
    assert_eq!(said(status), (Code::Aborted, "SESSION_TERMINATED".to_owned()), "{status:?}");
    assert_eq!(status.get_details_error_info().unwrap().metadata["reason"], REASON);
}

async fn beat(channel: &Channel, token: &str) -> Result<(), Status> {
    let request = HeartbeatRequest { session_token: token.to_owned() };
    prism_proto::session::v1::session_service_client::SessionServiceClient::new(channel.clone())
        .heartbeat(request)
        .await
        .map(|_| ())
}

async fn dead(channel: &Channel, token: &str) {
    refused(beat(channel, token).await, Code::Unauthenticated, "SESSION_TOKEN_INVALID");
}

fn revoked(node: &Node, id: &str) -> bool {
    node.control.end_of(id) == Some(EndReason::CredentialRevoked)
}

#[tokio::test]
async fn a_revoked_key_takes_down_all_that_stands_on_it_and_nothing_else() {
    let node = Node::start().await;
    let channel = &node.channel;
    let key = node.control.key("default", true, true);
    let session = async |config| node.session_of(Auth::ApiKey(key.clone()), config).await.unwrap();
    let (listener, consumer) = (session("events").await, session("queue").await);
    let (writer, waiting) = (session("transact").await, session("queue").await);
    let mut stream = listen(channel, &listener.session_token).await;
    let mut messages = consume(channel, &consumer.session_token).await;
    let (_steps, mut answers) = transaction(channel, &writer.session_token).await;
    let other = node.session("events").await;
    let mut others = listen(channel, &other.session_token).await;
    let reader = node.session("reader").await.session_token;
    // A publish that waits: somebody else is writing to its file.
    let file = rusqlite::Connection::open(node.folder.path().join("default.db")).unwrap();
    file.execute_batch("BEGIN IMMEDIATE").unwrap();
    let waits = tokio::spawn(publish(channel.clone(), waiting.session_token.clone()));
    let running = || node.plane.drain_preview(&prism_core::control::DrainScope::default()).remaining;
    eventually("the publish waits", || running() == 3).await;

    node.control.revoke_key(&key);
    cut(&next(&mut stream).await.unwrap_err());
    cut(&next(&mut messages).await.unwrap_err());
    cut(&next(&mut answers).await.unwrap_err());
    cut(&tokio::time::timeout(SOON, waits).await.expect("it still waits").unwrap().unwrap_err());
    file.execute_batch("ROLLBACK").unwrap();
    for session in [&listener, &consumer, &writer, &waiting] {
        dead(channel, &session.session_token).await;
        eventually("its end is durable", || revoked(&node, &session.session_id)).await;
    }
    let again = node.session_of(Auth::ApiKey(key.clone()), "kv").await;
    refused(again, Code::Unauthenticated, "CLIENT_KEY_INVALID");
    assert_eq!(rows(&node, &reader).await, 0, "the transaction left something");

    announce(channel, &other.session_token).await.unwrap();
    assert_eq!(next(&mut others).await.unwrap().unwrap().topic, "news");
    assert_eq!(node.control.ended.lock().unwrap().len(), 4);
}

async fn get(node: &Node, token: &str) -> Result<Response<GetResponse>, Status> {
    let request = GetRequest { session_token: token.to_owned(), key: "k".to_owned() };
    // Without a transport nothing else runs between the revocation and the gate.
    KeyValueServiceClient::new(node.plane.service()).get(request).await
}

#[tokio::test]
async fn nothing_starts_under_a_credential_that_fell_before_anyone_has_cut_its_sessions() {
    let node = Node::start().await;
    let key = node.control.key("default", true, true);
    let session = node.session_of(Auth::ApiKey(key.clone()), "kv").await.unwrap();
    let kept = node.session("kv").await;
    get(&node, &session.session_token).await.unwrap();
    node.control.revoke_key(&key);
    refused(get(&node, &session.session_token).await, Code::Unauthenticated, "SESSION_TOKEN_INVALID");
    assert_eq!(node.plane.figures(SOON).total.active_sessions, 2, "the gate had nothing to do");
    get(&node, &kept.session_token).await.unwrap();
    eventually("it is ended", || node.plane.figures(SOON).total.active_sessions == 1).await;
}

#[tokio::test]
async fn a_cut_waits_neither_for_the_control_plane_nor_for_the_cut_before_it() {
    let node = Node::start().await;
    let keys = [node.control.key("default", true, true), node.control.key("default", true, true)];
    let mut sessions = Vec::new();
    for key in &keys {
        let session = node.session_of(Auth::ApiKey(key.clone()), "events").await.unwrap();
        sessions.push((listen(&node.channel, &session.session_token).await, session));
    }
    node.control.hold.send_replace(Hold::Before);
    for (key, (stream, _)) in keys.iter().zip(&mut sessions) {
        node.control.revoke_key(key);
        cut(&next(stream).await.unwrap_err());
    }
    // The control plane comes back with an error first.
    node.control.failing.store(true, Ordering::SeqCst);
    node.control.hold.send_replace(Hold::Nowhere);
    tokio::time::sleep(Duration::from_millis(50)).await;
    node.control.failing.store(false, Ordering::SeqCst);
    for (_, session) in &sessions {
        eventually("its end is durable", || revoked(&node, &session.session_id)).await;
    }
}

#[tokio::test]
async fn a_session_is_not_admitted_under_a_key_that_falls_meanwhile() {
    // Before the control plane has decided.
    let node = Node::start().await;
    node.control.hold.send_replace(Hold::Before);
    let revoke = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        node.control.revoke_key(&node.key);
        node.control.hold.send_replace(Hold::Nowhere);
    };
    let (outcome, ()) = tokio::join!(node.try_session("kv"), revoke);
    refused(outcome, Code::Unauthenticated, "CLIENT_KEY_INVALID");
    assert!(node.control.ended.lock().unwrap().is_empty(), "it was not admitted");

    // After it, before the session is on the node.
    let node = Node::start().await;
    node.control.hold.send_replace(Hold::After);
    let revoke = async {
        eventually("it is admitted", || !node.control.live.lock().unwrap().is_empty()).await;
        node.control.revoke_key(&node.key);
        node.control.hold.send_replace(Hold::Nowhere);
    };
    let (outcome, ()) = tokio::join!(node.try_session("kv"), revoke);
    cut(&outcome.unwrap_err());
    assert_eq!(node.plane.figures(SOON).total.active_sessions, 0);
    assert_eq!(node.control.ended.lock().unwrap()[0].1, EndReason::CredentialRevoked);
}

#[tokio::test]
async fn a_key_that_fell_while_the_node_was_down_opens_nothing_again() {
    let node = Node::start().await;
    let key = node.control.key("default", true, true);
    let fallen = node.session_of(Auth::ApiKey(key.clone()), "kv").await.unwrap();
    let kept = node.session("kv").await;
    let old = Arc::clone(&node.plane);
    // The node that was stopped must not do it.
    node.control.failing.store(true, Ordering::SeqCst);
    old.shutdown(std::time::Instant::now()).await;
    node.control.revoke_key(&key);
    node.control.failing.store(false, Ordering::SeqCst);
    let node = node.restart().await;
    assert!(revoked(&node, &fallen.session_id));
    dead(&node.channel, &fallen.session_token).await;
    beat(&node.channel, &kept.session_token).await.unwrap();
}

#[tokio::test]
async fn a_session_ends_with_the_right_it_was_made_with() {
    let (signer, clock) = (Signer::new(), Clock::system());
    let node = Node::start_with(Setup { issuers: signer.issuers(&clock), ..Setup::default() }).await;
    let alice = || Auth::JwtToken(signer.token("alice", &["team"], clock.now()));
    let bind = |subject: &str, given: &[_]| node.control.bind(subject, given);
    bind("user:alice", &[given("default", true, false)]);
    let reads = node.session_of(alice(), "events").await.unwrap();
    bind("user:alice", &[given("default", true, true), given("other", true, true)]);
    let writes = node.session_of(alice(), "events").await.unwrap();
    let elsewhere = node.session_of(alice(), "kv-other").await.unwrap();
    let (mut reading, mut writing) =
        (listen(&node.channel, &reads.session_token).await, listen(&node.channel, &writes.session_token).await);

    // Another binding of hers gives the same: nothing changes.
    bind("group:team", &[given("default", true, true)]);
    bind("user:alice", &[given("other", true, true)]);
    for session in [&reads, &writes, &elsewhere] {
        beat(&node.channel, &session.session_token).await.unwrap();
    }
    // Writing is taken away: what could write ends, what only reads goes on.
    bind("group:team", &[given("default", true, false)]);
    cut(&next(&mut writing).await.unwrap_err());
    dead(&node.channel, &writes.session_token).await;
    beat(&node.channel, &reads.session_token).await.unwrap();
    // The namespace is taken away; the other is not.
    bind("group:team", &[]);
    cut(&next(&mut reading).await.unwrap_err());
    beat(&node.channel, &elsewhere.session_token).await.unwrap();
    eventually("both ends are durable", || node.control.ended.lock().unwrap().len() == 2).await;
    assert!(revoked(&node, &reads.session_id) && revoked(&node, &writes.session_id));
}

#[tokio::test]
async fn a_deleted_namespace_is_the_better_reason() {
    let node = Node::start().await;
    let session = node.session("events").await;
    let mut stream = listen(&node.channel, &session.session_token).await;
    let name = common::namespace("default");
    node.control.change(|snapshot| {
        snapshot.namespaces.remove(&name);
        snapshot.client_access = Arc::default();
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    refused(get(&node, &session.session_token).await, Code::FailedPrecondition, "NAMESPACE_SUSPENDED");
    node.plane.remove_namespace(&name).await.unwrap();
    let status = next(&mut stream).await.unwrap_err();
    assert_eq!(status.get_details_error_info().unwrap().metadata["reason"], "namespace deleted");
    assert_eq!(node.control.end_of(&session.session_id), Some(EndReason::NamespaceDeleted));
}

#[tokio::test]
async fn a_revoked_certificate_takes_its_sessions_and_its_connections_along() {
    let (tls, clock) = (Tls::new(), Clock::system());
    let own = Authority::new("own", &clock);
    let setup = Setup { trust: Some(trust(&own, &[])), tls: Some(tls.server.clone()), ..Setup::default() };
    let node = Node::start_with(setup).await;
    let (agent, clerk) = (spiffe("client", "agent"), spiffe("client", "clerk"));
    let (agent, clerk, again) =
        [agent.as_str(), &clerk, &agent].map(|uri| own.issue(uri, Duration::from_hours(1))).into();
    for name in ["agent", "clerk"] {
        let subject = format!("certificate:{}", spiffe("client", name));
        node.control.bind(&subject, &[given("default", true, true)]);
    }
    let (of_agent, of_clerk) =
        (tls.connect(node.address, Some(&agent)).await, tls.connect(node.address, Some(&clerk)).await);
    let session = open(&of_agent, MTLS, "events").await.unwrap();
    let mut stream = listen(&of_agent, &session.session_token).await;
    // A session of its own right on the connection of the certificate.
    let guest = open(&of_agent, Auth::ApiKey(node.key.clone()), "events").await.unwrap();
    let mut of_guest = listen(&of_agent, &guest.session_token).await;
    let kept = open(&of_clerk, MTLS, "events").await.unwrap();
    let mut of_kept = listen(&of_clerk, &kept.session_token).await;

    node.control.revoke_certificate(&agent.fingerprint());
    cut(&next(&mut stream).await.unwrap_err());
    let lost = next(&mut of_guest).await.unwrap_err();
    assert!(lost.get_details_error_info().is_none(), "the connection is still there: {lost:?}");
    eventually("its end is durable", || revoked(&node, &session.session_id)).await;
    refused(open(&of_agent, MTLS, "events").await, Code::Unauthenticated, "CLIENT_CERTIFICATE_INVALID");
    // The session itself was the guest's own; the name is still good with another certificate.
    beat(&of_clerk, &guest.session_token).await.unwrap();
    open(&tls.connect(node.address, Some(&again)).await, MTLS, "events").await.unwrap();
    announce(&of_clerk, &kept.session_token).await.unwrap();
    assert!(next(&mut of_kept).await.unwrap().is_some());
}

#[tokio::test]
async fn a_session_ends_with_its_credential_and_no_refresh_moves_that() {
    let clock = Clock::manual(UnixMillis(1_800_000_000_000));
    let (tls, own) = (Tls::new(), Authority::new("own", &clock));
    let trust = Some(trust(&own, &[]));
    let node =
        Node::start_with(Setup { clock: clock.clone(), trust, tls: Some(tls.server.clone()), ..Setup::default() })
            .await;
    let uri = spiffe("client", "agent");
    node.control.bind(&format!("certificate:{uri}"), &[given("default", true, true)]);
    let holder = own.issue(&uri, Duration::from_secs(100));
    let channel = tls.connect(node.address, Some(&holder)).await;
    let key = node.control.key_until("default", true, true, Some(clock.now() + Duration::from_secs(100)));
    // The control plane gives less at first than the key would allow.
    *node.control.life.lock().unwrap() = Duration::from_secs(200);
    let certified = open(&channel, MTLS, "kv").await.unwrap();
    *node.control.life.lock().unwrap() = Duration::from_secs(50);
    let keyed = open(&channel, Auth::ApiKey(key), "kv").await.unwrap();
    let now = clock.now().0 / 1000;
    assert_eq!([&certified, &keyed].map(|session| session.expires_at.unwrap().seconds - now), [100, 50]);
    let extension = Some(prost_types::Duration { seconds: 1000, nanos: 0 });
    for session in [&certified, &keyed] {
        let request = RefreshSessionRequest { session_token: session.session_token.clone(), extension };
        let mut sessions = prism_proto::session::v1::session_service_client::SessionServiceClient::new(channel.clone());
        let end = sessions.refresh_session(request).await.unwrap().into_inner().new_expires_at.unwrap();
        assert_eq!(end.seconds - now, 100);
    }
    clock.advance(Duration::from_secs(100));
    for session in [&certified, &keyed] {
        dead(&channel, &session.session_token).await;
        eventually("it has expired", || node.control.end_of(&session.session_id) == Some(EndReason::Expired)).await;
    }
}

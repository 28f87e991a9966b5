//! Drain: contract §8 "drain", §9 "drain counts", "EXPIRING sessions", "drain with `force`".

use std::sync::Arc;
use std::time::{Duration, Instant};

use prism_e2e::wait::{next, silent, until};
use prism_e2e::{Admin, Options, Pattern, Prism, Refused as _, Session, Shared, Site, data};
use prism_proto::admin::v1 as wire;
use prism_proto::admin::v1::SessionStatus::{Active, Expiring, Terminated};
use prism_proto::queue::v1::Message;
use tonic::{Code, Streaming};

static SERVER: Shared = Shared::new();

async fn site() -> Site {
    Site::new(SERVER.get(Options::new()).await).await
}

fn request(namespace: &str, timeout: Duration) -> wire::DrainConnectionsRequest {
    let timeout = prost_types::Duration { seconds: timeout.as_secs() as i64, nanos: timeout.subsec_nanos() as i32 };
    wire::DrainConnectionsRequest {
        namespace: Some(namespace.to_owned()),
        timeout: Some(timeout),
        ..Default::default()
    }
}

async fn drain(admin: &Admin, request: wire::DrainConnectionsRequest) -> wire::DrainConnectionsResponse {
    admin.service().drain_connections(request).await.unwrap().into_inner()
}

fn counts(answer: &wire::DrainConnectionsResponse) -> (i32, i32, bool) {
    (answer.drained_count, answer.remaining_count, answer.complete)
}

/// A session that holds a message, and with it something running.
async fn busy(site: &Site) -> (Session, Streaming<Message>, Message) {
    let session = site.session(Pattern::Queue).await;
    session.publish("t", b"1").await.unwrap();
    let mut stream = session.subscribe("t", &prism_e2e::site::unique("group")).await.unwrap();
    let message = next("a message", &mut stream).await.unwrap().unwrap();
    (session, stream, message)
}

#[tokio::test]
async fn sessions_with_nothing_running_end_at_once() {
    let site = site().await;
    let (one, two) = (site.session(Pattern::KeyValue).await, site.session(Pattern::Queue).await);
    let mut idle = two.subscribe("t", "g").await.unwrap();
    let other = Site::new(Arc::clone(&site.server)).await;
    let theirs = other.session(Pattern::KeyValue).await;
    let answer = drain(&site.admin, request(&site.namespace, Duration::from_secs(20))).await;
    assert_eq!(counts(&answer), (2, 0, true));
    next("the end", &mut idle).await.refused().is(Code::Unavailable, "DRAINING");
    one.get("a").await.refused().is(Code::Unauthenticated, "SESSION_TOKEN_INVALID");
    assert_eq!(site.admin.session(&one.id).await.status(), Terminated);
    theirs.get("a").await.unwrap();
    // When it has ended new sessions are admitted again.
    site.session(Pattern::KeyValue).await.get("a").await.unwrap();
}

#[tokio::test]
async fn while_it_runs_nothing_new_starts_and_what_runs_finishes() {
    let site = site().await;
    let (session, mut stream, message) = busy(&site).await;
    let config = site.config(Pattern::KeyValue).await;
    let admin = site.admin.clone();
    let asked = request(&site.namespace, Duration::from_secs(25));
    let running = tokio::spawn(async move { drain(&admin, asked).await });
    until("EXPIRING", async || (site.admin.session(&session.id).await.status() == Expiring).then_some(())).await;

    let new = site.open(data::named(&site.key, &config)).await.refused();
    new.is(Code::Unavailable, "DRAINING");
    assert!(new.retry.is_some(), "{new:?}");
    session.publish("t", b"2").await.refused().is(Code::Unavailable, "DRAINING");
    session.subscribe("t", "new").await.refused().is(Code::Unavailable, "DRAINING");
    session.heartbeat().await.unwrap();
    assert!(silent(&mut stream, Duration::from_millis(200)).await, "the stream waits for its message");
    assert!(session.acknowledge(&message.message_id).await.unwrap());
    next("the end", &mut stream).await.refused().is(Code::Unavailable, "DRAINING");
    assert_eq!(counts(&running.await.unwrap()), (1, 0, true));
    site.session_of(&config).await;
}

#[tokio::test]
async fn at_the_timeout_what_remains_becomes_active_again() {
    let site = site().await;
    let (session, mut stream, message) = busy(&site).await;
    let idle = site.session(Pattern::KeyValue).await;
    let start = Instant::now();
    let answer = drain(&site.admin, request(&site.namespace, Duration::from_secs(1))).await;
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(counts(&answer), (1, 1, false));
    assert_eq!(site.admin.session(&idle.id).await.status(), Terminated);
    assert_eq!(site.admin.session(&session.id).await.status(), Active);
    session.publish("t", b"2").await.unwrap();
    session.acknowledge(&message.message_id).await.unwrap();
    drop(stream.message().await);
}

#[tokio::test]
async fn with_force_nothing_remains() {
    let site = site().await;
    let (session, mut stream, _) = busy(&site).await;
    let idle = site.session(Pattern::KeyValue).await;
    let answer = drain(
        &site.admin,
        wire::DrainConnectionsRequest { force: true, ..request(&site.namespace, Duration::from_secs(1)) },
    )
    .await;
    assert_eq!(counts(&answer), (2, 0, true), "drained_count is all in scope");
    next("the end", &mut stream).await.refused().is(Code::Unavailable, "DRAINING");
    for session in [&session, &idle] {
        assert_eq!(site.admin.session(&session.id).await.status(), Terminated);
        session.heartbeat().await.refused().is(Code::Unauthenticated, "SESSION_TOKEN_INVALID");
    }
}

#[tokio::test]
async fn validate_only_reports_and_touches_nothing() {
    let site = site().await;
    let (session, _stream, _) = busy(&site).await;
    let idle = site.session(Pattern::KeyValue).await;
    let asked =
        wire::DrainConnectionsRequest { validate_only: true, ..request(&site.namespace, Duration::from_secs(30)) };
    assert_eq!(counts(&drain(&site.admin, asked).await), (1, 1, false));
    for session in [&session, &idle] {
        assert_eq!(site.admin.session(&session.id).await.status(), Active);
    }
    idle.get("a").await.unwrap();
}

#[tokio::test]
async fn an_open_transaction_is_running_and_may_finish() {
    use prism_proto::transact::v1::{self as transact, transaction_request::Request};
    let site = site().await;
    let session = site.session(Pattern::Transact).await;
    let (steps, received) = tokio::sync::mpsc::channel(8);
    let step = |request| transact::TransactionRequest { request: Some(request) };
    steps.send(step(Request::Begin(transact::BeginTransaction::default()))).await.unwrap();
    let stream = tokio_stream::wrappers::ReceiverStream::new(received);
    let mut answers = session.transact().transaction(stream).await.unwrap().into_inner();
    next("a start", &mut answers).await.unwrap().unwrap();
    let (admin, asked) = (site.admin.clone(), request(&site.namespace, Duration::from_secs(25)));
    let dry = wire::DrainConnectionsRequest { validate_only: true, ..asked.clone() };
    assert_eq!(counts(&drain(&admin, dry).await), (0, 1, false));
    let running = tokio::spawn(async move { drain(&admin, asked).await });
    until("EXPIRING", async || (site.admin.session(&session.id).await.status() == Expiring).then_some(())).await;
    let mailbox = transact::MailboxWrite { mailbox_id: "m".to_owned(), ..Default::default() };
    let write = transact::WriteRequest { mailbox: Some(mailbox), ..Default::default() };
    for request in [Request::Write(write), Request::Commit(transact::CommitTransaction {})] {
        steps.send(step(request)).await.unwrap();
        next("an answer", &mut answers).await.unwrap().unwrap();
    }
    assert_eq!(counts(&running.await.unwrap()), (1, 0, true));
}

#[tokio::test]
async fn unacknowledged_messages_of_a_cut_stream_are_delivered_elsewhere() {
    let site = site().await;
    let config = site.config(Pattern::Queue).await;
    let first = site.session_of(&config).await;
    first.publish("t", b"1").await.unwrap();
    let mut stream = first.subscribe("t", "g").await.unwrap();
    let message = next("a message", &mut stream).await.unwrap().unwrap();
    drain(&site.admin, wire::DrainConnectionsRequest { force: true, ..request(&site.namespace, Duration::ZERO) }).await;
    let second = site.session_of(&config).await;
    let mut stream = second.subscribe("t", "g").await.unwrap();
    let again = next("it again", &mut stream).await.unwrap().unwrap();
    assert_eq!((again.offset, again.attempt), (message.offset, 2));
}

#[tokio::test]
async fn a_drain_of_everything_and_of_this_node() {
    let site = Site::new(Arc::new(Prism::start(Options::new()).await)).await;
    let other = Site::new(Arc::clone(&site.server)).await;
    site.session(Pattern::KeyValue).await;
    other.session(Pattern::KeyValue).await;
    let metrics = site.admin.service().get_metrics(wire::GetMetricsRequest::default()).await.unwrap().into_inner();
    let node = metrics.process.unwrap().node_id;
    let unknown = wire::DrainConnectionsRequest { node_id: Some("elsewhere".to_owned()), ..Default::default() };
    assert_eq!(site.admin.service().drain_connections(unknown).await.refused().code, Code::NotFound);
    let this = wire::DrainConnectionsRequest { node_id: Some(node), ..Default::default() };
    assert_eq!(counts(&drain(&site.admin, this).await), (2, 0, true));
    site.session(Pattern::KeyValue).await;
    assert_eq!(counts(&drain(&site.admin, wire::DrainConnectionsRequest::default()).await), (1, 0, true));
}

#[tokio::test]
async fn a_crash_in_the_middle_leaves_no_drain_behind() {
    let site = Site::new(Arc::new(Prism::start(Options::new()).await)).await;
    let (session, _stream, _) = busy(&site).await;
    let config = site.config(Pattern::KeyValue).await;
    let admin = site.admin.clone();
    let asked = request(&site.namespace, Duration::from_mins(1));
    let running = tokio::spawn(async move { admin.service().drain_connections(asked).await });
    until("EXPIRING", async || (site.admin.session(&session.id).await.status() == Expiring).then_some(())).await;
    site.server.crash_and_restart().await;
    assert!(running.await.unwrap().is_err());
    let site = Site { admin: site.server.admin(), channel: site.server.data_channel(), ..site };
    assert_eq!(site.admin.session(&session.id).await.status(), Active);
    session.on(&site.channel).publish("t", b"2").await.unwrap();
    site.session_of(&config).await;
    // The drain had begun: its entry says how it ended.
    let log = site.admin.whole_log().await;
    prism_e2e::audit::verify(&log);
    let drains: Vec<_> = log.iter().filter(|entry| entry.operation == "DrainConnections").collect();
    assert_eq!(drains.len(), 1, "{drains:?}");
    assert!(!drains[0].success);
}

#[tokio::test]
async fn bad_requests_are_refused() {
    let site = site().await;
    let bad = |request| async { site.admin.service().drain_connections(request).await.refused() };
    let negative = Some(prost_types::Duration { seconds: -1, nanos: 0 });
    bad(wire::DrainConnectionsRequest { timeout: negative, ..Default::default() }).await.names(&["timeout"]);
    bad(request(&site.namespace, Duration::from_secs(3601))).await.names(&["timeout"]);
    bad(request("Bad Name", Duration::ZERO)).await.names(&["namespace"]);
    assert_eq!(bad(request("nowhere", Duration::ZERO)).await.code, Code::NotFound);
    bad(wire::DrainConnectionsRequest { node_id: Some(String::new()), ..Default::default() }).await.names(&["node_id"]);
}

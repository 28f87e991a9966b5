//! Maintenance: contract §8 and §9 "maintenance".

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prism_e2e::operations::All;
use prism_e2e::wait::{next, until};
use prism_e2e::{Failure, Options, Pattern, Prism, Refused as _, Shared, Site, data};
use prism_proto::admin::v1 as wire;
use prism_proto::session::v1 as life;
use prism_proto::transact::v1::{self as transact, transaction_request::Request as Step};
use tonic::Code;

static SERVER: Shared = Shared::new();

async fn shared() -> Site {
    Site::new(SERVER.get(Options::new()).await).await
}

/// Maintenance of the gateway would disturb other tests: a server of its own.
async fn own() -> Site {
    Site::new(Arc::new(Prism::start(Options::new()).await)).await
}

fn on(namespace: Option<&str>) -> wire::SetMaintenanceModeRequest {
    wire::SetMaintenanceModeRequest { enabled: true, namespace: namespace.map(ToOwned::to_owned), ..Default::default() }
}

fn off(namespace: Option<&str>) -> wire::SetMaintenanceModeRequest {
    wire::SetMaintenanceModeRequest { enabled: false, ..on(namespace) }
}

fn after(time: Duration) -> prost_types::Timestamp {
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + time;
    prost_types::Timestamp { seconds: at.as_secs() as i64, nanos: at.subsec_nanos() as i32 }
}

async fn set(site: &Site, request: wire::SetMaintenanceModeRequest) -> wire::MaintenanceStatus {
    let answer = site.admin.service().set_maintenance_mode(request).await.unwrap().into_inner();
    assert!(answer.success);
    answer.status.unwrap()
}

async fn statuses(site: &Site, namespace: Option<&str>) -> Vec<wire::MaintenanceStatus> {
    let request = wire::GetMaintenanceStatusRequest { namespace: namespace.map(ToOwned::to_owned) };
    site.admin.service().get_maintenance_status(request).await.unwrap().into_inner().statuses
}

#[track_caller]
fn refused(failure: &Failure, message: &str) {
    failure.is(Code::Unavailable, "MAINTENANCE");
    assert_eq!(failure.message, message);
}

#[tokio::test]
async fn sessions_and_operations_are_refused_and_what_ends_work_goes_on() {
    let site = shared().await;
    let all = All::open(&site).await;
    let config = site.config(Pattern::KeyValue).await;
    all.queue.publish("t", b"1").await.unwrap();
    let mut stream = all.queue.subscribe("t", "group").await.unwrap();
    let message = next("a message", &mut stream).await.unwrap().unwrap();
    let request =
        wire::SetMaintenanceModeRequest { message: Some("back at noon".to_owned()), ..on(Some(&site.namespace)) };
    let status = set(&site, request).await;
    assert!(status.enabled && status.started_at.is_some() && status.ends_at.is_none(), "{status:?}");
    assert_eq!((status.active_sessions, status.namespace.as_deref()), (5, Some(site.namespace.as_str())));

    // Streams end.
    refused(&next("the end", &mut stream).await.refused(), "back at noon");
    let new = site.open(data::named(&site.key, &config)).await.refused();
    refused(&new, "back at noon");
    assert_eq!(new.retry, Some(Duration::from_secs(30)), "without an end: 30 s");
    for (name, outcome) in all.writes().await.into_iter().chain(all.reads().await) {
        println!("{name}");
        refused(&outcome.refused(), "back at noon");
    }
    all.queue.heartbeat().await.unwrap();
    // The message went back with its stream; acknowledging it is allowed, and says so.
    all.queue.acknowledge(&message.message_id).await.unwrap();
    let commit = prism_proto::queue::v1::CommitRequest {
        topic: "t".to_owned(),
        consumer_group: "group".to_owned(),
        offset: message.offset + 1,
        ..Default::default()
    };
    all.queue.queue().commit(commit).await.unwrap();
    all.kv.life().close_session(life::CloseSessionRequest::default()).await.unwrap();

    assert!(!set(&site, off(Some(&site.namespace))).await.enabled);
    site.session_of(&config).await.put("a", b"1").await.unwrap();
    all.queue.publish("t", b"2").await.unwrap();
}

#[tokio::test]
async fn allow_reads_keeps_the_reads_of_the_contract() {
    let site = shared().await;
    let all = All::open(&site).await;
    all.writes().await;
    let mut stream = all.queue.subscribe("t", "kept").await.unwrap();
    next("a message", &mut stream).await.unwrap().unwrap();
    let status = set(&site, wire::SetMaintenanceModeRequest { allow_reads: true, ..on(Some(&site.namespace)) }).await;
    assert!(status.allow_reads);
    for (name, outcome) in all.reads().await {
        outcome.unwrap_or_else(|status| panic!("{name} is a read: {status}"));
    }
    for (name, outcome) in all.writes().await {
        let failure = outcome.refused();
        assert_eq!((failure.code, failure.reason.as_str()), (Code::Unavailable, "MAINTENANCE"), "{name}");
    }
    let config = site.config(Pattern::KeyValue).await;
    site.open(data::named(&site.key, &config)).await.refused().is(Code::Unavailable, "MAINTENANCE");
    // The subscription from before lives on.
    set(&site, off(Some(&site.namespace))).await;
    all.queue.publish("t", b"after").await.unwrap();
    while next("the message", &mut stream).await.unwrap().unwrap().payload != "after" {}
}

#[tokio::test]
async fn the_gateways_covers_every_namespace_and_the_namespaces_message_is_told() {
    let site = own().await;
    let other = Site::new(Arc::clone(&site.server)).await;
    let (session, theirs) = (site.session(Pattern::KeyValue).await, other.session(Pattern::KeyValue).await);
    let gateway = wire::SetMaintenanceModeRequest { message: Some("gateway".to_owned()), ..on(None) };
    set(&site, gateway).await;
    refused(&session.get("a").await.refused(), "gateway");
    let own = wire::SetMaintenanceModeRequest { message: Some("namespace".to_owned()), ..on(Some(&site.namespace)) };
    set(&site, own).await;
    refused(&session.get("a").await.refused(), "namespace");
    refused(&theirs.get("a").await.refused(), "gateway");
    let found = statuses(&site, None).await;
    assert_eq!(
        found.iter().map(|s| (s.enabled, s.message.as_deref())).collect::<Vec<_>>(),
        [(true, Some("gateway")), (true, Some("namespace"))]
    );
    set(&site, off(None)).await;
    theirs.get("a").await.unwrap();
    refused(&session.get("a").await.refused(), "namespace");
    set(&site, off(Some(&site.namespace))).await;
    session.get("a").await.unwrap();
    let found = statuses(&site, None).await;
    assert_eq!(found.len(), 1);
    assert!(!found[0].enabled && found[0].message.is_none());
}

/// "Running calls finish, streams end": an open transaction ends one way or the other, whole or not at all, and says which.
#[tokio::test]
async fn an_open_transaction_ends_whole_or_not_at_all() {
    let site = shared().await;
    let session = site.session(Pattern::Transact).await;
    let (steps, received) = tokio::sync::mpsc::channel(8);
    let step = |request| transact::TransactionRequest { request: Some(request) };
    let mailbox = transact::MailboxWrite { mailbox_id: "m".to_owned(), ..Default::default() };
    let write = transact::WriteRequest { mailbox: Some(mailbox), ..Default::default() };
    let stream = tokio_stream::wrappers::ReceiverStream::new(received);
    steps.send(step(Step::Begin(transact::BeginTransaction::default()))).await.unwrap();
    let mut answers = session.transact().transaction(stream).await.unwrap().into_inner();
    next("a start", &mut answers).await.unwrap().unwrap();
    steps.send(step(Step::Write(write))).await.unwrap();
    next("a result", &mut answers).await.unwrap().unwrap();
    set(&site, on(Some(&site.namespace))).await;
    steps.send(step(Step::Commit(transact::CommitTransaction {}))).await.ok();
    let committed = match next("its end", &mut answers).await {
        Some(Ok(answer)) => matches!(answer.response, Some(transact::transaction_response::Response::Committed(_))),
        ended => {
            ended.refused().is(Code::Unavailable, "MAINTENANCE");
            false
        }
    };
    set(&site, off(Some(&site.namespace))).await;
    let request = transact::ReadMailboxRequest { mailbox_id: "m".to_owned(), ..Default::default() };
    let mut messages = session.transact().read_mailbox(request).await.unwrap().into_inner();
    assert_eq!(next("the mailbox", &mut messages).await.is_some(), committed);
}

#[tokio::test]
async fn retry_info_is_the_time_to_the_end_and_it_ends_by_itself() {
    let site = shared().await;
    let session = site.session(Pattern::KeyValue).await;
    let request = wire::SetMaintenanceModeRequest {
        scheduled_end: Some(after(Duration::from_secs(5))),
        ..on(Some(&site.namespace))
    };
    let status = set(&site, request.clone()).await;
    assert_eq!(status.ends_at.map(|at| at.seconds), request.scheduled_end.map(|at| at.seconds));
    let retry = session.get("a").await.refused().retry.unwrap();
    assert!(retry > Duration::ZERO && retry <= Duration::from_secs(5), "{retry:?}");
    until("its end", async || session.get("a").await.is_ok().then_some(())).await;
    let now = statuses(&site, Some(&site.namespace)).await;
    assert!(now.iter().all(|status| !status.enabled), "{now:?}");
}

#[tokio::test]
async fn killed_and_restarted_it_is_still_in_maintenance_and_lifted_at_its_end() {
    let site = own().await;
    let session = site.session(Pattern::KeyValue).await;
    let end = after(Duration::from_secs(8));
    let request =
        wire::SetMaintenanceModeRequest { message: Some("survives".to_owned()), scheduled_end: Some(end), ..on(None) };
    set(&site, request).await;
    set(&site, on(Some(&site.namespace))).await;
    site.server.crash_and_restart().await;
    let site = Site { admin: site.server.admin(), channel: site.server.data_channel(), ..site };
    let session = session.on(&site.channel);
    let found = statuses(&site, None).await;
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!((found[0].enabled, found[0].message.as_deref()), (true, Some("survives")));
    assert_eq!(found[0].ends_at.map(|at| at.seconds), Some(end.seconds));
    set(&site, off(Some(&site.namespace))).await;
    refused(&session.get("a").await.refused(), "survives");
    until("its end", async || session.get("a").await.is_ok().then_some(())).await;
    assert!(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() >= end.seconds as u64, "not before");
}

#[tokio::test]
async fn a_past_end_and_an_unknown_namespace_are_refused() {
    let site = shared().await;
    let past = prost_types::Timestamp { seconds: 1_000_000_000, nanos: 0 };
    let request = wire::SetMaintenanceModeRequest { scheduled_end: Some(past), ..on(Some(&site.namespace)) };
    site.admin.service().set_maintenance_mode(request).await.refused().names(&["scheduled_end"]);
    assert_eq!(site.admin.service().set_maintenance_mode(on(Some("nowhere"))).await.refused().code, Code::NotFound);
    let request = wire::GetMaintenanceStatusRequest { namespace: Some("nowhere".to_owned()) };
    assert_eq!(site.admin.service().get_maintenance_status(request).await.refused().code, Code::NotFound);
    let long = wire::SetMaintenanceModeRequest { message: Some("x".repeat(4097)), ..on(Some(&site.namespace)) };
    site.admin.service().set_maintenance_mode(long).await.refused().names(&["message"]);
}

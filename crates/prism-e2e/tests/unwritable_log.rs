//! What an operator can do while the audit log cannot be written: the disk is really full (issue item 8).

use std::sync::Arc;

use prism_e2e::disk::Disk;
use prism_e2e::site::{config, unique};
use prism_e2e::wait::{next, until, within};
use prism_e2e::{Failure, Pattern, Prism, Site, audit, data};
use prism_proto::admin::v1 as wire;
use prism_proto::admin::v1::AuditLogEntry;
use tonic::{Code, Status};

const COUNTER: &str = "prism_audit_unrecorded_reads_total";

async fn site(disk: &Disk, on_read_failure: &str) -> Site {
    let config = format!("[audit]\non_read_failure = \"{on_read_failure}\"\n");
    Site::new(Arc::new(Prism::start(disk.options().config(&config)).await)).await
}

/// Takes all room, and changes things until no change finds any.
async fn fill(disk: &Disk, site: &Site) {
    disk.fill(&site.server);
    let mut refused = 0;
    // A change that finds room in what the files have already says nothing of the next.
    while refused < 20 {
        match change(site).await {
            Ok(()) => refused = 0,
            Err(status) => {
                is_plain(&status);
                refused += 1;
            }
        }
    }
}

async fn change(site: &Site) -> Result<(), Status> {
    let config = Some(config(&unique("config"), &site.namespace, Pattern::KeyValue));
    let request = wire::CreateConfigRequest { config, ..Default::default() };
    within("CreateConfig", site.admin.service().create_config(request)).await.map(drop)
}

#[track_caller]
fn is_plain(status: &Status) {
    let failure = Failure::from(status);
    assert_eq!(failure.code, Code::Unavailable, "{failure:?}");
    assert!(["STORAGE_FULL", "STORAGE_UNAVAILABLE"].contains(&failure.reason.as_str()), "{failure:?}");
    assert!(failure.message.contains("the audit log cannot be written"), "{failure:?}");
}

async fn read(site: &Site) -> Result<wire::ListConfigsResponse, Status> {
    let request = wire::ListConfigsRequest { namespace: Some(site.namespace.clone()), ..Default::default() };
    within("ListConfigs", site.admin.service().list_configs(request)).await.map(tonic::Response::into_inner)
}

/// A read of each kind: of the store, of what the data plane reports, of the log.
async fn read_all(site: &Site) -> Vec<Result<(), Status>> {
    let mut service = site.admin.service();
    let log = service.get_audit_log(wire::GetAuditLogRequest::default());
    let log = within("GetAuditLog", log).await;
    let log = match log {
        Ok(stream) => next("an entry", &mut stream.into_inner()).await.expect("an entry").map(drop),
        Err(status) => Err(status),
    };
    vec![
        read(site).await.map(drop),
        within("ListSessions", service.list_sessions(wire::ListSessionsRequest::default())).await.map(drop),
        within("GetMetrics", service.get_metrics(wire::GetMetricsRequest::default())).await.map(drop),
        within("WhoAmI", site.admin.access().who_am_i(wire::WhoAmIRequest {})).await.map(drop),
        log,
    ]
}

async fn unrecorded(site: &Site) -> u64 {
    let address = site.server.endpoints().metrics;
    let text = prism_e2e::http1::get(&address, "/metrics").await.1;
    let line = text.lines().find(|line| line.starts_with(COUNTER) && !line.starts_with('#'));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("{COUNTER} is not in {text}"))
}

async fn log(site: &Site) -> Vec<AuditLogEntry> {
    let log = site.admin.whole_log().await;
    audit::verify(&log);
    log
}

#[tokio::test]
async fn reads_go_on_without_an_entry_where_the_settings_say_so_and_are_counted() {
    let disk = Disk::new(24);
    let site = site(&disk, "allow").await;
    site.configure(config("there", &site.namespace, Pattern::KeyValue)).await;
    site.session(Pattern::KeyValue).await;
    let viewer = site.admin.with_role("viewer", None).await;
    let before = log(&site).await.len();
    fill(&disk, &site).await;

    let configs = read(&site).await.unwrap().configs;
    assert!(configs.iter().any(|config| config.name == "there"), "{configs:?}");
    for answer in read_all(&site).await {
        answer.unwrap();
    }
    // What a caller may not do is not told without its entry, and nothing is changed.
    let mut access = viewer.access();
    let denied = access.list_api_keys(wire::ListApiKeysRequest::default());
    is_plain(&within("ListApiKeys", denied).await.unwrap_err());
    is_plain(&change(&site).await.unwrap_err());
    let counted = unrecorded(&site).await;
    assert!(counted >= 6, "{counted}");

    disk.make_room(&site.server);
    change(&site).await.unwrap();
    let log = log(&site).await;
    let entries: Vec<_> = log[before..].iter().filter(|entry| entry.operation == "UnrecordedReads").collect();
    let told: u64 = entries.iter().map(|entry| entry.metadata["count"].parse::<u64>().unwrap()).sum();
    assert_eq!(told, unrecorded(&site).await, "{entries:?}");
    for entry in entries {
        assert_eq!((entry.actor.as_str(), entry.resource.as_str(), entry.success), ("prism", "audit", true));
        assert!(entry.metadata["since_epoch_ms"].parse::<i64>().is_ok());
    }
    let settled = unrecorded(&site).await;
    for answer in read_all(&site).await {
        answer.unwrap();
    }
    assert_eq!(unrecorded(&site).await, settled, "what is recorded is not counted");
}

#[tokio::test]
async fn reads_fail_where_nothing_else_is_said() {
    let disk = Disk::new(24);
    let site = site(&disk, "fail").await;
    fill(&disk, &site).await;
    for _ in 0..3 {
        for answer in read_all(&site).await {
            is_plain(&answer.unwrap_err());
        }
    }
    // Who is nobody is told the same: there is no entry for that either.
    let stranger = site.admin.with_key("prx_nonsense");
    let mut service = stranger.service();
    let refused = service.list_configs(wire::ListConfigsRequest::default());
    let refused = within("a stranger's call", refused).await.unwrap_err();
    assert!(matches!(refused.code(), Code::Unavailable | Code::Unauthenticated), "{refused:?}");
    assert_eq!(unrecorded(&site).await, 0);
    disk.make_room(&site.server);
    for answer in read_all(&site).await {
        answer.unwrap();
    }
    assert!(log(&site).await.iter().all(|entry| entry.operation != "UnrecordedReads"));
}

#[tokio::test]
async fn a_drain_whose_end_cannot_be_written_says_so_in_time_and_is_written_later() {
    let disk = Disk::new(24);
    let site = site(&disk, "fail").await;
    let named = site.config(Pattern::KeyValue).await;
    let session = site.session(Pattern::Queue).await;
    session.publish("t", b"1").await.unwrap();
    let mut stream = session.subscribe("t", "busy").await.unwrap();
    next("a message", &mut stream).await.unwrap().unwrap();
    let admin = site.admin.and("x-idempotency-key", &unique("drain"));
    let timeout = Some(prost_types::Duration { seconds: 3, nanos: 0 });
    let request =
        wire::DrainConnectionsRequest { namespace: Some(site.namespace.clone()), timeout, ..Default::default() };
    let (first, again) = (request.clone(), request.clone());
    let caller = admin.clone();
    let running = tokio::spawn(async move { caller.service().drain_connections(first).await });
    let refused = async || change(&site).await.is_err();
    let no_session = async || site.open(data::named(&site.key, &named)).await.is_err().then_some(());
    until("the drain runs", no_session).await;
    fill(&disk, &site).await;
    assert!(!running.is_finished(), "the disk took too long to fill");
    let answer = within("the answer", running).await.unwrap();
    let failure = Failure::from(&answer.unwrap_err());
    assert_eq!((failure.code, failure.reason.as_str()), (Code::Unavailable, "STORAGE_UNAVAILABLE"), "{failure:?}");
    assert!(failure.message.contains("the drain is over"), "{failure:?}");
    assert!(refused().await);
    // The same call again is not another drain.
    let twin = Failure::from(&within("the twin", admin.service().drain_connections(again)).await.unwrap_err());
    assert!(twin.message.contains("cannot be written"), "{twin:?}");

    disk.make_room(&site.server);
    let answer = until("the end is written", async || {
        within("the twin", admin.service().drain_connections(request.clone())).await.ok()
    });
    assert!(!answer.await.get_ref().complete);
    let log = log(&site).await;
    let drains: Vec<_> = log.iter().filter(|entry| entry.operation == "DrainConnections").collect();
    let done: Vec<_> = drains.iter().filter(|entry| !entry.metadata.contains_key("replayed")).collect();
    assert!(done.len() == 1 && done[0].success, "{drains:?}");
    assert_eq!(site.admin.session(&session.id).await.status(), wire::SessionStatus::Active);
}

#[tokio::test]
async fn the_operator_on_the_box_can_drain_and_stop() {
    for on_read_failure in ["fail", "allow"] {
        let disk = Disk::new(24);
        let site = site(&disk, on_read_failure).await;
        let session = site.session(Pattern::KeyValue).await;
        session.put("a", b"1").await.unwrap();
        let before = log(&site).await;
        fill(&disk, &site).await;
        site.server.signal("TERM");
        let status = site.server.exit().await;
        assert!(status.success(), "{status:?}: {}", site.server.log());
        assert!(site.server.log().contains("stopped"), "{}", site.server.log());
        disk.make_room(&site.server);
        site.server.spawn();
        site.server.ready().await;
        let admin = site.server.admin();
        let after = admin.whole_log().await;
        audit::verify(&after);
        assert_eq!(after[..before.len()], before);
    }
}

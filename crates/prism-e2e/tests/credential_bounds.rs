//! What one valid credential may have of the admin plane: streams, and calls per second if the operator says so.

use std::sync::Arc;

use prism_e2e::audit;
use prism_e2e::wait::{next, until, within};
use prism_e2e::{Options, Prism, Refused as _, http1};
use prism_proto::admin::v1 as wire;
use tokio::task::JoinSet;
use tonic::Code;

/// Streams of the audit log of one credential.
const STREAMS: usize = 64;
/// Audit entries of refused calls at once.
const ENTRIES: usize = 100;

#[tokio::test]
async fn streams_of_one_credential_are_bounded_and_come_back() {
    let server = Arc::new(Prism::start(Options::new()).await);
    let admin = server.admin();
    let viewer = admin.with_role("viewer", None).await;
    let mut held = Vec::new();
    for _ in 0..STREAMS {
        held.push(viewer.follow().await.unwrap());
    }
    let refused = viewer.follow().await.refused();
    refused.is(Code::ResourceExhausted, "QUOTA_EXCEEDED");
    assert!(refused.retry.is_some(), "{refused:?}");
    let [(subject, quota)] = refused.quota.as_slice() else { panic!("{refused:?}") };
    assert!(subject.starts_with("credential:") && quota.contains("audit_streams"), "{refused:?}");
    // Everything else of it goes on, and so do the streams of others and those that are open.
    viewer.who_am_i().await.unwrap();
    let mut other = admin.follow().await.unwrap();
    admin.create_namespace("seen").await;
    for stream in held.iter_mut().chain([&mut other]) {
        next("an entry", stream).await.unwrap().unwrap();
    }
    held.truncate(STREAMS - 1);
    held.push(until("a place", async || viewer.follow().await.ok()).await);
    // The refusal has its entry.
    let log = admin.whole_log().await;
    assert!(log.iter().any(|entry| entry.operation == "GetAuditLog"
        && entry.metadata.get("reason").is_some_and(|reason| reason == "QUOTA_EXCEEDED")));
}

/// A stream that has been read to its end holds nothing.
#[tokio::test]
async fn streams_that_end_give_their_place_back() {
    let server = Arc::new(Prism::start(Options::new()).await);
    let admin = server.admin();
    for _ in 0..3 * STREAMS {
        assert!(!admin.whole_log().await.is_empty());
    }
}

#[tokio::test]
async fn the_rate_of_a_credential_is_bounded_where_the_operator_says_so() {
    const RATE: usize = 20;
    const CALLS: usize = 1000;
    let server = Arc::new(Prism::start(Options::new().config(&format!("[limits]\nadmin_rps = {RATE}\n"))).await);
    let admin = server.admin();
    let flooder = until("a key", async || {
        let request = wire::CreateApiKeyRequest {
            name: "flooder".to_owned(),
            roles: vec!["viewer".to_owned()],
            ..Default::default()
        };
        let made = admin.access().create_api_key(request).await.ok()?.into_inner();
        Some(admin.with_key(&made.token))
    })
    .await;
    let mut calls = JoinSet::new();
    for _ in 0..CALLS {
        let flooder = flooder.clone();
        calls.spawn(async move { flooder.who_am_i().await.map(drop) });
    }
    let mut refused = 0;
    for outcome in within("answers", calls.join_all()).await {
        let Err(failure) = outcome else { continue };
        failure.is(Code::ResourceExhausted, "QUOTA_EXCEEDED");
        assert!(failure.retry.is_some() && failure.quota[0].1.contains("admin_rps"), "{failure:?}");
        refused += 1;
    }
    assert!(refused > CALLS / 2, "{refused} of {CALLS}");
    // Another credential is another count.
    let log = until("the log", async || {
        let mut stream = admin
            .service()
            .get_audit_log(wire::GetAuditLogRequest { oldest_first: true, ..Default::default() })
            .await
            .ok()?
            .into_inner();
        let mut log = Vec::new();
        while let Some(entry) = stream.message().await.ok()? {
            log.push(entry);
        }
        Some(log)
    })
    .await;
    audit::verify(&log);
    let told =
        |entry: &&wire::AuditLogEntry| entry.metadata.get("reason").is_some_and(|reason| reason == "QUOTA_EXCEEDED");
    let entries = log.iter().filter(told).count();
    assert!((1..refused).contains(&entries) && entries >= ENTRIES.min(refused) / 2, "{entries} entries of {refused}");
    let (_, metrics) = http1::get(&server.endpoints().metrics, "/metrics").await;
    let count = metrics.lines().find_map(|line| line.strip_prefix("prism_admin_calls_refused_total "));
    assert!(
        count.and_then(|count| count.parse::<f64>().ok()).is_some_and(|count| count >= refused as f64),
        "{count:?}"
    );
    // What has no entry is counted, at the latest at the end.
    server.signal("TERM");
    assert!(server.exit().await.success());
    let database = rusqlite::Connection::open(server.data_dir().join("prism.db")).unwrap();
    let mut statement = database.prepare("SELECT entry FROM audit ORDER BY sequence").unwrap();
    let rows = statement.query_map([], |row| row.get::<_, Vec<u8>>(0)).unwrap();
    let log: Vec<wire::AuditLogEntry> =
        rows.map(|row| prost::Message::decode(row.unwrap().as_slice()).unwrap()).collect();
    let counted: usize = log
        .iter()
        .filter(|entry| entry.operation == "RefusedCalls" || told(entry))
        .filter_map(|entry| entry.metadata.get("suppressed_before"))
        .map(|count| count.parse::<usize>().unwrap())
        .sum();
    let own = log.iter().filter(told).count();
    assert!(own + counted >= refused, "{own} entries that tell of {counted} more, {refused} refusals");
}

//! Contract §8 "quotas", §9 "quotas".

use std::time::Duration;

use prism_e2e::site::config;
use prism_e2e::wait::until;
use prism_e2e::{Failure, Options, Pattern, Refused as _, Session, Shared, Site, data};
use prism_proto::admin::v1::NamespaceQuota;
use prism_proto::config::v1::{ClientConfig, RateLimitConfig};
use prism_proto::keyvalue::v1::{BatchPutEntry, BatchPutRequest, DeleteRequest};
use prism_proto::session::v1::CloseSessionRequest;
use tonic::Code;

static SERVER: Shared = Shared::new();

async fn site() -> Site {
    Site::new(SERVER.get(Options::new()).await).await
}

fn zeros(count: usize) -> Vec<u8> {
    vec![0; count]
}

#[track_caller]
fn bites(failure: &Failure, subject: &str, quota: &str, limit: i64) {
    assert_eq!(failure.code, Code::ResourceExhausted, "{failure:?}");
    let [(found, description)] = failure.quota.as_slice() else { panic!("{failure:?}") };
    assert_eq!(found, subject);
    assert!(
        description.contains(quota) && description.contains(&format!("limit {limit}")) && description.contains("usage"),
        "{description}"
    );
}

#[tokio::test]
async fn max_sessions_counts_live_sessions_exactly() {
    let site = site().await;
    site.admin.set_quota(&site.namespace, NamespaceQuota { max_sessions: 5, ..Default::default() }).await;
    let name = site.config(Pattern::KeyValue).await;
    let tries: Vec<_> = (0..20)
        .map(|_| {
            let (channel, request) = (site.channel.clone(), data::named(&site.key, &name));
            tokio::spawn(async move { data::create(&channel, request).await })
        })
        .collect();
    let mut live = Vec::new();
    for outcome in tries {
        match outcome.await.unwrap() {
            Ok(session) => live.push(session),
            Err(status) => bites(&Failure::from(&status), &format!("namespace:{}", site.namespace), "max_sessions", 5),
        }
    }
    assert_eq!(live.len(), 5, "also when they come at the same time");
    live[0].life().close_session(CloseSessionRequest::default()).await.unwrap();
    site.session_of(&name).await;
    assert_eq!(site.open(data::named(&site.key, &name)).await.refused().code, Code::ResourceExhausted);
    site.admin.set_quota(&site.namespace, NamespaceQuota::default()).await;
    site.session_of(&name).await;
}

async fn gets(session: &Session, count: usize) -> Vec<Failure> {
    let mut refused = Vec::new();
    for _ in 0..count {
        if let Err(status) = session.get("a").await {
            refused.push(Failure::from(&status));
        }
    }
    refused
}

#[tokio::test]
async fn max_rps_is_a_bucket_of_one_second_over_data_operations() {
    let site = site().await;
    let (one, two) = (site.session(Pattern::MemoryKeyValue).await, site.session(Pattern::MemoryKeyValue).await);
    site.admin.set_quota(&site.namespace, NamespaceQuota { max_rps: 10, ..Default::default() }).await;
    let start = std::time::Instant::now();
    let refused: Vec<_> = gets(&one, 20).await.into_iter().chain(gets(&two, 20).await).collect();
    let passed = 40 - refused.len();
    let allowed = 10 + start.elapsed().as_millis() as usize / 100 + 1;
    assert!((10..=allowed).contains(&passed), "{passed} of at most {allowed} over both sessions");
    let first = &refused[0];
    bites(first, &format!("namespace:{}", site.namespace), "max_rps", 10);
    assert!(
        first.retry.is_some_and(|retry| retry > Duration::ZERO && retry <= Duration::from_millis(200)),
        "{first:?}"
    );
    // Session calls are no data operations.
    for _ in 0..30 {
        one.heartbeat().await.unwrap();
        one.describe().await.unwrap();
    }
    until("a token", async || one.get("a").await.ok()).await;
    site.admin.set_quota(&site.namespace, NamespaceQuota::default()).await;
    assert!(gets(&one, 50).await.is_empty(), "0 = unlimited, at once");
}

#[tokio::test]
async fn max_storage_bytes_is_enforced_and_room_is_room_again() {
    let site = site().await;
    let limit = 100_000;
    site.admin.set_quota(&site.namespace, NamespaceQuota { max_storage_bytes: limit, ..Default::default() }).await;
    for pattern in [Pattern::KeyValue, Pattern::MemoryKeyValue] {
        let session = site.session(pattern).await;
        session.put("a", &zeros(60_000)).await.unwrap();
        let refused = session.put("b", &zeros(60_000)).await.refused();
        bites(&refused, &format!("namespace:{}", site.namespace), "max_storage_bytes", limit);
        assert!(!session.get("b").await.unwrap().found);
        let entry =
            |key: &str| BatchPutEntry { key: key.to_owned(), value: vec![0; 30_000].into(), ..Default::default() };
        let batch = BatchPutRequest { entries: vec![entry("c"), entry("d")], ..Default::default() };
        assert_eq!(session.kv().batch_put(batch).await.refused().code, Code::ResourceExhausted);
        assert!(!session.get("c").await.unwrap().found, "all or nothing");
        session.put("a", &zeros(1000)).await.unwrap();
        session.put("b", &zeros(60_000)).await.unwrap();
        for key in ["a", "b"] {
            session.kv().delete(DeleteRequest { key: key.to_owned(), ..Default::default() }).await.unwrap();
        }
    }
    let queue = site.session(Pattern::Queue).await;
    queue.publish("t", &zeros(60_000)).await.unwrap();
    let refused = queue.publish("t", &zeros(60_000)).await.refused();
    bites(&refused, &format!("namespace:{}", site.namespace), "max_storage_bytes", limit);
    let kv = site.session(Pattern::KeyValue).await;
    assert_eq!(kv.put("a", &zeros(60_000)).await.refused().code, Code::ResourceExhausted, "over all patterns together");
}

#[tokio::test]
async fn the_rate_limit_of_a_config_holds_over_all_its_sessions() {
    let site = site().await;
    let limited = ClientConfig {
        rate_limit: Some(RateLimitConfig { requests_per_second: 1, burst: 5 }),
        ..config(&prism_e2e::site::unique("limited"), &site.namespace, Pattern::MemoryKeyValue)
    };
    let name = site.configure(limited).await;
    let (one, two) = (site.session_of(&name).await, site.session_of(&name).await);
    let start = std::time::Instant::now();
    let refused: Vec<_> = gets(&one, 10).await.into_iter().chain(gets(&two, 10).await).collect();
    let passed = 20 - refused.len();
    let allowed = 5 + start.elapsed().as_secs() as usize + 1;
    assert!((5..=allowed).contains(&passed), "{passed} of at most {allowed} over both sessions");
    assert!(refused[0].retry.is_some() && refused[0].code == Code::ResourceExhausted, "{:?}", refused[0]);
    assert!(gets(&site.session(Pattern::MemoryKeyValue).await, 20).await.is_empty());
}

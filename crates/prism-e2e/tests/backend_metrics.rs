//! GetBackendStatus, ListBackends and GetMetrics: contract §9 "metrics" and "GetBackendStatus".

use std::collections::BTreeMap;
use std::sync::Arc;

use prism_e2e::{Options, Pattern, Prism, Refused as _, Site, http1};
use prism_proto::admin::v1 as wire;
use prism_proto::admin::v1::backend_health::HealthStatus;
use prism_proto::config::v1::AccessPattern;
use prism_proto::keyvalue::v1::PutRequest;
use tonic::Code;

async fn status(site: &Site, kind: &str) -> Result<wire::GetBackendStatusResponse, tonic::Status> {
    let request = wire::GetBackendStatusRequest { backend_type: kind.to_owned() };
    Ok(site.admin.service().get_backend_status(request).await?.into_inner())
}

/// The value of every sample of a metric, by its labels.
async fn samples(site: &Site, metric: &str) -> BTreeMap<String, f64> {
    let (code, text) = http1::get(&site.server.endpoints().metrics, "/metrics").await;
    assert_eq!(code, 200);
    text.lines()
        .filter_map(|line| line.strip_prefix(metric))
        .filter(|rest| rest.starts_with('{') || rest.starts_with(' '))
        .map(|rest| {
            let (labels, value) = rest.rsplit_once(' ').unwrap();
            (labels.to_owned(), value.parse().unwrap())
        })
        .collect()
}

fn sum(samples: &BTreeMap<String, f64>, label: &str) -> i64 {
    samples.iter().filter(|(labels, _)| labels.contains(label)).map(|(_, value)| *value as i64).sum()
}

async fn metrics(site: &Site, namespace: Option<&str>) -> wire::GetMetricsResponse {
    let request = wire::GetMetricsRequest { namespace: namespace.map(ToOwned::to_owned), window: None };
    site.admin.service().get_metrics(request).await.unwrap().into_inner()
}

async fn site() -> Site {
    Site::new(Arc::new(Prism::start(Options::new()).await)).await
}

#[tokio::test]
async fn get_metrics_tells_what_prometheus_tells() {
    let site = site().await;
    let session = site.session(Pattern::KeyValue).await;
    for _ in 0..7 {
        session.put("a", b"1").await.unwrap();
    }
    for _ in 0..3 {
        let stale = PutRequest { key: "a".to_owned(), if_version: Some(u64::MAX), ..Default::default() };
        assert_eq!(session.kv().put(stale).await.refused().code, Code::Aborted);
    }
    let stranger = session.with_headers(prism_e2e::Headers::none().with("x-session-token", "prs_nonsense"));
    stranger.get("a").await.refused();
    session.heartbeat().await.unwrap();

    let answer = metrics(&site, None).await;
    let requests = samples(&site, "prism_data_requests_total").await;
    let errors = samples(&site, "prism_data_request_errors_total").await;
    let total = answer.total.unwrap();
    assert_eq!((total.requests_total, total.errors_total), (sum(&requests, ""), sum(&errors, "")));
    let own = answer.namespaces.iter().find(|entry| entry.namespace == site.namespace).unwrap().metrics.unwrap();
    let label = format!("namespace=\"{}\"", site.namespace);
    assert_eq!((own.requests_total, own.errors_total), (sum(&requests, &label), sum(&errors, &label)));
    // CreateSession, 10 Puts, one Heartbeat; the stranger's call counts in the total only.
    assert_eq!((own.requests_total, own.errors_total), (12, 3));
    assert_eq!((total.requests_total, total.errors_total), (13, 4), "every data-plane call counts");
    assert_eq!(own.active_sessions, 1);
    let sqlite = answer.backends.iter().find(|entry| entry.backend_type == "sqlite").unwrap();
    let label = format!("backend=\"sqlite\",instance=\"{}\"", sqlite.instance_id);
    let backend = samples(&site, "prism_backend_requests_total").await;
    assert_eq!(sqlite.metrics.unwrap().requests_total, sum(&backend, &label));
    assert_eq!(sqlite.metrics.unwrap().requests_total, 10);

    let filtered = metrics(&site, Some(&site.namespace)).await;
    assert_eq!(filtered.total.unwrap().requests_total, 12);
    assert_eq!(filtered.namespaces.len(), 1);
}

#[tokio::test]
async fn rates_and_latencies_are_those_of_the_window() {
    let site = site().await;
    let session = site.session(Pattern::MemoryKeyValue).await;
    for _ in 0..50 {
        session.put("a", b"1").await.unwrap();
    }
    // Samples are taken once a second.
    let answer = prism_e2e::wait::until("a rate", async || {
        let answer = metrics(&site, Some(&site.namespace)).await;
        (answer.total.unwrap().requests_per_second > 0.0).then_some(answer)
    })
    .await;
    assert_eq!(answer.window.unwrap().seconds, 60, "the default");
    let total = answer.total.unwrap();
    assert!(
        total.latency_p50_ms > 0.0
            && total.latency_p50_ms <= total.latency_p95_ms
            && total.latency_p95_ms <= total.latency_p99_ms,
        "{total:?}"
    );
    for (seconds, good) in [(0, false), (1, true), (3600, true), (3601, false), (-1, false)] {
        let window = Some(prost_types::Duration { seconds, nanos: 0 });
        let answer = site.admin.service().get_metrics(wire::GetMetricsRequest { namespace: None, window }).await;
        if good {
            assert_eq!(answer.unwrap().into_inner().window.unwrap().seconds, seconds);
        } else {
            answer.refused().names(&["window"]);
        }
    }
}

#[tokio::test]
async fn the_process_tells_of_itself() {
    let site = site().await;
    let process = metrics(&site, None).await.process.unwrap();
    assert!(!process.node_id.is_empty() && !process.version.is_empty() && process.started_at.is_some(), "{process:?}");
    assert!(process.resident_bytes > 1_000_000 && process.cpu_percent > 0.0, "{process:?}");
    let request = wire::GetMetricsRequest { namespace: Some("nowhere".to_owned()), window: None };
    assert_eq!(site.admin.service().get_metrics(request).await.refused().code, Code::NotFound);
}

#[tokio::test]
async fn embedded_backends_report_their_real_state() {
    let site = site().await;
    site.session(Pattern::KeyValue).await.put("a", b"1").await.unwrap();
    for kind in ["sqlite", "memory"] {
        let answer = status(&site, kind).await.unwrap();
        assert_eq!(answer.backend_type, kind);
        let health = answer.health.clone().unwrap();
        assert_eq!(health.status(), HealthStatus::Healthy, "{health:?}");
        assert!(health.last_check.is_some() && !health.message.is_empty());
        assert_eq!(answer.instances.len(), 1);
        assert!(answer.instances[0].health.is_some() && answer.instances[0].metrics.is_some(), "{answer:?}");
    }
    let sqlite = status(&site, "sqlite").await.unwrap().instances.remove(0);
    assert!(sqlite.metrics.unwrap().pool_size > 0 && !sqlite.endpoint.is_empty(), "{sqlite:?}");
    // Known but not configured, and unknown.
    for kind in ["postgres", "kafka", "nonsense"] {
        assert_eq!(status(&site, kind).await.refused().code, Code::NotFound, "{kind}");
    }
    status(&site, "").await.refused().names(&["backend_type"]);
}

#[tokio::test]
async fn backends_are_listed_with_patterns_and_namespaces() {
    let site = site().await;
    site.config(Pattern::Queue).await;
    site.config(Pattern::PubSub).await;
    let page = async |page_size, page_token: Option<String>| {
        site.admin
            .service()
            .list_backends(wire::ListBackendsRequest { page_size, page_token })
            .await
            .unwrap()
            .into_inner()
    };
    let all = page(0, None).await;
    let kinds: Vec<_> = all.backends.iter().map(|backend| backend.backend_type.as_str()).collect();
    assert_eq!((kinds, all.total_count), (vec!["memory", "sqlite"], 2));
    assert_eq!(all.next_page_token.unwrap_or_default(), "");
    let memory = &all.backends[0];
    assert_eq!(memory.patterns().collect::<Vec<_>>(), [AccessPattern::KeyValue, AccessPattern::Pubsub]);
    assert!(
        all.backends
            .iter()
            .all(|backend| backend.namespaces == [site.namespace.clone()] && backend.instance_count == 1)
    );
    let first = page(1, None).await;
    assert_eq!((first.backends.len(), first.total_count), (1, 2));
    let second = page(1, first.next_page_token).await;
    assert_eq!(second.backends[0].backend_type, "sqlite");
    assert_eq!(second.next_page_token.unwrap_or_default(), "");
}

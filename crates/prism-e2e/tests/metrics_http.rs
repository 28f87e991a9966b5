//! The port of metrics and health: contract §1, §9 "reflection, health" and "metrics".

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;

use prism_e2e::wait::until;
use prism_e2e::{Options, Pattern, Prism, Refused as _, Site, http1};
use prism_proto::keyvalue::v1::PutRequest;

async fn busy() -> Site {
    let site = Site::new(Arc::new(Prism::start(Options::new()).await)).await;
    for pattern in [Pattern::KeyValue, Pattern::MemoryKeyValue] {
        let session = site.session(pattern).await;
        session.put("a", b"1").await.unwrap();
        session.get("a").await.unwrap();
        session.kv().put(PutRequest::default()).await.refused();
    }
    site.session(Pattern::Queue).await.publish("t", b"1").await.unwrap();
    site
}

/// Debian's package `prometheus` holds promtool; `PROMTOOL` names it when it is not in the path.
fn promtool() -> String {
    std::env::var("PROMTOOL").unwrap_or_else(|_| "promtool".to_owned())
}

#[tokio::test]
async fn metrics_are_what_promtool_calls_clean() {
    let site = busy().await;
    let (code, text) = http1::get(&site.server.endpoints().metrics, "/metrics").await;
    assert_eq!(code, 200);
    let mut child = Command::new(promtool())
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{} cannot be run ({error}); install it or set PROMTOOL", promtool()));
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.trim().is_empty(), "{said}\n{text}");
}

#[tokio::test]
async fn metrics_hold_no_secrets_and_no_names_that_clients_choose() {
    let site = busy().await;
    let session = site.session(Pattern::KeyValue).await;
    session.put("a-key-of-a-client", b"1").await.unwrap();
    let queue = site.session(Pattern::Queue).await;
    queue.publish("a-topic-of-a-client", b"1").await.unwrap();
    let (_, text) = http1::get(&site.server.endpoints().metrics, "/metrics").await;
    for unwanted in ["a-key-of-a-client", "a-topic-of-a-client", &session.id, &session.token, "prx_", "prc_", "prs_"] {
        assert!(!text.contains(unwanted), "{unwanted}");
    }
    for wanted in [
        "prism_build_info",
        "prism_process_start_time_seconds",
        "prism_data_requests_total",
        "prism_admin_requests_total",
        "prism_backend_requests_total",
    ] {
        assert!(text.contains(wanted), "{wanted}");
    }
}

#[tokio::test]
async fn live_while_it_runs_and_ready_while_both_planes_serve() {
    let site = busy().await;
    let metrics = site.server.endpoints().metrics;
    assert_eq!(http1::get(&metrics, "/live").await.0, 200);
    assert_eq!(http1::get(&metrics, "/ready").await.0, 200);
    assert_eq!(http1::get(&metrics, "/nonsense").await.0, 404);
    // Something runs, so that the drain takes a while.
    let queue = site.session(Pattern::Queue).await;
    queue.publish("t", b"1").await.unwrap();
    let mut stream = queue.subscribe("t", "g").await.unwrap();
    stream.message().await.unwrap().unwrap();
    site.server.signal("TERM");
    until("the drain", || async { (http1::get(&metrics, "/ready").await.0 == 503).then_some(()) }).await;
    assert_eq!(http1::get(&metrics, "/live").await.0, 200);
}

//! A stranger's client: another language, generated from the printed text of the admin API's specification alone
//! (contract §2, "all 18 RPCs and every message of seed A, field for field").

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use prism_e2e::{Options, Pattern, Prism, Site};
use serde_json::Value;

/// The service as the specification prints it.
const PRINTED: [&str; 18] = [
    "ListConfigs",
    "GetConfig",
    "CreateConfig",
    "UpdateConfig",
    "DeleteConfig",
    "ListSessions",
    "GetSession",
    "TerminateSession",
    "ListNamespaces",
    "CreateNamespace",
    "UpdateNamespace",
    "DeleteNamespace",
    "GetBackendStatus",
    "ListBackends",
    "SetMaintenanceMode",
    "DrainConnections",
    "GetMetrics",
    "GetAuditLog",
];

fn client() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/seed_a");
    let installed = folder.join("node_modules/@grpc/grpc-js").is_dir();
    assert!(installed, "{} has no node_modules: run `npm ci` there, or `cargo xtask test`", folder.display());
    folder.join("call_all.js")
}

/// What the client printed, one call a line. Panics when it could not run or when a call failed.
fn call_all(server: &Prism, namespace: &str) -> Vec<Value> {
    let output = Command::new("node")
        .arg(client())
        .arg(server.endpoints().admin)
        .arg(server.data_dir().join("ca.pem"))
        .arg(namespace)
        .env("PRISM_ADMIN_TOKEN", server.admin_token())
        .output()
        .unwrap_or_else(|error| panic!("node cannot be run, and this test needs it: {error}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "the client ended with {}:\n{out}\n{err}", output.status);
    out.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// The answers of an RPC in the order of its calls.
fn answers<'a>(calls: &'a [Value], rpc: &str) -> Vec<&'a Value> {
    calls.iter().filter(|call| call["rpc"] == rpc).map(|call| &call["answer"]).collect()
}

#[track_caller]
fn answer<'a>(calls: &'a [Value], rpc: &str) -> &'a Value {
    let [answer] = answers(calls, rpc)[..] else { panic!("{rpc} was not called once: {calls:?}") };
    answer
}

#[tokio::test]
async fn a_client_made_from_the_printed_text_calls_every_rpc() {
    let site = Site::new(Arc::new(Prism::start(Options::new()).await)).await;
    let session = site.session(Pattern::KeyValue).await;
    let calls = call_all(&site.server, &site.namespace);

    let called: BTreeSet<&str> = calls.iter().filter_map(|call| call["rpc"].as_str()).collect();
    assert_eq!(called, BTreeSet::from(PRINTED));
    assert!(calls.iter().all(|call| call["ok"] == true), "{calls:?}");
    namespaces(&calls, &site.namespace);
    configs(&calls);
    sessions(&calls, &session.id, &session.token);
    backends(&calls);
    operations(&calls);
    audit(&calls, &session.id);
    assert_eq!(site.admin.session(&session.id).await.status, 4, "the session is TERMINATED");
}

fn namespaces(calls: &[Value], live: &str) {
    let created = &answer(calls, "CreateNamespace")["namespace"];
    assert_eq!(created["name"], "seed-a");
    assert_eq!(created["description"], "made by a stranger");
    assert_eq!(created["status"], "NAMESPACE_STATUS_ACTIVE");
    assert_eq!(created["quota"]["max_sessions"], "10");
    assert_eq!(created["quota"]["max_rps"], "100");
    let updated = answer(calls, "UpdateNamespace");
    assert_eq!(updated["namespace"]["description"], "changed");
    assert_eq!(updated["namespace"]["quota"]["max_sessions"], "20");
    assert!(is_time(&updated["updated_at"]), "{updated}");
    let listed = names(&answer(calls, "ListNamespaces")["namespaces"], "name");
    assert!(listed.contains("seed-a") && listed.contains(live), "{listed:?}");
    assert_eq!(answer(calls, "DeleteNamespace")["success"], true);
}

fn configs(calls: &[Value]) {
    let created = answer(calls, "CreateConfig");
    assert_eq!(created["config"]["name"], "seed-a-orders");
    assert!(is_time(&created["created_at"]), "{created}");
    assert_eq!(answer(calls, "UpdateConfig")["config"]["version"], "2");
    let got = answer(calls, "GetConfig");
    assert_eq!(got["config"]["pattern"], "ACCESS_PATTERN_QUEUE");
    assert_eq!(got["config"]["backend"]["type"], "BACKEND_TYPE_SQLITE");
    assert_eq!(got["config"]["backend"]["options"]["partitions"], "2");
    assert_eq!(got["config"]["namespace"], "seed-a");
    assert_eq!(got["revision"], "2");
    assert!(got["etag"].as_str().is_some_and(|etag| !etag.is_empty()), "{got}");
    let listed = answer(calls, "ListConfigs");
    assert_eq!(names(&listed["configs"], "name"), BTreeSet::from(["seed-a-orders"]));
    assert_eq!(listed["total_count"], 1);
    assert_eq!(answer(calls, "DeleteConfig")["success"], true);
}

fn sessions(calls: &[Value], id: &str, token: &str) {
    let listed = answer(calls, "ListSessions");
    assert_eq!(names(&listed["sessions"], "session_id"), BTreeSet::from([id]));
    assert_eq!(listed["total_count"], 1);
    let got = &answer(calls, "GetSession")["session"];
    assert_eq!(got["session_id"], id);
    assert_eq!(got["client_id"], "e2e");
    assert_eq!(got["status"], "SESSION_STATUS_ACTIVE");
    assert!(is_time(&got["created_at"]) && is_time(&got["expires_at"]) && is_time(&got["last_activity"]), "{got}");
    assert_ne!(got["session_token"], token, "the live token is never shown");
    assert_eq!(answer(calls, "TerminateSession")["success"], true);
}

fn backends(calls: &[Value]) {
    let listed = answer(calls, "ListBackends");
    assert_eq!(names(&listed["backends"], "backend_type"), BTreeSet::from(["memory", "sqlite"]));
    assert_eq!(listed["total_count"], 2);
    let status = answer(calls, "GetBackendStatus");
    assert_eq!(status["backend_type"], "sqlite");
    assert_eq!(status["health"]["status"], "HEALTH_STATUS_HEALTHY");
    assert_eq!(names(&status["instances"], "id"), BTreeSet::from(["sqlite"]));
    let metrics = answer(calls, "GetMetrics");
    assert_eq!(metrics["window"]["seconds"], "60");
    assert!(is_time(&metrics["collected_at"]) && is_time(&metrics["process"]["started_at"]), "{metrics}");
    assert_eq!(metrics["total"]["errors_total"], "0");
}

fn operations(calls: &[Value]) {
    let [on, off] = answers(calls, "SetMaintenanceMode")[..] else { panic!("on and off: {calls:?}") };
    assert_eq!((&on["success"], &on["status"]["enabled"]), (&true.into(), &true.into()));
    assert_eq!(on["status"]["message"], "a short break");
    assert!(is_time(&on["status"]["started_at"]) && is_time(&on["status"]["ends_at"]), "{on}");
    assert_eq!((&off["success"], &off["status"]["enabled"]), (&true.into(), &false.into()));
    let drained = answer(calls, "DrainConnections");
    assert_eq!((&drained["complete"], &drained["remaining_count"]), (&true.into(), &0.into()));
}

/// Every call is there under the name of the person, newest first.
fn audit(calls: &[Value], session: &str) {
    let log = answer(calls, "GetAuditLog").as_array().expect("entries");
    let made: Vec<&Value> = calls.iter().rev().skip(1).map(|call| &call["rpc"]).collect();
    let recorded: Vec<&Value> = log.iter().map(|entry| &entry["operation"]).collect();
    assert_eq!(recorded, made);
    for entry in log {
        assert_eq!(entry["actor"], "alice@example.com", "{entry}");
        assert_eq!(entry["success"], true, "{entry}");
        assert!(is_time(&entry["timestamp"]) && entry.get("error").is_none(), "{entry}");
    }
    let of = |rpc: &str| log.iter().find(|entry| entry["operation"] == rpc).expect("an entry");
    assert_eq!(of("CreateConfig")["resource"], "config:seed-a-orders");
    assert_eq!(of("CreateConfig")["namespace"], "seed-a");
    assert_eq!(of("TerminateSession")["resource"], format!("session:{session}"));
    assert_eq!(of("TerminateSession")["metadata"]["reason"], "a stranger looked in");
}

fn names<'a>(list: &'a Value, field: &str) -> BTreeSet<&'a str> {
    let list = list.as_array().expect("a list");
    list.iter().map(|item| item[field].as_str().expect("a name")).collect()
}

fn is_time(value: &Value) -> bool {
    value["seconds"]
        .as_str()
        .and_then(|seconds| seconds.parse::<i64>().ok())
        .is_some_and(|seconds| seconds > 1_700_000_000)
}

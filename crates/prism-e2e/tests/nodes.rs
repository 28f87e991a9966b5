//! A controller and two data nodes, each a process of its own.

use prism_e2e::machines::{NAMESPACE, Node, bring_back, controller, provision, refused};
use prism_e2e::{Admin, Failure, Options, Prism, wait};
use prism_proto::admin::v1::{
    DrainConnectionsRequest, GetMetricsRequest, ListBackendsRequest, ListSessionsRequest, NamespaceQuota,
    SetMaintenanceModeRequest,
};
use tonic::Code;

async fn maintain(admin: &Admin, enabled: bool) {
    let request = SetMaintenanceModeRequest { enabled, message: Some("upgrade".to_owned()), ..Default::default() };
    admin.service().set_maintenance_mode(request).await.expect("maintenance");
}

#[tokio::test]
async fn a_cluster_of_three_processes() {
    let mut server = Prism::start(controller()).await;
    let endpoints = server.endpoints();
    assert_eq!(endpoints.data, "", "a controller has no data port");
    let admin = server.admin();
    let key = provision(&admin).await;
    let (one, two) = (Node::start(&server, "one").await, Node::start(&server, "two").await);

    // Each serves by the same configs, and holds its own sessions.
    let (first, second) = (one.open(&key, "kv").await.unwrap(), two.open(&key, "kv").await.unwrap());
    first.put("greeting", b"hello").await.unwrap();
    assert_eq!(first.get("greeting").await.unwrap().value, b"hello".as_slice());
    let listed = admin.service().list_sessions(ListSessionsRequest::default()).await.unwrap().into_inner();
    let mut ids: Vec<_> = listed.sessions.iter().map(|session| session.session_id.clone()).collect();
    ids.sort();
    let mut expected = [first.id.clone(), second.id.clone()];
    expected.sort();
    assert_eq!(ids, expected);
    let told = listed.sessions.iter().find(|session| session.session_id == first.id).unwrap();
    assert_eq!(told.metrics.unwrap().requests_total, 2, "what a node has to report is asked for");
    let backends = admin.service().list_backends(ListBackendsRequest::default()).await.unwrap().into_inner();
    assert!(backends.backends.iter().all(|backend| backend.instance_count == 2), "{backends:?}");
    let metrics = admin.service().get_metrics(GetMetricsRequest::default()).await.unwrap().into_inner();
    assert!(metrics.total.unwrap().active_sessions == 2 && metrics.unreachable_nodes.is_empty(), "{metrics:?}");

    // What an operator was answered holds on every node.
    maintain(&admin, true).await;
    refused(first.get("greeting").await).is(Code::Unavailable, "MAINTENANCE");
    refused(second.get("greeting").await).is(Code::Unavailable, "MAINTENANCE");
    maintain(&admin, false).await;
    first.get("greeting").await.unwrap();
    admin.set_quota(NAMESPACE, NamespaceQuota { max_sessions: 3, ..Default::default() }).await;
    let third = two.open(&key, "kv").await.unwrap();
    one.open(&key, "kv").await.unwrap_err().is(Code::ResourceExhausted, "QUOTA_EXCEEDED");
    let ended = admin.terminate(&third.id, true, "enough").await;
    assert!(ended.unreachable_nodes.is_empty(), "{ended:?}");
    refused(third.get("greeting").await).is(Code::Unauthenticated, "SESSION_TOKEN_INVALID");
    let drain = DrainConnectionsRequest { node_id: Some("two".to_owned()), ..Default::default() };
    let drained = admin.service().drain_connections(drain).await.unwrap().into_inner();
    assert_eq!((drained.drained_count, drained.complete), (1, true));
    refused(second.get("greeting").await).is(Code::Unauthenticated, "SESSION_TOKEN_INVALID");
    first.get("greeting").await.unwrap();
    let nobody = DrainConnectionsRequest { node_id: Some("three".to_owned()), ..Default::default() };
    refused(admin.service().drain_connections(nobody).await).is(Code::NotFound, "NOT_FOUND");

    // Without a controller what there is goes on, and nothing new comes.
    server.kill();
    first.put("greeting", b"still here").await.unwrap();
    let refusal = wait::until("the node knows that it is alone", || async {
        one.open(&key, "kv").await.err().filter(|refused| refused.reason == "NO_CONTROLLER")
    })
    .await;
    assert!(refusal.code == Code::Unavailable && refusal.message.contains("sessions that exist go on"), "{refusal:?}");
    one.keeps(&first).await;
    one.prism.crash_and_restart().await;
    let first = first.on(&one.channel());
    assert_eq!(first.get("greeting").await.unwrap().value, b"still here".as_slice(), "a start without a controller");
    let fourth = two.open(&key, "kv").await;
    assert!(fourth.is_err());

    // When it is back all are equal again.
    bring_back(&mut server, &endpoints.admin).await;
    let admin = server.admin();
    let fifth = wait::until("a session is admitted again", || async { one.open(&key, "kv").await.ok() }).await;
    fifth.put("more", b"x").await.unwrap();
    let ended = admin.terminate(&first.id, true, "enough").await;
    assert!(ended.unreachable_nodes.is_empty(), "{ended:?}");
    refused(first.get("greeting").await).is(Code::Unauthenticated, "SESSION_TOKEN_INVALID");

    // A node that is away is named, and learns what it missed.
    one.prism.signal("STOP");
    let unreachable = wait::until("the node is given up", || async {
        let ended = admin.terminate(&fifth.id, true, "while you were away").await;
        Some(ended.unreachable_nodes).filter(|nodes| nodes == &["one"])
    })
    .await;
    assert_eq!(unreachable, ["one"]);
    one.prism.signal("CONT");
    wait::until("the session is dead when the node is back", || async {
        let refused = fifth.get("more").await.err().map(|status| Failure::from(&status));
        refused.filter(|refused| refused.reason == "SESSION_TOKEN_INVALID")
    })
    .await;
}

#[tokio::test]
async fn a_node_says_what_it_lacks() {
    let alone = Prism::prepared(Options::new().arg("--role").arg("data").config("[tls.data]\nmode = \"off\"\n"));
    alone.spawn();
    assert_eq!(alone.exit().await.code(), Some(2));
    wait::until("the reason", || async { alone.log().contains("prism join").then_some(()) }).await;
    let names = Options::new().arg("--role").arg("data").config("[listen]\nnames = [\"other.example\"]\n");
    let names = Prism::prepared(names);
    names.spawn();
    assert_eq!(names.exit().await.code(), Some(2));
    wait::until("the reason", || async { names.log().contains("tls.data.mode").then_some(()) }).await;
    let wrong = "[cluster]\ncontrollers = [\"nowhere\"]\n[tls.data]\nmode = \"off\"\n";
    let wrong = Prism::prepared(Options::new().arg("--role").arg("data").config(wrong));
    wrong.spawn();
    assert_eq!(wrong.exit().await.code(), Some(2));
    wait::until("the reason", || async { wrong.log().contains("cluster.controllers").then_some(()) }).await;
}

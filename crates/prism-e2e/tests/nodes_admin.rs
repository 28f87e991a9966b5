//! The nodes as one, for operators: what is listed, measured and checked across them, and who is missing from an answer.

use prism_e2e::cli::Cli;
use prism_e2e::failure::Refused as _;
use prism_e2e::machines::{self, NAMESPACE, Node, bring_back, controller, info, linked, provision, revoke};
use prism_e2e::site::{Pattern, config, with_option};
use prism_e2e::{Admin, Options, Prism, wait};
use prism_proto::admin::v1 as wire;
use prism_proto::cluster::v1::ListNodesRequest;
use prism_proto::config::v1::ClientConfig;
use tonic::Code;

/// Ends the controller, and starts it where its nodes look for it.
async fn restart(server: &mut Prism) {
    let admin = server.endpoints().admin;
    server.kill();
    bring_back(server, &admin).await;
}

/// Who is missing from each answer that depends on nodes.
async fn missing(admin: &Admin, session: &str) -> Vec<(&'static str, Vec<String>)> {
    let mut service = admin.service();
    let namespace = wire::GetNamespaceRequest { name: NAMESPACE.to_owned() };
    let update = wire::UpdateNamespaceRequest {
        name: NAMESPACE.to_owned(),
        description: Some("orders".to_owned()),
        ..Default::default()
    };
    let removal = wire::DeleteNamespaceRequest { name: NAMESPACE.to_owned(), force: true, validate_only: true };
    let status = wire::GetBackendStatusRequest { backend_type: "sqlite".to_owned() };
    let session = wire::GetSessionRequest { session_id: session.to_owned() };
    macro_rules! of {
        ($method:ident, $request:expr) => {{
            let answer = service.$method($request).await.expect(stringify!($method)).into_inner();
            (stringify!($method), answer.unreachable_nodes)
        }};
    }
    vec![
        of!(list_sessions, wire::ListSessionsRequest::default()),
        of!(get_session, session),
        of!(list_namespaces, wire::ListNamespacesRequest::default()),
        of!(get_namespace, namespace),
        of!(update_namespace, update),
        of!(delete_namespace, removal),
        of!(list_backends, wire::ListBackendsRequest::default()),
        of!(get_backend_status, status),
        of!(get_metrics, wire::GetMetricsRequest::default()),
    ]
}

#[tokio::test]
async fn who_is_away_is_named_in_every_answer_that_lacks_him() {
    let mut server = Prism::start(controller()).await;
    let admin = server.admin();
    let (one, two) = (Node::start(&server, "one").await, Node::start(&server, "two").await);
    let key = provision(&admin).await;
    let (first, second) = (one.open(&key, "kv").await.unwrap(), two.open(&key, "kv").await.unwrap());
    first.put("a", b"1").await.unwrap();
    second.put("b", b"2").await.unwrap();

    // Both are there.
    for (what, nodes) in missing(&admin, &second.id).await {
        assert_eq!(nodes, [""; 0], "{what}");
    }
    let status = wire::GetBackendStatusRequest { backend_type: "sqlite".to_owned() };
    let status = admin.service().get_backend_status(status).await.unwrap().into_inner();
    let mut backends: Vec<_> = status.instances.iter().map(|of| (of.node_id.as_str(), of.id.as_str())).collect();
    backends.sort_unstable();
    assert_eq!(backends, [("one", "sqlite"), ("two", "sqlite")], "the backends of a controller are those of its nodes");
    let listed = admin.nodes().list_nodes(ListNodesRequest::default()).await.unwrap().into_inner();
    for (told, node) in listed.nodes.iter().zip([&one, &two]) {
        assert!(told.connected && told.connected_since.is_some() && told.started_at.is_some(), "{told:?}");
        assert_eq!((told.data_endpoint.as_str(), told.live_sessions), (node.prism.endpoints().data.as_str(), 1));
        assert!(!told.version.is_empty() && told.certificate_expires_at.is_some(), "{told:?}");
        let backends: Vec<_> = told.backends.iter().map(|of| (of.instance.as_str(), of.r#type.as_str())).collect();
        assert_eq!(backends, [("sqlite", "sqlite"), ("memory", "memory")]);
    }

    // One is not.
    two.prism.kill();
    let away = linked(&admin, "two", false).await;
    assert!(away.live_sessions == 1 && away.connected_since.is_some() && away.backends.len() == 2, "{away:?}");
    for (what, nodes) in missing(&admin, &second.id).await {
        assert_eq!(nodes, ["two"], "{what}");
    }
    let of_first = wire::GetSessionRequest { session_id: first.id.clone() };
    let of_first = admin.service().get_session(of_first).await.unwrap().into_inner();
    assert_eq!(of_first.unreachable_nodes, [""; 0], "the session is on the other");

    // People and programs read it.
    let cli = Cli::of(&server);
    for line in
        ["session list", "namespace list", "namespace get orders", "backend list", "backend status sqlite", "metrics"]
    {
        cli.run(line).ok().notes("two");
        assert_eq!(
            cli.run(&format!("{line} -o json")).ok().json()["unreachableNodes"],
            serde_json::json!(["two"]),
            "{line}"
        );
    }
    cli.run(&format!("session get {}", second.id)).ok().notes("two");
    let shown = cli.run("node list").ok().prints("connected").prints("away").prints("sqlite (sqlite)");
    shown.prints(&one.prism.endpoints().data);
    assert_eq!(cli.run("node show two").ok().field("live sessions"), "1");

    // A controller that starts anew knows who is missing, and what they have.
    restart(&mut server).await;
    let admin = server.admin();
    linked(&admin, "one", true).await;
    for (what, nodes) in missing(&admin, &second.id).await {
        assert_eq!(nodes, ["two"], "{what}");
    }
    let known = info(&admin, "two").await;
    assert!(!known.connected && known.connected_since.is_none() && known.backends.len() == 2, "{known:?}");

    // Without sessions nobody misses its sessions, and its backends and data still; revoked, it is missed by nobody.
    admin.terminate(&second.id, true, "its node is gone").await;
    wait::until("it has no sessions", || async {
        let listed = admin.service().list_sessions(wire::ListSessionsRequest::default()).await.unwrap().into_inner();
        listed.unreachable_nodes.is_empty().then_some(())
    })
    .await;
    let backends = admin.service().list_backends(wire::ListBackendsRequest::default()).await.unwrap().into_inner();
    assert_eq!(backends.unreachable_nodes, ["two"]);
    revoke(&admin, "two").await;
    wait::until("it is forgotten", || async {
        missing(&admin, &second.id).await.iter().all(|(_, nodes)| nodes.is_empty()).then_some(())
    })
    .await;
}

fn on(instance: &str, config: ClientConfig) -> ClientConfig {
    with_option(config, "instance", instance)
}

async fn create(admin: &Admin, config: ClientConfig) -> Result<(), tonic::Status> {
    let request = wire::CreateConfigRequest { config: Some(config), overwrite: true, ..Default::default() };
    admin.service().create_config(request).await.map(|_| ())
}

#[tokio::test]
async fn a_config_names_what_a_node_serves() {
    const INSTANCE: [&str; 1] = ["config.backend.options.instance"];
    let mut server = Prism::start(controller()).await;
    let admin = server.admin();
    admin.create_namespace(NAMESPACE).await;
    let kv = |name: &str| config(name, NAMESPACE, Pattern::KeyValue);
    let tables = |name: &str| config(name, NAMESPACE, Pattern::Reader);

    // Until a node has said what there is, the controller goes by its own settings.
    create(&admin, kv("early")).await.unwrap();
    create(&admin, on("edge", kv("early"))).await.refused().names(&INSTANCE);

    let edge = Node::start_with(&server, "one", "[[backend]]\nname = \"edge\"\ntype = \"sqlite\"\n").await;
    create(&admin, on("edge", kv("kv"))).await.unwrap();
    create(&admin, on("sqlite", kv("kv"))).await.refused().names(&INSTANCE);
    create(&admin, on("nowhere", kv("kv"))).await.refused().names(&INSTANCE);
    create(&admin, kv("kv")).await.unwrap();
    let key = admin.create_client_key(NAMESPACE, &["read", "write"]).await;
    edge.open(&key, "kv").await.unwrap().put("a", b"1").await.unwrap();
    create(&admin, tables("tables")).await.unwrap();
    let bad = with_option(tables("bad"), "schema", "CREATE TABLE IF NOT EXISTS items (id TEXT PRIMARY KEY");
    create(&admin, bad.clone()).await.refused();

    // Two of a type, and one of them has to be named.
    let _other = Node::start_with(&server, "two", "[[backend]]\nname = \"core\"\ntype = \"sqlite\"\n").await;
    create(&admin, kv("kv")).await.refused().names(&INSTANCE);
    create(&admin, on("core", kv("of-core"))).await.unwrap();
    create(&admin, on("edge", tables("tables"))).await.unwrap();

    // Of a node that is away, what it said last counts, also for a controller that starts anew. What a driver has to look at
    // waits for one that can.
    edge.prism.kill();
    linked(&admin, "one", false).await;
    for round in 0..2 {
        create(&admin, on("edge", kv("kv"))).await.unwrap();
        let refused = create(&admin, on("edge", tables("later"))).await.refused();
        refused.is(Code::Unavailable, "NODES_UNREACHABLE");
        assert!(refused.message.contains("one") && refused.message.contains("schema"), "{refused:?}");
        create(&admin, on("core", tables("core-tables"))).await.unwrap();
        create(&admin, on("nowhere", kv("kv"))).await.refused().names(&INSTANCE);
        if round == 0 {
            restart(&mut server).await;
            linked(&server.admin(), "two", true).await;
        }
    }

    // A process with a data plane of its own has its own first, and those of its nodes by their names.
    let endpoint = server.endpoints().admin;
    server.kill();
    let whole = machines::at(Options::new().arg("--role").arg("all").arg("--data-port=0"), &endpoint);
    machines::bring_back_as(&mut server, whole).await;
    let admin = server.admin();
    linked(&admin, "two", true).await;
    create(&admin, kv("own")).await.unwrap();
    create(&admin, on("core", kv("of-core"))).await.unwrap();
    create(&admin, on("nowhere", kv("kv"))).await.refused().names(&INSTANCE);
    let own = admin.service().get_config(wire::GetConfigRequest { name: "own".to_owned(), ..Default::default() }).await;
    assert!(!own.unwrap().into_inner().config.unwrap().backend.unwrap().options.contains_key("instance"));
    create(&admin, with_option(bad, "instance", "core")).await.refused();
}

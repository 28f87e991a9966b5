//! Data of namespaces that are gone for good, on nodes that were away: it goes when they are back, and nothing else does.

use std::path::{Path, PathBuf};

use prism_e2e::machines::{NAMESPACE, Node, bring_back, controller, linked, provision};
use prism_e2e::site::{Pattern, config};
use prism_e2e::{Admin, Prism, Session, wait};
use prism_proto::admin::v1::{DeleteNamespaceRequest, DeleteNamespaceResponse};

/// A session on a node that may be on its way back.
async fn open(node: &Node, key: &str) -> Session {
    wait::until("a session", || async { node.open(key, "kv").await.ok() }).await
}

/// The file with the namespace's data.
fn file(node: &Node) -> PathBuf {
    node.prism.data_dir().join("backends").join("sqlite").join(format!("{NAMESPACE}.db"))
}

/// Makes the namespace with its configs, and a key for it.
async fn make(admin: &Admin) -> String {
    let key = provision(admin).await;
    admin.create_config(config("tables", NAMESPACE, Pattern::Reader)).await;
    key
}

async fn delete(admin: &Admin, force: bool) -> DeleteNamespaceResponse {
    let request = DeleteNamespaceRequest { name: NAMESPACE.to_owned(), force, validate_only: false };
    admin.service().delete_namespace(request).await.expect("a removal").into_inner()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

async fn lacks(session: &Session, key: &str) {
    assert!(!session.get(key).await.expect("an answer").found, "{key} is of the namespace before");
}

#[tokio::test]
async fn a_node_that_was_away_removes_what_is_gone_and_not_what_came_since() {
    let mut server = Prism::start(controller()).await;
    let endpoint = server.endpoints().admin;
    let admin = server.admin();
    let (one, two) = (Node::start(&server, "one").await, Node::start(&server, "two").await);
    let key = make(&admin).await;
    for node in [&one, &two] {
        open(node, &key).await.put("secret", b"of the first").await.unwrap();
        assert!(file(node).exists());
    }
    two.prism.kill();
    linked(&admin, "two", false).await;
    assert_eq!(delete(&admin, true).await.unreachable_nodes, ["two"], "who has still to remove it is named");
    assert!(!file(&one).exists() && file(&two).exists());

    // The name is free at once, and who was there serves it.
    let key = make(&admin).await;
    let first = open(&one, &key).await;
    lacks(&first, "secret").await;
    first.put("kept", b"of the second").await.unwrap();

    // The controller forgets nothing of it in a crash, and the node nothing of its data.
    server.kill();
    bring_back(&mut server, &endpoint).await;
    let admin = server.admin();
    two.back().await;
    let second = open(&two, &key).await;
    lacks(&second, "secret").await;
    second.put("kept", b"of the second").await.unwrap();
    for _ in 0..2 {
        two.prism.crash_and_restart().await;
        linked(&admin, "two", true).await;
        let kept = open(&two, &key).await.get("kept").await.unwrap().value;
        assert_eq!(kept, b"of the second".as_slice(), "a removal is done once");
    }
    assert_eq!(first.get("kept").await.unwrap().value, b"of the second".as_slice());
    assert_eq!(delete(&admin, true).await.unreachable_nodes, [""; 0]);
    assert!(!file(&one).exists() && !file(&two).exists());
}

#[tokio::test]
async fn a_controller_from_an_old_copy_removes_nothing_that_came_after_it() {
    let mut server = Prism::start(controller()).await;
    let endpoint = server.endpoints().admin;
    let admin = server.admin();
    let node = Node::start(&server, "one").await;
    let key = make(&admin).await;
    open(&node, &key).await.put("first", b"1").await.unwrap();
    node.prism.kill();
    linked(&admin, "one", false).await;
    assert_eq!(delete(&admin, true).await.unreachable_nodes, ["one"]);

    // A copy is made while the node has still to remove the first.
    server.kill();
    let copies = tempfile::tempdir().unwrap();
    copy(&server.data_dir(), copies.path());
    bring_back(&mut server, &endpoint).await;
    let admin = server.admin();
    node.back().await;
    let key = make(&admin).await;
    let session = open(&node, &key).await;
    lacks(&session, "first").await;
    session.put("second", b"2").await.unwrap();

    // The controller is lost, and what is put in its place knows of nothing but the first, which has to be removed.
    server.kill();
    std::fs::remove_dir_all(server.data_dir()).unwrap();
    copy(copies.path(), &server.data_dir());
    bring_back(&mut server, &endpoint).await;
    let admin = server.admin();
    linked(&admin, "one", true).await;
    node.says("is of a later one, and stays").await;
    assert!(file(&node).exists(), "the second namespace's data");
    let key = make(&admin).await;
    let session = open(&node, &key).await;
    lacks(&session, "first").await;
    assert_eq!(
        session.get("second").await.unwrap().value,
        b"2".as_slice(),
        "what was lost with the controller is there"
    );
}

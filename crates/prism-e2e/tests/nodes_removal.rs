//! Data of namespaces that are gone for good, on nodes that were away: it goes when they are back, and nothing else does.

use std::path::{Path, PathBuf};

use prism_e2e::data::{self, Session, named};
use prism_e2e::node::join;
use prism_e2e::site::{Pattern, config};
use prism_e2e::{Admin, Failure, Options, Prism, dial, wait};
use prism_proto::admin::v1::{DeleteNamespaceRequest, DeleteNamespaceResponse};
use prism_proto::cluster::v1::GetNodeRequest;
use tempfile::TempDir;

const NAMESPACE: &str = "orders";

/// A joined machine.
struct Node {
    prism: Prism,
    _folder: TempDir,
}

impl Node {
    async fn start(controller: &Prism, name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data_dir = folder.path().join("data");
        let token = controller.admin().create_join_token(name).await.join_token;
        let (endpoint, dir) = (controller.endpoints().admin, data_dir.to_string_lossy().into_owned());
        join(&["-", "--controller", &endpoint, "--node-id", name, "--data-dir", &dir], &token).ok();
        let options = Options::new().arg("--role").arg("data").data_dir(&data_dir);
        Self { prism: Prism::start(options).await, _folder: folder }
    }

    async fn back(&self) {
        self.prism.spawn();
        self.prism.ready().await;
    }

    async fn try_open(&self, key: &str) -> Result<Session, Failure> {
        let channel = dial::tls(&self.prism.endpoints().data, &self.prism.data_dir().join("node").join("ca.pem"));
        data::create(&channel, named(key, "kv")).await.map_err(|status| Failure::from(&status))
    }

    async fn open(&self, key: &str) -> Session {
        wait::until("a session", || async { self.try_open(key).await.ok() }).await
    }

    /// The file with the namespace's data.
    fn file(&self) -> PathBuf {
        self.prism.data_dir().join("backends").join("sqlite").join(format!("{NAMESPACE}.db"))
    }
}

fn controller() -> Options {
    Options::new().arg("--role").arg("admin")
}

/// Starts the controller where its nodes look for it.
async fn begin(server: &mut Prism, admin: &str) {
    let (host, port) = admin.rsplit_once(':').unwrap();
    let words = [format!("--bind={host}"), format!("--admin-port={port}"), "--metrics-port=0".to_owned()];
    let options = words.iter().fold(controller().own_ports(), |options, word| options.arg(word));
    server.set_options(options.data_dir(&server.data_dir()));
    server.spawn();
    server.ready().await;
}

async fn linked(admin: &Admin, name: &str, wanted: bool) {
    wait::until("the link is there, or not", || async {
        let node = admin.nodes().get_node(GetNodeRequest { node_id: name.to_owned() }).await.expect("the node");
        (node.into_inner().node.expect("a node").connected == wanted).then_some(())
    })
    .await;
}

/// Makes the namespace with a config, and a key for it.
async fn make(admin: &Admin) -> String {
    admin.create_namespace(NAMESPACE).await;
    admin.create_config(config("kv", NAMESPACE, Pattern::KeyValue)).await;
    admin.create_config(config("tables", NAMESPACE, Pattern::Reader)).await;
    admin.create_client_key(NAMESPACE, &["read", "write"]).await
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
        node.open(&key).await.put("secret", b"of the first").await.unwrap();
        assert!(node.file().exists());
    }
    two.prism.kill();
    linked(&admin, "two", false).await;
    assert_eq!(delete(&admin, true).await.unreachable_nodes, ["two"], "who has still to remove it is named");
    assert!(!one.file().exists() && two.file().exists());

    // The name is free at once, and who was there serves it.
    let key = make(&admin).await;
    let first = one.open(&key).await;
    lacks(&first, "secret").await;
    first.put("kept", b"of the second").await.unwrap();

    // The controller forgets nothing of it in a crash, and the node nothing of its data.
    server.kill();
    begin(&mut server, &endpoint).await;
    let admin = server.admin();
    two.back().await;
    let second = two.open(&key).await;
    lacks(&second, "secret").await;
    second.put("kept", b"of the second").await.unwrap();
    for _ in 0..2 {
        two.prism.crash_and_restart().await;
        linked(&admin, "two", true).await;
        let kept = two.open(&key).await.get("kept").await.unwrap().value;
        assert_eq!(kept, b"of the second".as_slice(), "a removal is done once");
    }
    assert_eq!(first.get("kept").await.unwrap().value, b"of the second".as_slice());
    assert_eq!(delete(&admin, true).await.unreachable_nodes, [""; 0]);
    assert!(!one.file().exists() && !two.file().exists());
}

#[tokio::test]
async fn a_controller_from_an_old_copy_removes_nothing_that_came_after_it() {
    let mut server = Prism::start(controller()).await;
    let endpoint = server.endpoints().admin;
    let admin = server.admin();
    let node = Node::start(&server, "one").await;
    let key = make(&admin).await;
    node.open(&key).await.put("first", b"1").await.unwrap();
    node.prism.kill();
    linked(&admin, "one", false).await;
    assert_eq!(delete(&admin, true).await.unreachable_nodes, ["one"]);

    // A copy is made while the node has still to remove the first.
    server.kill();
    let copies = tempfile::tempdir().unwrap();
    copy(&server.data_dir(), copies.path());
    begin(&mut server, &endpoint).await;
    let admin = server.admin();
    node.back().await;
    let key = make(&admin).await;
    let session = node.open(&key).await;
    lacks(&session, "first").await;
    session.put("second", b"2").await.unwrap();

    // The controller is lost, and what is put in its place knows of nothing but the first, which has to be removed.
    server.kill();
    std::fs::remove_dir_all(server.data_dir()).unwrap();
    copy(copies.path(), &server.data_dir());
    begin(&mut server, &endpoint).await;
    let admin = server.admin();
    linked(&admin, "one", true).await;
    wait::until("the node was told", || async {
        node.prism.log().contains("is of a later one, and stays").then_some(())
    })
    .await;
    assert!(node.file().exists(), "the second namespace's data");
    let key = make(&admin).await;
    let session = node.open(&key).await;
    lacks(&session, "first").await;
    assert_eq!(
        session.get("second").await.unwrap().value,
        b"2".as_slice(),
        "what was lost with the controller is there"
    );
}

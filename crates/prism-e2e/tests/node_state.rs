//! What a node finds on its disk, and who else has it: a state that is cut short or changed, a second process with a copy of its
//! identity, and a database of a newer version.

use std::path::Path;
use std::time::Duration;

use prism_e2e::data::{self, Session, named};
use prism_e2e::node::join;
use prism_e2e::site::{Pattern, config};
use prism_e2e::{Options, Prism, dial, keys, wait};
use prism_proto::cluster::v1::ListNodesRequest;
use tempfile::TempDir;
use tonic::transport::Channel;

const NAMESPACE: &str = "orders";
/// Longer than a node waits for a controller before it starts by what is on its disk.
const PATIENCE: Duration = Duration::from_secs(8);
/// Where the version of the schema is in a SQLite file.
const USER_VERSION: usize = 60;

fn options(data_dir: &Path) -> Options {
    Options::new().arg("--role").arg("data").data_dir(data_dir)
}

fn channel(node: &Prism) -> Channel {
    dial::tls(&node.endpoints().data, &node.data_dir().join("node").join("ca.pem"))
}

/// The controller again, where the node looks for it.
fn controller_at(admin: &str, data_dir: &Path) -> Options {
    let (host, port) = admin.rsplit_once(':').unwrap();
    let ports = [format!("--bind={host}"), format!("--admin-port={port}"), "--metrics-port=0".to_owned()];
    let options = Options::new().arg("--role").arg("admin").own_ports().data_dir(data_dir);
    ports.iter().fold(options, |options, arg| options.arg(arg))
}

/// A controller, a node with one session, and that session; the state is on the node's disk.
async fn cluster(folder: &Path) -> (Prism, Prism, Session) {
    let controller = Prism::start(Options::new().arg("--role").arg("admin")).await;
    let admin = controller.admin();
    admin.create_namespace(NAMESPACE).await;
    admin.create_config(config("kv", NAMESPACE, Pattern::KeyValue)).await;
    let key = admin.create_client_key(NAMESPACE, &["read", "write"]).await;
    let data_dir = folder.join("one");
    let token = admin.create_join_token("one").await.join_token;
    let (endpoint, dir) = (controller.endpoints().admin, data_dir.to_string_lossy().into_owned());
    join(&["-", "--controller", &endpoint, "--node-id", "one", "--data-dir", &dir], &token).ok();
    let node = Prism::start(options(&data_dir)).await;
    let session = data::create(&channel(&node), named(&key, "kv")).await.unwrap();
    session.put("greeting", b"hello").await.unwrap();
    let state = data_dir.join("node").join("state");
    wait::until("the session is written down", || async {
        let bytes = std::fs::read(&state).unwrap_or_default();
        bytes.windows(16).any(|id| id == keys::id(&session.token).as_bytes()).then_some(())
    })
    .await;
    (controller, node, session)
}

/// A copy of a folder with all that is in it.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy(&path, &target);
        } else if entry.file_name() != "endpoints.json" && entry.file_name() != "lock" {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

async fn log_says(server: &Prism, words: &str) {
    wait::until(words, || async { server.log().contains(words).then_some(()) }).await;
}

#[tokio::test]
async fn a_node_does_not_serve_by_a_state_that_is_not_whole() {
    let folder = tempfile::tempdir().unwrap();
    let (mut controller, node, session) = cluster(folder.path()).await;
    let endpoint = controller.endpoints().admin;
    node.kill();
    controller.kill();
    let whole = std::fs::read(node.data_dir().join("node").join("state")).unwrap();
    let mut turned = whole.clone();
    turned[whole.len() / 2] ^= 1;
    let cut = |length: usize| whole[..length].to_vec();
    let states = [Vec::new(), cut(1), cut(20), cut(whole.len() / 2), cut(whole.len() - 1), turned, b"{}".to_vec()];
    let broken: Vec<Prism> = states
        .iter()
        .enumerate()
        .map(|(number, state)| {
            let data_dir = folder.path().join(format!("broken-{number}"));
            copy(&node.data_dir(), &data_dir);
            std::fs::write(data_dir.join("node").join("state"), state).unwrap();
            let broken = Prism::prepared(options(&data_dir));
            broken.spawn();
            broken
        })
        .collect();
    for broken in &broken {
        log_says(broken, "the node's state is left out; it starts when a controller answers").await;
    }
    // What is whole serves without a controller.
    node.spawn();
    node.ready().await;
    assert_eq!(session.on(&channel(&node)).get("greeting").await.unwrap().value, b"hello".as_slice());
    node.kill();
    tokio::time::sleep(PATIENCE).await;
    for broken in &broken {
        assert!(!broken.data_dir().join("endpoints.json").exists(), "it serves:\n{}", broken.log());
        assert_eq!(broken.try_exit(), None, "it waits:\n{}", broken.log());
    }
    let mut broken = broken;
    let last = broken.pop().unwrap();
    drop(broken);
    controller.set_options(controller_at(&endpoint, &controller.data_dir()));
    controller.spawn();
    controller.ready().await;
    last.ready().await;
    assert_eq!(session.on(&channel(&last)).get("greeting").await.unwrap().value, b"hello".as_slice());
}

#[tokio::test]
async fn a_copy_of_a_node_is_refused_and_seen_while_the_first_lives() {
    let folder: TempDir = tempfile::tempdir().unwrap();
    let (controller, node, session) = cluster(folder.path()).await;
    let data_dir = folder.path().join("copy");
    copy(&node.data_dir(), &data_dir);
    let twin = Prism::prepared(options(&data_dir));
    twin.spawn();
    log_says(&twin, "another process has this node's identity and is linked").await;
    log_says(&controller, "NODE_ALREADY_CONNECTED").await;
    tokio::time::sleep(PATIENCE).await;
    assert!(!data_dir.join("endpoints.json").exists(), "two serve the same sessions:\n{}", twin.log());
    session.put("greeting", b"still").await.unwrap();

    let admin = controller.admin();
    let nodes = admin.nodes().list_nodes(ListNodesRequest::default()).await.unwrap().into_inner().nodes;
    assert!(nodes[0].link_refusal.starts_with("NODE_ALREADY_CONNECTED: "), "{nodes:?}");
    assert!(nodes[0].link_refused_at.is_some());
    let entries = admin.whole_log().await;
    let alarm = entries.iter().find(|entry| entry.metadata.get("alarm").is_some_and(|alarm| alarm == "node_twin"));
    let alarm = alarm.expect("an entry with the alarm");
    assert_eq!((alarm.operation.as_str(), alarm.resource.as_str()), ("Link", "node:one"), "{alarm:?}");

    // Its restart is no second process.
    twin.signal("STOP");
    node.crash_and_restart().await;
    let session = session.on(&channel(&node));
    assert_eq!(session.get("greeting").await.unwrap().value, b"still".as_slice());
    twin.signal("CONT");
    // When the first is gone, the copy is the node.
    node.kill();
    twin.ready().await;
    assert_eq!(session.on(&channel(&twin)).token, session.token);
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_left_alone() {
    let server = Prism::start(Options::new().arg("--role").arg("admin")).await;
    server.signal("TERM");
    server.exit().await;
    let path = server.data_dir().join("prism.db");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[USER_VERSION..USER_VERSION + 4].copy_from_slice(&9999u32.to_be_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let _ = std::fs::remove_file(server.data_dir().join("prism.db-wal"));
    server.spawn();
    let status = server.exit().await;
    assert!(!status.success());
    log_says(&server, "the database has schema 9999").await;
    log_says(&server, "start a newer version").await;
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "nothing of it is changed");
}

//! A controller and data nodes, each a process of its own.

use std::path::Path;

use prism_proto::cluster::v1::RevokeNodeRequest;
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::admin::Admin;
use crate::data::{self, Session, named};
use crate::failure::Failure;
use crate::node::join;
use crate::server::{Options, Prism};
use crate::site::{Pattern, config};
use crate::{dial, http1, keys, wait};

/// The namespace of these tests.
pub const NAMESPACE: &str = "orders";

/// A controller without a data plane.
pub fn controller() -> Options {
    Options::new().arg("--role").arg("admin")
}

/// The same one again, where the nodes look for it.
pub fn controller_at(admin: &str) -> Options {
    let (host, port) = admin.rsplit_once(':').expect("an address");
    let ports = [format!("--bind={host}"), format!("--admin-port={port}"), "--metrics-port=0".to_owned()];
    ports.iter().fold(controller().own_ports(), |options, arg| options.arg(arg))
}

/// A namespace with a config for keys and values, `kv`, and one for queues, `queue`; gives a client key for it.
pub async fn provision(admin: &Admin) -> String {
    admin.create_namespace(NAMESPACE).await;
    admin.create_config(config("kv", NAMESPACE, Pattern::KeyValue)).await;
    admin.create_config(config("queue", NAMESPACE, Pattern::Queue)).await;
    admin.create_client_key(NAMESPACE, &["read", "write"]).await
}

/// Revokes a node.
pub async fn revoke(admin: &Admin, node: &str) {
    admin.nodes().revoke_node(RevokeNodeRequest { node_id: node.to_owned() }).await.expect("a revocation");
}

/// A machine that has joined, and serves.
pub struct Node {
    /// Its process.
    pub prism: Prism,
    name: String,
    controller: String,
    _folder: TempDir,
}

impl Node {
    /// Joins and starts.
    pub async fn start(controller: &Prism, name: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let data_dir = folder.path().join("data");
        let endpoint = controller.endpoints().admin;
        join_again(&controller.admin(), &endpoint, name, &data_dir).await;
        let options = Options::new().arg("--role").arg("data").data_dir(&data_dir);
        let prism = Prism::start(options).await;
        Self { prism, name: name.to_owned(), controller: endpoint, _folder: folder }
    }

    /// Ends it, joins once more with a new token, and starts it, as its operator does.
    pub async fn rejoin(&self, admin: &Admin) {
        self.prism.kill();
        join_again(admin, &self.controller, &self.name, &self.prism.data_dir()).await;
        self.prism.spawn();
        self.prism.ready().await;
    }

    /// A connection to its data port.
    pub fn channel(&self) -> Channel {
        dial::tls(&self.prism.endpoints().data, &self.prism.data_dir().join("node").join("ca.pem"))
    }

    /// Opens a session under `config`.
    pub async fn open(&self, key: &str, config: &str) -> Result<Session, Failure> {
        data::create(&self.channel(), named(key, config)).await.map_err(|status| Failure::from(&status))
    }

    /// What its `/ready` answers.
    pub async fn ready(&self) -> (u16, String) {
        http1::get(&self.prism.endpoints().metrics, "/ready").await
    }

    /// Waits until what it has written down holds this session.
    pub async fn keeps(&self, session: &Session) {
        let (path, id) = (self.prism.data_dir().join("node").join("state"), keys::id(&session.token));
        wait::until("the session is written down", || async {
            let bytes = std::fs::read(&path).unwrap_or_default();
            bytes.windows(id.len()).any(|found| found == id.as_bytes()).then_some(())
        })
        .await;
    }

    /// Waits until its log holds `words`.
    pub async fn says(&self, words: &str) {
        wait::until(words, || async { self.prism.log().contains(words).then_some(()) }).await;
    }
}

async fn join_again(admin: &Admin, controller: &str, name: &str, data_dir: &Path) {
    let token = admin.create_join_token(name).await.join_token;
    let dir = data_dir.to_string_lossy().into_owned();
    join(&["-", "--controller", controller, "--node-id", name, "--data-dir", &dir], &token).ok();
}

/// A refusal, or a failure of the test.
pub fn refused(outcome: Result<impl std::fmt::Debug, tonic::Status>) -> Failure {
    Failure::from(&outcome.expect_err("a refusal"))
}

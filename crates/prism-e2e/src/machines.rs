//! A controller and data nodes, each a process of its own.

use std::path::Path;

use prism_proto::cluster::v1::{GetNodeRequest, Node as NodeInfo, RevokeNodeRequest};
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::admin::Admin;
use crate::data::{self, Session, named};
use crate::failure::Failure;
use crate::node::{Files, join};
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
    at(controller(), admin)
}

/// A process with this admin port, and no other port of its own choice.
pub fn at(options: Options, admin: &str) -> Options {
    let (host, port) = admin.rsplit_once(':').expect("an address");
    let ports = [format!("--bind={host}"), format!("--admin-port={port}"), "--metrics-port=0".to_owned()];
    ports.iter().fold(options.own_ports(), |options, arg| options.arg(arg))
}

/// Starts a controller that has ended where its nodes look for it: on this admin port, with the data that it had.
pub async fn bring_back(server: &mut Prism, admin: &str) {
    bring_back_as(server, controller_at(admin)).await;
}

/// The same with these options.
pub async fn bring_back_as(server: &mut Prism, options: Options) {
    server.set_options(options.data_dir(&server.data_dir()));
    server.spawn();
    server.ready().await;
}

/// A namespace with a config for keys and values, `kv`, and one for queues, `queue`; gives a client key for it.
pub async fn provision(admin: &Admin) -> String {
    admin.create_namespace(NAMESPACE).await;
    admin.create_config(config("kv", NAMESPACE, Pattern::KeyValue)).await;
    admin.create_config(config("queue", NAMESPACE, Pattern::Queue)).await;
    admin.create_client_key(NAMESPACE, &["read", "write"]).await
}

/// What a controller tells about a node.
pub async fn info(admin: &Admin, node: &str) -> NodeInfo {
    let answer = admin.nodes().get_node(GetNodeRequest { node_id: node.to_owned() }).await.expect("the node");
    answer.into_inner().node.expect("a node")
}

/// Waits until a node is linked, or is not.
pub async fn linked(admin: &Admin, node: &str, wanted: bool) -> NodeInfo {
    wait::until("the link is there, or not", || async {
        Some(info(admin, node).await).filter(|node| node.connected == wanted)
    })
    .await
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
        Self::start_with(controller, name, "").await
    }

    /// The same with this configuration file.
    pub async fn start_with(controller: &Prism, name: &str, settings: &str) -> Self {
        Self::start_by(&controller.admin(), controller, name, settings).await
    }

    /// The same by this operator.
    pub async fn start_by(admin: &Admin, controller: &Prism, name: &str, settings: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let options = Options::new().arg("--role").arg("data").data_dir(&folder.path().join("data"));
        let prism = Prism::prepared(options.config(settings));
        let node = Self { prism, name: name.to_owned(), controller: controller.endpoints().admin, _folder: folder };
        node.join(admin).await;
        node.back().await;
        node
    }

    /// Joins with a token that is bound to its name; what it has stays.
    pub async fn join(&self, admin: &Admin) {
        let token = admin.create_join_token(&self.name).await.join_token;
        let dir = self.prism.data_dir().to_string_lossy().into_owned();
        join(&["-", "--controller", &self.controller, "--node-id", &self.name, "--data-dir", &dir], &token).ok();
    }

    /// Starts it with what it has.
    pub async fn back(&self) {
        self.prism.spawn();
        self.prism.ready().await;
    }

    /// Ends it, joins once more with a new token, and starts it, as its operator does.
    pub async fn rejoin(&self, admin: &Admin) {
        self.prism.kill();
        self.join(admin).await;
        self.back().await;
    }

    /// Its files.
    pub fn files(&self) -> Files {
        Files::of(&self.prism.data_dir())
    }

    /// A connection to its data port.
    pub fn channel(&self) -> Channel {
        self.trusting(&self.files().path("ca.pem"))
    }

    /// A new one of somebody who trusts these CAs.
    pub fn trusting(&self, ca: &Path) -> Channel {
        dial::tls(&self.prism.endpoints().data, ca)
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
        let (path, id) = (self.files().path("state"), keys::id(&session.token));
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

/// A refusal, or a failure of the test.
pub fn refused(outcome: Result<impl std::fmt::Debug, tonic::Status>) -> Failure {
    Failure::from(&outcome.expect_err("a refusal"))
}

//! Controllers, data nodes and both planes in one process, set up alike.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use prism_proto::admin::v1::{
    CreateClientKeyRequest, CreateClientKeyResponse, CreateConfigRequest, CreateConfigResponse, CreateNamespaceRequest,
    CreateNamespaceResponse,
};
use prism_proto::cluster::v1::{CreateJoinTokenRequest, CreateJoinTokenResponse};
use prism_proto::config::v1::{AccessPattern, BackendConfig, BackendType, ClientConfig};

use crate::admin::CREATE_CONFIG;
use crate::join::CREATE_JOIN_TOKEN;
use crate::prism::Prism;
use crate::process::beside;
use crate::wire::Peer;

/// The namespace of the clients.
const NAMESPACE: &str = "default";
/// Their config.
pub const CONFIG: &str = "bench";

/// A controller and one data node.
pub struct Cluster {
    /// The node, whose clients have a key. It ends first.
    pub node: Prism,
    /// The controller, without a data plane.
    pub controller: Prism,
}

impl Cluster {
    /// Starts both, each in a folder of its own below `scratch`.
    pub async fn start(scratch: &Path) -> Result<Self> {
        let controller = controller(scratch)?;
        let admin = controller.admin()?;
        let client_key = provision(&admin).await?;
        let folder = folder(scratch, "node")?;
        join(&folder, &controller, &token(&admin, "bench-node").await?)?;
        let mut node = Prism::launch(&folder, &["--role", "data"])?;
        node.client_key = client_key;
        Ok(Self { node, controller })
    }
}

/// Starts a controller without a data plane.
pub fn controller(scratch: &Path) -> Result<Prism> {
    Prism::launch(&folder(scratch, "controller")?, &["--role", "admin"])
}

/// Starts both planes in one process, set up as a cluster is.
pub async fn one_process(scratch: &Path) -> Result<Prism> {
    let mut prism = Prism::launch(&folder(scratch, "one-process")?, &["--role", "all"])?;
    prism.client_key = provision(&prism.admin()?).await?;
    Ok(prism)
}

/// A join token for the node.
pub async fn token(admin: &Peer, node_id: &str) -> Result<String> {
    let request = CreateJoinTokenRequest { node_id: node_id.to_owned(), ttl_seconds: 0 };
    Ok(admin.call::<CreateJoinTokenResponse>(CREATE_JOIN_TOKEN, &request).await?.join_token)
}

fn folder(scratch: &Path, name: &str) -> Result<std::path::PathBuf> {
    let folder = scratch.join(name);
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Makes namespace, config and client key, and gives the key.
async fn provision(admin: &Peer) -> Result<String> {
    let namespace = CreateNamespaceRequest { name: NAMESPACE.to_owned(), ..CreateNamespaceRequest::default() };
    admin.call::<CreateNamespaceResponse>("/prism.admin.v1.AdminService/CreateNamespace", &namespace).await?;
    let config = ClientConfig {
        name: CONFIG.to_owned(),
        version: "1".to_owned(),
        pattern: AccessPattern::KeyValue.into(),
        backend: Some(BackendConfig { r#type: BackendType::Memory.into(), ..BackendConfig::default() }),
        namespace: NAMESPACE.to_owned(),
        ..ClientConfig::default()
    };
    let config = CreateConfigRequest { config: Some(config), overwrite: false, validate_only: false };
    admin.call::<CreateConfigResponse>(CREATE_CONFIG, &config).await?;
    let key = CreateClientKeyRequest {
        name: "bench".to_owned(),
        namespace: NAMESPACE.to_owned(),
        permissions: vec!["read".to_owned(), "write".to_owned()],
        ttl: None,
    };
    let made: CreateClientKeyResponse = admin.call("/prism.admin.v1.AccessService/CreateClientKey", &key).await?;
    Ok(made.token)
}

/// Runs `prism join`.
fn join(scratch: &Path, controller: &Prism, token: &str) -> Result<()> {
    let mut command = Command::new(beside("PRISM_BIN", "prism")?);
    let endpoint = format!("127.0.0.1:{}", controller.admin_port()?);
    command.args(["join", "-", "--node-id", "bench-node", "--controller", &endpoint, "--data-dir"]);
    command.arg(Prism::folder(scratch)).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = command.spawn().context("prism cannot be run")?;
    child.stdin.take().context("no pipe")?.write_all(token.as_bytes())?;
    let status = child.wait()?;
    ensure!(status.success(), "prism join ended with {status}");
    Ok(())
}

//! etcd of the distribution's package, as it comes: one node, clear text, no access control.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::callers::Calls;
use crate::process::{Ended, free_port};
use crate::wire::Peer;

/// A running etcd.
pub struct Etcd {
    process: Ended,
    client: u16,
}

/// `etcdserverpb.PutRequest`; its other fields are not used.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PutRequest {
    /// The key.
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    /// The value.
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

/// `etcdserverpb.PutResponse`; none of its fields is used.
#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

const PUT: &str = "/etcdserverpb.KV/Put";

impl Etcd {
    /// Starts etcd on free ports, with its data below `scratch`, and waits until it takes a Put.
    pub async fn start(scratch: &Path) -> Result<Self> {
        let (client, peer) = (free_port()?, free_port()?);
        let url = |port| format!("http://127.0.0.1:{port}");
        let mut command = Command::new(binary());
        command
            .args(["--name", "bench", "--logger", "zap", "--log-level", "error", "--data-dir"])
            .arg(scratch.join("etcd"))
            .args(["--listen-client-urls", &url(client), "--advertise-client-urls", &url(client)])
            .args(["--listen-peer-urls", &url(peer), "--initial-advertise-peer-urls", &url(peer)])
            .args(["--initial-cluster", &format!("bench={}", url(peer))])
            .stdout(Stdio::null());
        // This version refuses to start there without being told to.
        if cfg!(target_arch = "aarch64") {
            command.env("ETCD_UNSUPPORTED_ARCH", "arm64");
        }
        let process = Ended::start(&mut command).context("name etcd in ETCD, or have it in the path")?;
        let mut etcd = Self { process, client };
        let deadline = Instant::now() + Duration::from_secs(30);
        let first = PutRequest { key: b"first".to_vec(), value: Vec::new() };
        while etcd.peer().call::<PutResponse>(PUT, &first).await.is_err() {
            etcd.process.require_running().context("etcd")?;
            ensure!(Instant::now() < deadline, "etcd did not start");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(etcd)
    }

    fn peer(&self) -> Peer {
        Peer { port: self.client, tls: None, authorization: None, pids: vec![self.process.pid()] }
    }

    /// Puts with the key and value of each number.
    pub fn puts(&self, entry: impl Fn(u64) -> PutRequest + 'static) -> Calls {
        use prost::Message as _;
        Calls { peer: self.peer(), path: PUT, message: Box::new(move |number| entry(number).encode_to_vec()) }
    }
}

fn binary() -> PathBuf {
    std::env::var_os("ETCD").unwrap_or_else(|| "etcd".into()).into()
}

//! The real `prism`, started for the bench.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use prism_proto::config::v1::{AccessPattern, BackendConfig, BackendType, ClientConfig};
use prism_proto::keyvalue::v1 as keyvalue;
use prism_proto::queue::v1 as queue;
use prism_proto::queue::v1::queue_service_client::QueueServiceClient;
use prism_proto::session::v1::create_session_request::{Auth, Config};
use prism_proto::session::v1::{CreateSessionRequest, session_service_client::SessionServiceClient};
use prost::Message as _;

use crate::data::{BATCH, VALUE_BYTES};
use crate::load::Target;
use crate::process::{Ended, beside};
use crate::wire::{Peer, trusting};

/// A running server, its data plane in clear text with one worker thread.
pub struct Prism {
    process: Ended,
    folder: PathBuf,
    data: u16,
    admin: u16,
    metrics: u16,
    client_key: String,
}

impl Prism {
    /// Starts `prism serve --dev` on free ports, with its data in the folder `data` below `scratch`, which may hold that of
    /// an earlier one.
    pub fn start(scratch: &Path) -> Result<Self> {
        let folder = scratch.join("data");
        let settings = scratch.join("prism.toml");
        std::fs::write(&settings, "[limits]\ndata_threads = 1\n")?;
        // What an earlier one left that was killed would be read as this one's.
        let endpoints = folder.join("endpoints.json");
        let _ = std::fs::remove_file(&endpoints);
        let mut command = Command::new(beside("PRISM_BIN", "prism")?);
        command
            .args(["serve", "--dev", "--data-port", "0", "--admin-port", "0", "--metrics-port", "0", "--data-dir"])
            .arg(&folder)
            .arg("--config")
            .arg(&settings)
            .env("PRISM_LOG", "warn")
            .stdout(Stdio::null());
        let mut process = Ended::start(&mut command)?;
        let deadline = Instant::now() + Duration::from_secs(30);
        let endpoints = loop {
            if let Ok(text) = std::fs::read_to_string(&endpoints) {
                break serde_json::from_str::<serde_json::Value>(&text)?;
            }
            process.require_running().context("prism")?;
            ensure!(Instant::now() < deadline, "prism did not start");
            std::thread::sleep(Duration::from_millis(20));
        };
        let port = |name: &str| -> Result<u16> {
            let address = endpoints[name].as_str().with_context(|| format!("endpoints.json has no {name}"))?;
            Ok(address.rsplit_once(':').context("no port")?.1.parse()?)
        };
        let client_key = std::fs::read_to_string(folder.join("client.token"))?.trim().to_owned();
        let (data, admin, metrics) = (port("data")?, port("admin")?, port("metrics")?);
        Ok(Self { process, folder, data, admin, metrics, client_key })
    }

    /// The admin plane, called with the first admin key.
    pub fn admin(&self) -> Result<Peer> {
        let key = std::fs::read_to_string(self.folder.join("admin.token"))?;
        Ok(Peer {
            port: self.admin,
            tls: Some(trusting(&self.folder.join("ca.pem"))?),
            authorization: Some(format!("Bearer {}", key.trim())),
            pid: self.process.pid(),
        })
    }

    /// Ends it as a crash would, and gives its data directory.
    pub fn kill(self) -> PathBuf {
        self.folder
    }

    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.data)
    }

    fn session(&self, config: Config) -> Result<String> {
        let request = CreateSessionRequest {
            auth: Some(Auth::ApiKey(self.client_key.clone())),
            config: Some(config),
            client_id: "bench".to_owned(),
            ..CreateSessionRequest::default()
        };
        block_on(async {
            Ok(SessionServiceClient::connect(self.endpoint())
                .await?
                .create_session(request)
                .await?
                .into_inner()
                .session_token)
        })
    }

    fn target(&self, path: &'static str, message: Vec<u8>) -> Target {
        Target { port: self.data, path, message, pid: self.process.pid() }
    }

    /// Get of one key on the memory backend; the key is there.
    pub fn get_target(&self) -> Result<Target> {
        let session_token = self.session(Config::InlineConfig(ClientConfig {
            name: "bench".to_owned(),
            version: "1".to_owned(),
            pattern: AccessPattern::KeyValue.into(),
            backend: Some(BackendConfig { r#type: BackendType::Memory.into(), ..BackendConfig::default() }),
            namespace: "default".to_owned(),
            ..ClientConfig::default()
        }))?;
        let put = self.put(session_token.clone());
        let get = keyvalue::GetRequest { session_token, key: put.key.clone() };
        let found = block_on(async {
            let mut client =
                keyvalue::key_value_service_client::KeyValueServiceClient::connect(self.endpoint()).await?;
            client.put(put).await?;
            Ok(client.get(get.clone()).await?.into_inner())
        })?;
        ensure!(found.found && found.value.len() == VALUE_BYTES, "the value is not there");
        Ok(self.target("/prism.keyvalue.v1.KeyValueService/Get", get.encode_to_vec()))
    }

    /// Durable Put of one key.
    pub fn put_target(&self) -> Result<Target> {
        let put = self.put(self.session(Config::ConfigName("dev-key-value".to_owned()))?);
        block_on(async {
            keyvalue::key_value_service_client::KeyValueServiceClient::connect(self.endpoint())
                .await?
                .put(put.clone())
                .await?;
            Ok(())
        })?;
        Ok(self.target("/prism.keyvalue.v1.KeyValueService/Put", put.encode_to_vec()))
    }

    fn put(&self, session_token: String) -> keyvalue::PutRequest {
        let _ = self;
        keyvalue::PutRequest {
            session_token,
            key: "bench".to_owned(),
            value: vec![b'x'; VALUE_BYTES].into(),
            ..keyvalue::PutRequest::default()
        }
    }

    /// Durable Publish to one topic.
    pub fn publish_target(&self) -> Result<Target> {
        let publish = queue::PublishRequest {
            session_token: self.session(Config::ConfigName("dev-queue".to_owned()))?,
            topic: "bench".to_owned(),
            payload: vec![b'x'; VALUE_BYTES].into(),
            ..queue::PublishRequest::default()
        };
        block_on(async { Ok(QueueServiceClient::connect(self.endpoint()).await?.publish(publish.clone()).await?) })?;
        Ok(self.target("/prism.queue.v1.QueueService/Publish", publish.encode_to_vec()))
    }

    /// Durable PublishBatch to one topic.
    pub fn batch_target(&self) -> Result<Target> {
        let message = queue::BatchMessage { payload: vec![b'x'; VALUE_BYTES].into(), ..queue::BatchMessage::default() };
        let batch = queue::PublishBatchRequest {
            session_token: self.session(Config::ConfigName("dev-queue".to_owned()))?,
            topic: "bench".to_owned(),
            messages: vec![message; BATCH],
        };
        let answer = block_on(async {
            Ok(QueueServiceClient::connect(self.endpoint()).await?.publish_batch(batch.clone()).await?)
        })?;
        ensure!(answer.into_inner().failure_count == 0, "messages of a batch were refused");
        Ok(self.target("/prism.queue.v1.QueueService/PublishBatch", batch.encode_to_vec()))
    }

    /// Load counts answers, not statuses: asks the server itself whether requests failed. At the end of a run the load leaves
    /// its last requests unanswered, `cut` at most; the server counts those as cancelled.
    pub fn require_no_errors(&self, cut: usize) -> Result<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.metrics))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let failed: f64 = text
            .lines()
            .filter(|line| line.starts_with("prism_data_request_errors_total{"))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum();
        ensure!(text.contains("prism_data_requests_total{"), "the server counted nothing");
        ensure!(failed <= cut as f64, "{failed} requests failed: the figures above are worthless");
        Ok(())
    }
}

fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

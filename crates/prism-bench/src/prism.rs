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

/// A running server, its data plane, if it has one, in clear text with one worker thread.
pub struct Prism {
    process: Ended,
    folder: PathBuf,
    data: Option<u16>,
    admin: Option<u16>,
    metrics: u16,
    /// What its clients present.
    pub client_key: String,
}

impl Prism {
    /// Starts `prism serve --dev` on free ports, with its data in the folder `data` below `scratch`, which may hold that of
    /// an earlier one.
    pub fn start(scratch: &Path) -> Result<Self> {
        let mut prism = Self::launch(scratch, &["--dev"])?;
        let key = std::fs::read_to_string(prism.folder.join("client.token"))?;
        key.trim().clone_into(&mut prism.client_key);
        Ok(prism)
    }

    /// Starts `prism serve` with these words as well.
    pub fn launch(scratch: &Path, words: &[&str]) -> Result<Self> {
        let folder = Self::folder(scratch);
        let settings = scratch.join("prism.toml");
        std::fs::write(&settings, "[limits]\ndata_threads = 1\n\n[tls.data]\nmode = \"off\"\n")?;
        // What an earlier one left that was killed would be read as this one's.
        let endpoints = folder.join("endpoints.json");
        let _ = std::fs::remove_file(&endpoints);
        let mut command = Command::new(beside("PRISM_BIN", "prism")?);
        command
            .args(["serve", "--bind", "127.0.0.1", "--data-port", "0", "--admin-port", "0", "--metrics-port", "0"])
            .arg("--data-dir")
            .arg(&folder)
            .arg("--config")
            .arg(&settings)
            .args(words)
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
        let port = |name: &str| -> Result<Option<u16>> {
            let Some(address) = endpoints[name].as_str() else { return Ok(None) };
            Ok(Some(address.rsplit_once(':').context("no port")?.1.parse()?))
        };
        let metrics = port("metrics")?.context("endpoints.json has no metrics")?;
        Ok(Self { process, folder, data: port("data")?, admin: port("admin")?, metrics, client_key: String::new() })
    }

    /// The data directory of a server that starts in `scratch`.
    pub fn folder(scratch: &Path) -> PathBuf {
        scratch.join("data")
    }

    /// Its number as a process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Where its data plane is.
    pub fn data_port(&self) -> Result<u16> {
        self.data.context("this server has no data plane")
    }

    /// Where its admin plane is.
    pub fn admin_port(&self) -> Result<u16> {
        self.admin.context("this server has no admin plane")
    }

    /// The admin plane, called with the first admin key.
    pub fn admin(&self) -> Result<Peer> {
        let key = std::fs::read_to_string(self.folder.join("admin.token"))?;
        Ok(Peer {
            port: self.admin_port()?,
            tls: Some(trusting(&self.folder.join("ca.pem"))?),
            authorization: Some(format!("Bearer {}", key.trim())),
            pids: vec![self.pid()],
        })
    }

    /// Ends it as a crash would, and gives its data directory.
    pub fn kill(self) -> PathBuf {
        self.folder
    }

    fn endpoint(&self) -> Result<String> {
        Ok(format!("http://127.0.0.1:{}", self.data_port()?))
    }

    fn session(&self, config: Config) -> Result<String> {
        let request = CreateSessionRequest {
            auth: Some(Auth::ApiKey(self.client_key.clone())),
            config: Some(config),
            client_id: "bench".to_owned(),
            ..CreateSessionRequest::default()
        };
        block_on(async {
            Ok(SessionServiceClient::connect(self.endpoint()?)
                .await?
                .create_session(request)
                .await?
                .into_inner()
                .session_token)
        })
    }

    fn target(&self, path: &'static str, message: Vec<u8>) -> Result<Target> {
        Ok(Target { port: self.data_port()?, path, message, pid: self.pid() })
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
                keyvalue::key_value_service_client::KeyValueServiceClient::connect(self.endpoint()?).await?;
            client.put(put).await?;
            Ok(client.get(get.clone()).await?.into_inner())
        })?;
        ensure!(found.found && found.value.len() == VALUE_BYTES, "the value is not there");
        self.target("/prism.keyvalue.v1.KeyValueService/Get", get.encode_to_vec())
    }

    /// Durable Put of one key.
    pub fn put_target(&self) -> Result<Target> {
        let put = self.put(self.session(Config::ConfigName("dev-key-value".to_owned()))?);
        block_on(async {
            keyvalue::key_value_service_client::KeyValueServiceClient::connect(self.endpoint()?)
                .await?
                .put(put.clone())
                .await?;
            Ok(())
        })?;
        self.target("/prism.keyvalue.v1.KeyValueService/Put", put.encode_to_vec())
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
        block_on(async { Ok(QueueServiceClient::connect(self.endpoint()?).await?.publish(publish.clone()).await?) })?;
        self.target("/prism.queue.v1.QueueService/Publish", publish.encode_to_vec())
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
            Ok(QueueServiceClient::connect(self.endpoint()?).await?.publish_batch(batch.clone()).await?)
        })?;
        ensure!(answer.into_inner().failure_count == 0, "messages of a batch were refused");
        self.target("/prism.queue.v1.QueueService/PublishBatch", batch.encode_to_vec())
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

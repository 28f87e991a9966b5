use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Read as _, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use prism_proto::keyvalue::v1::key_value_service_client::KeyValueServiceClient;
use prism_proto::keyvalue::v1::{GetRequest, ListRequest, PutRequest};
use prism_proto::queue::v1::queue_service_client::QueueServiceClient;
use prism_proto::queue::v1::{AcknowledgeRequest, BatchMessage, PublishBatchRequest, SubscribeRequest};
use prism_proto::session::v1::create_session_request::{Auth, Config};
use prism_proto::session::v1::{CreateSessionRequest, session_service_client::SessionServiceClient};
use tokio_stream::StreamExt as _;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use crate::server::Server;

const TOPIC: &str = "lines";
const GROUP: &str = "tour";
/// Longest message and value, in bytes; a longer line travels in several.
const PIECE_BYTES: usize = 1024 * 1024;
/// Most messages of one batch.
const BATCH: usize = 500;
/// Longest wait for the next message.
const PATIENCE: Duration = Duration::from_secs(30);

/// An application with a session on each pattern.
pub struct App {
    queue: QueueServiceClient<Channel>,
    key_value: KeyValueServiceClient<Channel>,
    queue_token: String,
    key_value_token: String,
}

impl App {
    pub async fn connect(server: &Server, key: &str) -> Result<Self> {
        let ca = Certificate::from_pem(std::fs::read(server.data_dir.join("ca.pem"))?);
        let channel = Endpoint::from_shared(format!("https://{}", server.data))?
            .tls_config(ClientTlsConfig::new().ca_certificate(ca))?
            .connect()
            .await?;
        let mut sessions = SessionServiceClient::new(channel.clone());
        let mut tokens = Vec::new();
        for config in ["tour-queue", "tour-key-value"] {
            let session = sessions
                .create_session(CreateSessionRequest {
                    auth: Some(Auth::ApiKey(key.to_owned())),
                    config: Some(Config::ConfigName(config.to_owned())),
                    client_id: "tour-app".to_owned(),
                    client_version: env!("CARGO_PKG_VERSION").to_owned(),
                    ..CreateSessionRequest::default()
                })
                .await?
                .into_inner();
            println!("a session on {config}: {}", session.session_id);
            tokens.push(session.session_token);
        }
        let [queue_token, key_value_token] =
            <[String; 2]>::try_from(tokens).map_err(|_| anyhow::anyhow!("two sessions"))?;
        Ok(Self {
            queue: QueueServiceClient::new(channel.clone()),
            key_value: KeyValueServiceClient::new(channel).max_decoding_message_size(16 * PIECE_BYTES),
            queue_token,
            key_value_token,
        })
    }

    /// Publishes the file's lines with their line ends, and says how many messages that made.
    pub async fn publish(&self, path: &Path) -> Result<u64> {
        let mut file = BufReader::new(File::open(path)?);
        let (mut sent, mut batch, mut bytes) = (0, Vec::new(), 0);
        loop {
            let mut piece = Vec::new();
            (&mut file).take(PIECE_BYTES as u64).read_until(b'\n', &mut piece)?;
            let last = piece.is_empty();
            if !last {
                bytes += piece.len();
                batch.push(BatchMessage { payload: piece.into(), ..BatchMessage::default() });
            }
            if batch.len() == BATCH || bytes >= PIECE_BYTES || (last && !batch.is_empty()) {
                sent += self.publish_batch(std::mem::take(&mut batch)).await?;
                bytes = 0;
            }
            if last {
                return Ok(sent);
            }
        }
    }

    async fn publish_batch(&self, messages: Vec<BatchMessage>) -> Result<u64> {
        let count = messages.len();
        let request =
            PublishBatchRequest { session_token: self.queue_token.clone(), topic: TOPIC.to_owned(), messages };
        let answer = self.queue.clone().publish_batch(request).await?.into_inner();
        ensure!(
            answer.failure_count == 0 && answer.results.len() == count,
            "{} messages were refused",
            answer.failure_count
        );
        Ok(count as u64)
    }

    /// Receives and acknowledges `count` messages and writes their payloads, in order, to `target`.
    pub async fn receive(&self, count: u64, target: &Path) -> Result<()> {
        let mut out = BufWriter::new(File::create(target)?);
        let request = SubscribeRequest {
            session_token: self.queue_token.clone(),
            topic: TOPIC.to_owned(),
            consumer_group: GROUP.to_owned(),
            max_in_flight: Some(1000),
            ..SubscribeRequest::default()
        };
        let mut messages =
            self.queue.clone().max_decoding_message_size(16 * PIECE_BYTES).subscribe(request).await?.into_inner();
        let mut settled = Vec::new();
        for expected in 0..count {
            let message =
                tokio::time::timeout(PATIENCE, messages.next()).await.context("the next line did not come")?;
            let message = message.context("the stream ended early")??;
            ensure!(message.offset == expected.cast_signed(), "line {} came as number {expected}", message.offset);
            out.write_all(&message.payload)?;
            settled.push(message.message_id);
            if settled.len() == BATCH || expected + 1 == count {
                self.acknowledge(std::mem::take(&mut settled)).await?;
            }
        }
        out.flush()?;
        Ok(())
    }

    async fn acknowledge(&self, message_ids: Vec<String>) -> Result<()> {
        let request = AcknowledgeRequest {
            session_token: self.queue_token.clone(),
            message_ids,
            ..AcknowledgeRequest::default()
        };
        let answer = self.queue.clone().acknowledge(request).await?.into_inner();
        ensure!(answer.success, "{} messages could not be acknowledged", answer.failed_ids.len());
        Ok(())
    }

    /// Keeps the file in values of at most a MiB and says how many.
    pub async fn keep(&self, path: &Path) -> Result<u64> {
        let mut file = File::open(path)?;
        for number in 0.. {
            let mut value = Vec::new();
            (&mut file).take(PIECE_BYTES as u64).read_to_end(&mut value)?;
            if value.is_empty() {
                return Ok(number);
            }
            let request = PutRequest {
                session_token: self.key_value_token.clone(),
                key: format!("file/{number:012}"),
                value: value.into(),
                ..PutRequest::default()
            };
            self.key_value.clone().put(request).await?;
        }
        bail!("the file has no end")
    }

    /// Lists the kept values, page by page, and writes them to `target`.
    pub async fn read_back(&self, target: &Path) -> Result<()> {
        let mut out = BufWriter::new(File::create(target)?);
        let mut page_token = None;
        loop {
            let request = ListRequest {
                session_token: self.key_value_token.clone(),
                prefix: "file/".to_owned(),
                page_size: 8,
                page_token,
                keys_only: false,
            };
            let page = self.key_value.clone().list(request).await?.into_inner();
            for entry in page.entries {
                out.write_all(&entry.value)?;
            }
            page_token = page.next_page_token.filter(|token| !token.is_empty());
            if page_token.is_none() {
                return Ok(out.flush()?);
            }
        }
    }

    async fn get(&self) -> Result<(), tonic::Status> {
        let request = GetRequest { session_token: self.key_value_token.clone(), key: "file/000000000000".to_owned() };
        self.key_value.clone().get(request).await.map(|_| ())
    }

    /// Reads until the server refuses, and says how it did.
    pub async fn read_until_refused(&self) -> Result<String> {
        for reads in 0..1000 {
            if let Err(status) = self.get().await {
                return Ok(format!("{reads} reads, then {:?}: {}", status.code(), status.message()));
            }
        }
        bail!("1000 reads in a row passed a quota of 5 per second")
    }

    /// How the server refuses a read.
    pub async fn refusal(&self) -> Result<String> {
        match self.get().await {
            Err(status) => Ok(format!("{:?}: {}", status.code(), status.message())),
            Ok(()) => bail!("a drained session still reads"),
        }
    }
}

//! A long audit log: how fast it is verified offline, and streamed by a server.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use hyper_util::rt::TokioIo;
use prism_proto::admin::v1::admin_service_client::AdminServiceClient;
use prism_proto::admin::v1::{AuditLogEntry, CreateConfigResponse, GetAuditLogRequest};
use prism_proto::audit_chain;
use prost::Message as _;
use rusqlite::Connection;
use tokio::net::TcpStream;
use tonic::Request;
use tonic::transport::{Endpoint, Uri};
use tower::service_fn;

use crate::admin::{CREATE_CONFIG, GET_AUDIT_LOG, create, make_namespace};
use crate::figures::median;
use crate::prism::Prism;
use crate::process::beside;
use crate::wire::{Peer, secured};
use crate::{ROUNDS, Size};

/// Entries per second that are to be verified.
const VERIFY_GOAL: f64 = 1_000_000.0;
/// Entries per second that are to be streamed.
const STREAM_GOAL: f64 = 300_000.0;

/// Measures and prints both.
pub async fn run(scratch: &Path, size: &Size) -> Result<()> {
    let folder = tempfile::tempdir_in(scratch)?;
    let data = one_config(folder.path()).await?;
    let database = data.join("prism.db");
    let log = lengthen(&mut Connection::open(&database)?, size.entries)?;
    let mib = std::fs::metadata(&database)?.len() >> 20;
    println!(
        "\naudit log of {} entries of {} bytes (prism.db: {mib} MiB), {ROUNDS} rounds, medians",
        log.entries, log.entry_bytes
    );
    verify(&data, folder.path(), &log)?;

    let prism = Prism::start(folder.path())?;
    let admin = prism.admin()?;
    let request = GetAuditLogRequest { resume_after: Some(log.first), ..GetAuditLogRequest::default() };
    let (mut counted, mut decoded) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let entries = admin.count(GET_AUDIT_LOG, &request).await?;
        counted.push(Pace { entries, time: began.elapsed() });
        let began = Instant::now();
        let entries = decode(&admin, request.clone()).await?;
        decoded.push(Pace { entries, time: began.elapsed() });
    }
    for (name, paces) in [("stream (TLS), counted", counted), ("stream (TLS), decoded", decoded)] {
        for pace in &paces {
            // The first entry is not sent again.
            ensure!(pace.entries + 1 >= log.entries, "{name}: the stream ended after {} entries", pace.entries);
        }
        median(paces, Pace::rate).print(name, STREAM_GOAL);
    }
    Ok(())
}

/// How long so many entries took.
struct Pace {
    entries: u64,
    time: Duration,
}

impl Pace {
    fn rate(&self) -> f64 {
        self.entries as f64 / self.time.as_secs_f64()
    }

    fn print(&self, name: &str, goal: f64) {
        println!(
            "{name:>26} {:>12.0} entries/s {:>8.2} of the goal  {:.2} s",
            self.rate(),
            self.rate() / goal,
            self.time.as_secs_f64()
        );
    }
}

/// The data directory of a real server that has made one config and was killed.
async fn one_config(scratch: &Path) -> Result<PathBuf> {
    let prism = Prism::start(scratch)?;
    let admin = prism.admin()?;
    make_namespace(&admin).await?;
    admin.call::<CreateConfigResponse>(CREATE_CONFIG, &create("known", 0)).await?;
    Ok(prism.kill())
}

/// A log as it was made.
struct Log {
    /// Id of its first entry.
    first: String,
    /// How many entries it has.
    entries: u64,
    /// Size of the last, encoded.
    entry_bytes: usize,
}

/// Continues the log of a stopped server up to `entries`, with entries as its last one is.
fn lengthen(connection: &mut Connection, entries: u64) -> Result<Log> {
    // Written once, and only read by what is measured.
    connection.pragma_update(None, "synchronous", "OFF")?;
    let first = connection.query_row("SELECT id FROM audit ORDER BY sequence LIMIT 1", [], |row| row.get(0))?;
    let last: Vec<u8> =
        connection.query_row("SELECT entry FROM audit ORDER BY sequence DESC LIMIT 1", [], |row| row.get(0))?;
    let mut entry = AuditLogEntry::decode(last.as_slice())?;
    let mut hash: [u8; 32] = entry.hash.as_ref().try_into().context("the last entry has no hash")?;
    let mut entry_bytes = last.len();
    let transaction = connection.transaction()?;
    {
        let mut insert = transaction.prepare(
            "INSERT INTO audit (sequence, id, timestamp, actor, operation, namespace, hash, entry) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?;
        for sequence in entry.sequence + 1..=entries {
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
            entry.id = format!("01935000-0000-7000-8000-{sequence:012x}");
            entry.sequence = sequence;
            entry.timestamp = Some(prost_types::Timestamp {
                seconds: now.as_secs().cast_signed(),
                nanos: now.subsec_millis().cast_signed() * 1_000_000,
            });
            entry.previous_hash = hash.to_vec().into();
            hash = audit_chain::hash(&hash, &entry);
            entry.hash = hash.to_vec().into();
            let encoded = entry.encode_to_vec();
            entry_bytes = encoded.len();
            insert.execute(rusqlite::params![
                sequence.cast_signed(),
                entry.id,
                now.as_millis() as i64,
                entry.actor,
                entry.operation,
                entry.namespace,
                hash,
                encoded
            ])?;
        }
    }
    transaction.commit()?;
    Ok(Log { first, entries: entry.sequence, entry_bytes })
}

fn verify(data: &Path, scratch: &Path, log: &Log) -> Result<()> {
    let mut paces = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let output = Command::new(beside("PRISM_ADMIN_BIN", "prism-admin")?)
            .args(["audit", "verify", "-o", "json", "--data-dir"])
            .arg(data)
            // Whatever contexts the caller has, they are left alone.
            .env("HOME", scratch)
            .env("XDG_CONFIG_HOME", scratch)
            .stderr(Stdio::inherit())
            .output()?;
        let time = began.elapsed();
        ensure!(output.status.success(), "audit verify ended with {}", output.status);
        let said: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        ensure!(said["entries"] == log.entries, "audit verify read {} entries of {}", said["entries"], log.entries);
        paces.push(Pace { entries: log.entries, time });
    }
    median(paces, Pace::rate).print("verify, offline", VERIFY_GOAL);
    Ok(())
}

/// Reads a stream to its end as a client of the generated code does, and counts the entries.
async fn decode(admin: &Peer, request: GetAuditLogRequest) -> Result<u64> {
    let (port, tls) = (admin.port, admin.tls.clone().context("the admin plane has TLS")?);
    let connector = service_fn(move |_: Uri| {
        let tls = tls.clone();
        async move {
            let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
            tcp.set_nodelay(true)?;
            Ok::<_, std::io::Error>(TokioIo::new(secured(&tls, tcp).await?))
        }
    });
    // The connector speaks TLS already; `http` keeps the channel from adding its own.
    let endpoint = Endpoint::try_from(format!("http://127.0.0.1:{port}"))?;
    let mut client = AdminServiceClient::new(endpoint.connect_with_connector(connector).await?);
    let mut request = Request::new(request);
    let authorization = admin.authorization.as_deref().unwrap_or_default().parse()?;
    request.metadata_mut().insert("authorization", authorization);
    let mut stream = client.get_audit_log(request).await?.into_inner();
    let (mut entries, mut last) = (0, 0);
    while let Some(entry) = stream.message().await? {
        ensure!(entry.sequence > last, "sequence {} after {last}", entry.sequence);
        (entries, last) = (entries + 1, entry.sequence);
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lengthened_log_is_one_chain() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch(
                "CREATE TABLE audit (sequence INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, timestamp INTEGER NOT NULL,
                 actor TEXT NOT NULL, operation TEXT NOT NULL, namespace TEXT NOT NULL, hash BLOB NOT NULL, entry BLOB NOT NULL) STRICT",
            )
            .unwrap();
        let mut first = AuditLogEntry {
            id: "the first".to_owned(),
            actor: "alice".to_owned(),
            sequence: 1,
            previous_hash: audit_chain::GENESIS.to_vec().into(),
            ..AuditLogEntry::default()
        };
        let hash = audit_chain::hash(&audit_chain::GENESIS, &first);
        first.hash = hash.to_vec().into();
        connection
            .execute(
                "INSERT INTO audit VALUES (1, 'the first', 0, 'alice', '', '', ?1, ?2)",
                (hash, first.encode_to_vec()),
            )
            .unwrap();

        let log = lengthen(&mut connection, 20).unwrap();
        assert_eq!((log.first.as_str(), log.entries), ("the first", 20));
        let mut statement = connection.prepare("SELECT entry FROM audit ORDER BY sequence").unwrap();
        let entries: Vec<Vec<u8>> =
            statement.query_map([], |row| row.get(0)).unwrap().map(|row| row.unwrap()).collect();
        assert_eq!(entries.len(), 20);
        let mut previous = audit_chain::GENESIS;
        for encoded in entries {
            previous =
                audit_chain::verify_link(&previous, &AuditLogEntry::decode(encoded.as_slice()).unwrap()).unwrap();
        }
    }
}

//! The audit log in the database of a stopped server, as somebody who can write the file sees it.

use std::path::{Path, PathBuf};

use prism_e2e::cli::Outcome;
use prism_e2e::{Cli, Prism};
use prism_proto::admin::v1::{AuditCheckpoint, AuditLogEntry};
use prost::Message as _;
use rusqlite::Connection;

/// A stopped server. Its data directory is put back before each change, so that everyone who knows it by its path still does.
pub struct Stopped {
    pub server: Prism,
    /// An operator who has used the server, on whose computer its checkpoints are remembered.
    pub operator: Cli,
    /// Somebody on a computer that has never seen the server, with its public key and without.
    pub auditor: Cli,
    pub public_key: String,
    /// Sequence of the last entry.
    pub last: u64,
    /// Sequences that were signed.
    pub signed: Vec<u64>,
    /// The one that the operator's computer remembers.
    pub remembered: u64,
    /// The newest checkpoint that was kept with the log then.
    pub kept: u64,
    pristine: tempfile::TempDir,
    _home: tempfile::TempDir,
}

impl Stopped {
    /// Stops a server that was used with [`Cli::of`], which has seen its newest checkpoint.
    pub async fn of(server: Prism) -> Self {
        server.signal("TERM");
        assert!(server.exit().await.success(), "{}", server.log());
        let (pristine, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        copy(&server.data_dir(), pristine.path());
        let database = open(&server.data_dir());
        let (log, signed) = (entries(&database), checkpoints(&database));
        prism_e2e::audit::verify_after(log[0].sequence - 1, &log[0].previous_hash, &log);
        signed.iter().for_each(prism_e2e::checkpoints::verify);
        drop(database);
        let shell = |home: &Path| Cli::in_folder(home).env("PRISM_DATA_DIR", &server.data_dir().to_string_lossy());
        Self {
            operator: shell(server.folder()),
            auditor: shell(home.path()),
            public_key: hex::encode(&signed[0].public_key),
            last: log.last().unwrap().sequence,
            signed: signed.iter().map(|checkpoint| checkpoint.sequence).collect(),
            remembered: remembered(server.folder()),
            kept: newest(server.folder(), "stored"),
            pristine,
            _home: home,
            server,
        }
    }

    /// Puts the data back as they were, and changes them.
    pub fn tampered(&self, change: impl FnOnce(&Connection)) {
        self.restore();
        change(&open(&self.server.data_dir()));
    }

    /// Puts the data back as they were.
    pub fn restore(&self) {
        std::fs::remove_dir_all(self.server.data_dir()).unwrap();
        copy(self.pristine.path(), &self.server.data_dir());
    }

    /// `audit verify` on the stopped server.
    pub fn verify(&self, shell: &Cli, more: &[&str]) -> Outcome {
        let folder = self.server.data_dir();
        shell.run_with("audit verify --data-dir", &[&[folder.to_str().unwrap()], more].concat(), "")
    }
}

/// The newest sequence that is remembered in this home.
pub fn remembered(home: &Path) -> u64 {
    newest(home, "checkpoint")
}

fn newest(home: &Path, what: &str) -> u64 {
    let text = std::fs::read(home.join(".config/prism/checkpoints.json")).expect("a memory");
    let json: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    let sequence = |log: &serde_json::Value| log[what]["sequence"].as_str()?.parse().ok();
    json["logs"].as_object().and_then(|logs| logs.values().filter_map(sequence).max()).expect("a checkpoint")
}

/// Copies a folder with all that is in it.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    std::fs::set_permissions(to, from.metadata().unwrap().permissions()).unwrap();
    for file in from.read_dir().unwrap().flatten() {
        let target: PathBuf = to.join(file.file_name());
        if file.file_type().unwrap().is_dir() {
            copy(&file.path(), &target);
        } else {
            // With its permissions.
            std::fs::copy(file.path(), target).unwrap();
        }
    }
}

pub fn open(data_dir: &Path) -> Connection {
    Connection::open(data_dir.join("prism.db")).expect("a database")
}

/// All entries, oldest first.
pub fn entries(database: &Connection) -> Vec<AuditLogEntry> {
    decoded(database, "SELECT entry FROM audit ORDER BY sequence")
}

/// All checkpoints, oldest first.
pub fn checkpoints(database: &Connection) -> Vec<AuditCheckpoint> {
    decoded(database, "SELECT checkpoint FROM checkpoints ORDER BY sequence")
}

fn decoded<M: prost::Message + Default>(database: &Connection, sql: &str) -> Vec<M> {
    let mut statement = database.prepare(sql).expect("a statement");
    let rows = statement.query_map([], |row| row.get::<_, Vec<u8>>(0)).expect("rows");
    rows.map(|row| M::decode(row.expect("a row").as_slice()).expect("a message")).collect()
}

pub fn entry(database: &Connection, sequence: u64) -> AuditLogEntry {
    entries(database).into_iter().find(|entry| entry.sequence == sequence).expect("an entry")
}

/// Runs a statement that must change something.
pub fn run(database: &Connection, sql: &str) {
    assert!(database.execute(sql, []).unwrap_or_else(|error| panic!("{sql}: {error}")) > 0, "{sql} changes nothing");
}

/// Puts an entry in a row, with every column as the server would write it.
pub fn write(database: &Connection, sequence: u64, entry: &AuditLogEntry) {
    let at = entry.timestamp.expect("a time");
    let milliseconds = at.seconds * 1000 + i64::from(at.nanos / 1_000_000);
    let row = (
        sequence as i64,
        &entry.id,
        milliseconds,
        &entry.actor,
        &entry.operation,
        &entry.namespace,
        entry.hash.as_ref(),
        entry.encode_to_vec(),
    );
    database.execute("INSERT OR REPLACE INTO audit VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)", row).expect("a row");
}

/// Puts a checkpoint in its row, with every column as the server would write it.
pub fn write_checkpoint(database: &Connection, checkpoint: &AuditCheckpoint) {
    let row =
        (checkpoint.sequence as i64, checkpoint.hash.as_ref(), checkpoint.encode_to_vec(), i64::from(checkpoint.cut));
    database.execute("INSERT OR REPLACE INTO checkpoints VALUES (?1, ?2, ?3, ?4)", row).expect("a row");
}

/// Gives an entry the place after another in the chain.
#[must_use]
pub fn chained(previous: &[u8], entry: AuditLogEntry) -> AuditLogEntry {
    let mut entry = AuditLogEntry { previous_hash: previous.to_vec().into(), ..entry };
    let previous: [u8; 32] = previous.try_into().expect("a hash");
    entry.hash = prism_proto::audit_chain::hash(&previous, &entry).to_vec().into();
    entry
}

/// Computes the chain anew from an entry on, which `change` has its way with.
pub fn forge(database: &Connection, sequence: u64, change: impl FnOnce(&mut AuditLogEntry)) {
    let mut rest = entries(database);
    rest.retain(|entry| entry.sequence >= sequence);
    let mut previous = rest[0].previous_hash.clone();
    change(&mut rest[0]);
    for entry in rest {
        let entry = chained(&previous, entry);
        previous = entry.hash.clone();
        write(database, entry.sequence, &entry);
    }
}

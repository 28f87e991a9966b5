//! The audit log in the data directory of a server that is not running (contract §9).

use std::{
    fs::{File, TryLockError},
    path::{Path, PathBuf},
};

use prism_proto::admin::v1::AuditLogEntry;
use prost::Message as _;
use rusqlite::{Connection, OpenFlags};

use crate::{
    chain::Verifier,
    error::{Failure, Result},
    export::is_broken,
};

/// The database in `folder`, if no server runs on it. A server holds `prism.lock` while it lives, also
/// when it left an old `endpoints.json` behind.
pub fn database(folder: &Path) -> Result<Option<PathBuf>> {
    let database = folder.join("prism.db");
    if !database.is_file() {
        return Ok(None);
    }
    let lock = folder.join("prism.lock");
    match File::open(&lock).map(|file| file.try_lock_shared()) {
        Ok(Err(TryLockError::WouldBlock)) => Ok(None),
        Ok(Err(TryLockError::Error(error))) => Err(Failure::usage(format!("cannot lock {}: {error}", lock.display()))),
        Ok(Ok(())) => Ok(Some(database)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Some(database)),
        Err(error) => Err(Failure::usage(format!("cannot read {}: {error}", lock.display()))),
    }
}

/// Checks every entry, and that the columns the server filters by and goes on from say what the entry says.
pub fn check(database: &Path, verifier: &mut Verifier) -> Result<()> {
    let failed = |error: rusqlite::Error| {
        Failure::usage(format!("cannot read the audit log in {}: {error}", database.display()))
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(database, flags).map_err(failed)?;
    let mut statement = connection
        .prepare(
            "SELECT sequence, id, timestamp, actor, operation, namespace, hash, entry FROM audit ORDER BY sequence",
        )
        .map_err(failed)?;
    let mut rows = statement.query([]).map_err(failed)?;
    while let Some(row) = rows.next().map_err(failed)? {
        let columns = Columns::read(row).map_err(failed)?;
        let sequence = columns.sequence;
        let broken = |why: &str| is_broken(format!("the chain is broken at sequence {sequence}: {why}"));
        let encoded: Vec<u8> = row.get(7).map_err(failed)?;
        let entry = AuditLogEntry::decode(encoded.as_slice()).map_err(|_| broken("the entry cannot be read"))?;
        verifier.accept(&entry).map_err(|broken| is_broken(broken.to_string()))?;
        if columns != Columns::of(&entry) {
            return Err(broken("its columns were changed and no longer say what the entry says"));
        }
    }
    Ok(())
}

#[derive(PartialEq, Eq)]
struct Columns {
    sequence: i64,
    id: String,
    milliseconds: i64,
    actor: String,
    operation: String,
    namespace: String,
    hash: Vec<u8>,
}

impl Columns {
    fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            sequence: row.get(0)?,
            id: row.get(1)?,
            milliseconds: row.get(2)?,
            actor: row.get(3)?,
            operation: row.get(4)?,
            namespace: row.get(5)?,
            hash: row.get(6)?,
        })
    }

    fn of(entry: &AuditLogEntry) -> Self {
        let at = entry.timestamp.unwrap_or_default();
        Self {
            sequence: entry.sequence as i64,
            id: entry.id.clone(),
            milliseconds: at.seconds.saturating_mul(1000).saturating_add(i64::from(at.nanos / 1_000_000)),
            actor: entry.actor.clone(),
            operation: entry.operation.clone(),
            namespace: entry.namespace.clone(),
            hash: entry.hash.to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use prism_proto::audit_chain::{self, GENESIS};

    use super::*;
    use crate::exit::Exit;

    /// A database as a killed server leaves it: the log is in the write-ahead file. The table is that of
    /// the server's schema.
    fn folder(length: u64) -> (tempfile::TempDir, Connection) {
        let folder = tempfile::tempdir().unwrap();
        let connection = Connection::open(folder.path().join("prism.db")).unwrap();
        connection.pragma_update(None, "journal_mode", "WAL").unwrap();
        connection
            .execute_batch(
                "CREATE TABLE audit (sequence INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, timestamp INTEGER NOT NULL,
                 actor TEXT NOT NULL, operation TEXT NOT NULL, namespace TEXT NOT NULL, hash BLOB NOT NULL, entry BLOB NOT NULL) STRICT",
            )
            .unwrap();
        let mut previous = GENESIS;
        for sequence in 1..=length {
            let mut entry = AuditLogEntry {
                id: format!("e{sequence}"),
                timestamp: Some(prost_types::Timestamp { seconds: 1_760_000_000, nanos: 7_000_000 }),
                actor: "alice".to_owned(),
                sequence,
                previous_hash: previous.to_vec().into(),
                ..AuditLogEntry::default()
            };
            previous = audit_chain::hash(&previous, &entry);
            entry.hash = previous.to_vec().into();
            connection
                .execute(
                    "INSERT INTO audit VALUES (?1, ?2, 1760000000007, 'alice', '', '', ?3, ?4)",
                    (sequence as i64, &entry.id, previous, entry.encode_to_vec()),
                )
                .unwrap();
        }
        (folder, connection)
    }

    fn verify(folder: &Path) -> Result<u64> {
        let mut verifier = Verifier::new(None);
        check(&database(folder)?.unwrap(), &mut verifier)?;
        Ok(verifier.count())
    }

    #[test]
    fn a_stopped_server_is_checked_with_and_without_its_write_ahead_file() {
        let (folder, connection) = folder(5);
        assert_eq!(verify(folder.path()).unwrap(), 5);
        drop(connection);
        assert_eq!(verify(folder.path()).unwrap(), 5);
    }

    #[test]
    fn every_change_is_found() {
        for (change, sequence) in [
            ("DELETE FROM audit WHERE sequence = 3", 3),
            ("UPDATE audit SET entry = (SELECT entry FROM audit WHERE sequence = 1) WHERE sequence = 2", 2),
            ("UPDATE audit SET entry = x'ff' WHERE sequence = 4", 4),
            ("UPDATE audit SET actor = 'bob' WHERE sequence = 5", 5),
            ("UPDATE audit SET timestamp = 1 WHERE sequence = 1", 1),
            ("UPDATE audit SET hash = x'00' WHERE sequence = 5", 5),
        ] {
            let (folder, connection) = folder(5);
            connection.execute_batch(change).unwrap();
            let failure = verify(folder.path()).unwrap_err();
            assert_eq!(failure.exit(), Exit::ChainBroken);
            assert!(failure.to_string().contains(&format!("sequence {sequence}")), "{change}: {failure}");
        }
    }

    #[test]
    fn a_running_server_is_left_to_answer_itself() {
        let (folder, _connection) = folder(1);
        let lock = File::create(folder.path().join("prism.lock")).unwrap();
        lock.lock().unwrap();
        assert_eq!(database(folder.path()).unwrap(), None);
        drop(lock);
        assert!(database(folder.path()).unwrap().is_some());
    }

    #[test]
    fn what_is_no_data_directory_is_not_stopped() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(database(folder.path()).unwrap(), None);
        std::fs::write(folder.path().join("prism.db"), "nonsense").unwrap();
        assert_eq!(verify(folder.path()).unwrap_err().exit(), Exit::Usage);
    }
}

use std::time::Instant;

use prism_proto::{
    admin::v1::AuditLogEntry,
    audit_chain::{GENESIS, hash_encoded},
};
use prost::Message as _;

use super::*;
use crate::{
    chain::{
        Known,
        samples::{chain, hash_at},
    },
    checkpoint::samples::signed,
    exit::Exit,
};

/// The tables of the server's schema.
const TABLES: &str =
    "CREATE TABLE audit (sequence INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, timestamp INTEGER NOT NULL,
     actor TEXT NOT NULL, operation TEXT NOT NULL, namespace TEXT NOT NULL, hash BLOB NOT NULL, entry BLOB NOT NULL) STRICT;
     CREATE INDEX audit_by_timestamp ON audit (timestamp);
     CREATE INDEX audit_by_actor ON audit (actor);
     CREATE INDEX audit_by_operation ON audit (operation);
     CREATE INDEX audit_by_namespace ON audit (namespace);
     CREATE TABLE checkpoints (sequence INTEGER PRIMARY KEY, hash BLOB NOT NULL, checkpoint BLOB NOT NULL,
     cut INTEGER NOT NULL) STRICT";

/// A database as a killed server leaves it: the log is in the write-ahead file.
fn folder(entries: &[AuditLogEntry], checkpoints: &[Checkpoint]) -> (tempfile::TempDir, Connection) {
    let folder = tempfile::tempdir().unwrap();
    let mut connection = Connection::open(folder.path().join("prism.db")).unwrap();
    connection.pragma_update(None, "journal_mode", "WAL").unwrap();
    connection.pragma_update(None, "synchronous", "OFF").unwrap();
    connection.execute_batch(TABLES).unwrap();
    let transaction = connection.transaction().unwrap();
    for entry in entries {
        insert(&transaction, entry, &entry.encode_to_vec());
    }
    for checkpoint in checkpoints {
        let row = (
            checkpoint.sequence as i64,
            checkpoint.hash,
            checkpoint.message().encode_to_vec(),
            i64::from(checkpoint.cut),
        );
        transaction.execute("INSERT INTO checkpoints VALUES (?1, ?2, ?3, ?4)", row).unwrap();
    }
    transaction.commit().unwrap();
    (folder, connection)
}

fn insert(connection: &Connection, entry: &AuditLogEntry, encoded: &[u8]) {
    let at = entry.timestamp.unwrap();
    let milliseconds = at.seconds * 1000 + i64::from(at.nanos / 1_000_000);
    connection
        .prepare_cached("INSERT INTO audit VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")
        .unwrap()
        .execute((
            entry.sequence as i64,
            &entry.id,
            milliseconds,
            &entry.actor,
            &entry.operation,
            &entry.namespace,
            entry.hash.as_ref(),
            encoded,
        ))
        .unwrap();
}

fn verify(folder: &Path) -> Result<(u64, [u8; 32])> {
    let stopped = Stopped::find(folder)?.unwrap();
    let known = Known { checkpoints: stopped.checkpoints()?, ..Known::default() };
    let plan = Plan::new(known).map_err(is_broken)?;
    let (last, head) = stopped.check(&plan)?;
    plan.beyond(last).map_err(|broken| is_broken(broken.to_string()))?;
    Ok((last, head))
}

#[test]
fn a_stopped_server_is_checked_with_and_without_its_write_ahead_file() {
    let entries = chain(5);
    let (folder, connection) = folder(&entries, &[signed(1, 4, hash_at(&entries, 4), false)]);
    assert_eq!(verify(folder.path()).unwrap(), (5, hash_at(&entries, 5)));
    drop(connection);
    assert_eq!(verify(folder.path()).unwrap().0, 5);
}

#[test]
fn an_old_database_has_no_checkpoints() {
    let (folder, connection) = folder(&chain(2), &[]);
    connection.execute_batch("DROP TABLE checkpoints").unwrap();
    assert_eq!(verify(folder.path()).unwrap().0, 2);
    connection.execute_batch("DELETE FROM audit").unwrap();
    assert_eq!(verify(folder.path()).unwrap(), (0, GENESIS));
}

#[test]
fn every_change_is_found() {
    let entries = chain(5);
    let checkpoints = [signed(1, 2, hash_at(&entries, 2), false), signed(1, 4, hash_at(&entries, 4), false)];
    for (change, part) in [
        ("DELETE FROM audit WHERE sequence = 3", "sequence 3"),
        ("DELETE FROM audit WHERE sequence = 1", "sequence 1"),
        ("DELETE FROM audit WHERE sequence <= 3", "sequence 1"),
        ("DELETE FROM audit WHERE sequence >= 4", "sequence 4: the log ends"),
        ("DELETE FROM audit", "sequence 1: the log ends"),
        ("UPDATE audit SET entry = (SELECT entry FROM audit WHERE sequence = 1) WHERE sequence = 2", "sequence 2"),
        ("UPDATE audit SET entry = x'ff' WHERE sequence = 4", "sequence 4"),
        ("UPDATE audit SET actor = 'bob' WHERE sequence = 5", "sequence 5: its columns"),
        ("UPDATE audit SET id = 'x' WHERE sequence = 5", "sequence 5: its columns"),
        ("UPDATE audit SET operation = 'x' WHERE sequence = 5", "sequence 5: its columns"),
        ("UPDATE audit SET namespace = 'x' WHERE sequence = 5", "sequence 5: its columns"),
        ("UPDATE audit SET timestamp = 1 WHERE sequence = 1", "sequence 1: its columns"),
        ("UPDATE audit SET hash = x'00' WHERE sequence = 5", "sequence 5: its columns"),
        ("UPDATE audit SET sequence = -2 WHERE sequence = 1", "sequence 1"),
        ("UPDATE audit SET sequence = 100 WHERE sequence = 2", "sequence 2"),
        ("UPDATE checkpoints SET checkpoint = x'' WHERE sequence = 2", "stored for sequence 2"),
        ("UPDATE checkpoints SET checkpoint = x'ff' WHERE sequence = 2", "stored for sequence 2"),
        ("UPDATE checkpoints SET sequence = 3 WHERE sequence = 2", "its columns"),
        ("UPDATE checkpoints SET hash = x'00' WHERE sequence = 2", "its columns"),
        ("UPDATE checkpoints SET cut = 1 WHERE sequence = 2", "its columns"),
    ] {
        let (folder, connection) = folder(&entries, &checkpoints);
        connection.execute_batch(change).unwrap();
        let failure = verify(folder.path()).unwrap_err();
        assert_eq!(failure.exit(), Exit::ChainBroken, "{change}: {failure}");
        assert!(failure.to_string().contains(part), "{change}: {failure}");
    }
}

#[test]
fn a_chain_computed_anew_does_not_meet_its_checkpoint() {
    let entries = chain(5);
    let mut forged = chain(5);
    let mut previous = GENESIS;
    for entry in &mut forged {
        "mallory".clone_into(&mut entry.actor);
        entry.previous_hash = previous.to_vec().into();
        previous = hash_encoded(&previous, &entry.encode_to_vec()).unwrap();
        entry.hash = previous.to_vec().into();
    }
    let (folder, _connection) = folder(&forged, &[signed(1, 4, hash_at(&entries, 4), false)]);
    assert!(verify(folder.path()).unwrap_err().to_string().contains("sequence 4: its hash"));
}

#[test]
fn a_cut_log_begins_after_its_cut() {
    let entries = chain(6);
    let cut = signed(1, 3, hash_at(&entries, 3), true);
    let (left, connection) = folder(&entries[3..], std::slice::from_ref(&cut));
    assert_eq!(verify(left.path()).unwrap().0, 6);
    connection.execute_batch("DELETE FROM audit WHERE sequence = 4").unwrap();
    assert!(verify(left.path()).unwrap_err().to_string().contains("sequence 4: the entry is missing"));
    connection.execute_batch("DELETE FROM audit").unwrap();
    assert_eq!(verify(left.path()).unwrap(), (3, hash_at(&entries, 3)));
    let (uncut, _connection) = folder(&entries, &[cut]);
    assert!(verify(uncut.path()).unwrap_err().to_string().contains("sequence 1 comes instead"));
}

/// Long enough for several readers.
#[test]
fn breaks_are_found_in_every_range_and_between() {
    let length = 3 * SHORTEST_RANGE + 100;
    let entries = chain(length);
    let (folder, connection) = folder(&entries, &[]);
    assert_eq!(verify(folder.path()).unwrap(), (length, hash_at(&entries, length)));
    let borders: Vec<u64> = split(1, length + 1, 4).iter().map(|range| range.start).collect();
    assert_eq!(borders, [1, 4097, 8193, 12289]);
    // A second chain that is as good in itself, so that only the links across the borders can tell.
    let mut previous = [1; 32];
    connection.execute_batch("BEGIN; DELETE FROM audit WHERE sequence > 4096").unwrap();
    for mut entry in entries.into_iter().skip(4096) {
        entry.previous_hash = previous.to_vec().into();
        previous = hash_encoded(&previous, &entry.encode_to_vec()).unwrap();
        entry.hash = previous.to_vec().into();
        insert(&connection, &entry, &entry.encode_to_vec());
    }
    connection.execute_batch("COMMIT").unwrap();
    let text = verify(folder.path()).unwrap_err().to_string();
    assert!(text.contains("sequence 4097: it does not follow"), "{text}");
    connection
        .execute_batch("DELETE FROM audit WHERE sequence = 4097; DELETE FROM audit WHERE sequence > 8192")
        .unwrap();
    let text = verify(folder.path()).unwrap_err().to_string();
    assert!(text.contains("sequence 4097: the entry is missing"), "{text}");
}

#[test]
fn ranges_cover_the_log() {
    for (start, end, readers) in [(1, 2, 4), (1, 4097, 2), (5, 100_000, 3), (7, 8200, 16), (1, 10, 0)] {
        let ranges = split(start, end, readers);
        assert_eq!((ranges[0].start, ranges.last().unwrap().end), (start, end));
        assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert!(ranges.len() as u64 <= readers.max(1));
    }
}

#[test]
fn a_running_server_is_left_to_answer_itself() {
    let (folder, _connection) = folder(&chain(1), &[]);
    let path = folder.path().join("prism.lock");
    let lock = File::create(&path).unwrap();
    lock.lock().unwrap();
    assert!(Stopped::find(folder.path()).unwrap().is_none());
    drop(lock);
    let stopped = Stopped::find(folder.path()).unwrap().unwrap();
    // And none can start meanwhile.
    assert!(File::open(&path).unwrap().try_lock().is_err());
    drop(stopped);
    assert!(File::open(&path).unwrap().try_lock().is_ok());
}

#[test]
fn what_is_no_data_directory_is_not_stopped() {
    let folder = tempfile::tempdir().unwrap();
    assert!(Stopped::find(folder.path()).unwrap().is_none());
    std::fs::write(folder.path().join("prism.db"), "nonsense").unwrap();
    assert_eq!(verify(folder.path()).unwrap_err().exit(), Exit::Usage);
}

/// How fast a stopped server's log is checked: `cargo test --release -p prism-cli -- --ignored --nocapture a_million`.
#[test]
#[ignore = "a measurement, not a check; run it in release"]
fn a_million_entries() {
    const LENGTH: u64 = 1_000_000;
    let (folder, mut connection) = folder(&[], &[]);
    let transaction = connection.transaction().unwrap();
    let mut previous = GENESIS;
    let mut bytes = 0;
    for sequence in 1..=LENGTH {
        let mut entry = AuditLogEntry {
            id: format!("0190a1b2-0000-7000-8000-{sequence:012}"),
            timestamp: Some(prost_types::Timestamp {
                seconds: 1_760_000_000 + sequence as i64 / 1000,
                nanos: (sequence % 1000 * 1_000_000) as i32,
            }),
            actor: "alice@example.com".to_owned(),
            operation: "CreateConfig".to_owned(),
            resource: format!("config:orders-{sequence}"),
            namespace: "production".to_owned(),
            metadata: [("after".to_owned(), "pattern=QUEUE backend=SQLITE version=1".to_owned())].into(),
            success: true,
            sequence,
            previous_hash: previous.to_vec().into(),
            request_id: format!("0190a1b2-0000-7000-9000-{sequence:012}"),
            source_address: "192.0.2.7:40000".to_owned(),
            auth_method: "api_key".to_owned(),
            credential_id: "k7f3a9c2d1e4b5a6".to_owned(),
            ..AuditLogEntry::default()
        };
        previous = hash_encoded(&previous, &entry.encode_to_vec()).unwrap();
        entry.hash = previous.to_vec().into();
        let encoded = entry.encode_to_vec();
        bytes += encoded.len();
        insert(&transaction, &entry, &encoded);
    }
    transaction.commit().unwrap();
    drop(connection);
    for _ in 0..5 {
        let (start, before) = (Instant::now(), processor_seconds());
        assert_eq!(verify(folder.path()).unwrap(), (LENGTH, previous));
        let rate = LENGTH as f64 / start.elapsed().as_secs_f64();
        let cost = (processor_seconds() - before) * 1e9 / LENGTH as f64;
        let cores = thread::available_parallelism().unwrap();
        let size = bytes as u64 / LENGTH;
        println!("{rate:.0} entries/s of {size} bytes on {cores} cores, {cost:.0} ns of a core each");
    }
}

/// What this process has used of its processors. It tells the cost also where others keep them busy.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    // User and system time in hundredths of a second, fields 14 and 15 of the line.
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

//! `prism-admin audit verify`: the chain is proven on the live server, on an export, and offline in the database file of
//! a stopped server, where whoever can write the file cannot hide what was changed.

use std::path::{Path, PathBuf};

use prism_e2e::{Cli, Options, Prism};
use prism_proto::admin::v1::AuditLogEntry;
use prost::Message as _;
use rusqlite::Connection;

/// A stopped server's data directory with at least ten entries, what verified it live, and a shell.
struct Stopped {
    server: Prism,
    cli: Cli,
    witness: String,
    export: String,
}

async fn stopped() -> Stopped {
    let server = Prism::start(Options::new()).await;
    let cli = Cli::of(&server);
    for name in ["a", "b", "c"] {
        cli.run(&format!("namespace create {name} --user {name}@example.com")).ok();
        cli.run(&format!("namespace get {name}")).ok();
        cli.run(&format!("namespace create {name}")).ends(6);
    }
    let export = cli.run("audit export").ok().quiet().out;
    let witness = cli.run("audit verify").ok().quiet().field("witness");
    server.signal("TERM");
    assert!(server.exit().await.success());
    Stopped { server, cli, witness, export }
}

impl Stopped {
    /// A copy of the data directory, changed.
    fn tampered(&self, name: &str, change: impl FnOnce(&Connection)) -> PathBuf {
        let folder = self.server.folder().join(name);
        std::fs::create_dir(&folder).unwrap();
        for file in self.server.data_dir().read_dir().unwrap().flatten() {
            if file.file_name().to_string_lossy().starts_with("prism.db") {
                std::fs::copy(file.path(), folder.join(file.file_name())).unwrap();
            }
        }
        change(&Connection::open(folder.join("prism.db")).unwrap());
        folder
    }

    fn verify(&self, folder: &Path, more: &[&str]) -> prism_e2e::cli::Outcome {
        self.cli.run_with(&format!("audit verify --data-dir {}", folder.display()), more, "")
    }
}

fn read(database: &Connection, sequence: u64) -> AuditLogEntry {
    let row: Vec<u8> = database
        .query_row("SELECT entry FROM audit WHERE sequence = ?1", [sequence as i64], |row| row.get(0))
        .expect("an entry");
    AuditLogEntry::decode(row.as_slice()).expect("an entry")
}

fn last(database: &Connection) -> u64 {
    let sequence: i64 = database.query_row("SELECT max(sequence) FROM audit", [], |row| row.get(0)).expect("entries");
    sequence as u64
}

/// Puts an entry in the place of another one, with every column as the server would write it.
fn write(database: &Connection, sequence: u64, entry: &AuditLogEntry) {
    let at = entry.timestamp.expect("a time");
    let milliseconds = at.seconds * 1000 + i64::from(at.nanos / 1_000_000);
    let changed = database
        .execute(
            "UPDATE audit SET id = ?2, timestamp = ?3, actor = ?4, operation = ?5, namespace = ?6, hash = ?7, entry = ?8
             WHERE sequence = ?1",
            (
                sequence as i64,
                &entry.id,
                milliseconds,
                &entry.actor,
                &entry.operation,
                &entry.namespace,
                entry.hash.as_ref(),
                entry.encode_to_vec(),
            ),
        )
        .expect("the entry is written");
    assert_eq!(changed, 1);
}

#[tokio::test]
async fn an_untouched_log_verifies_live_offline_and_as_an_export() {
    let stopped = stopped().await;
    let (live, _) = stopped.witness.split_once(':').unwrap();
    let folder = stopped.server.data_dir();
    let whole = stopped.verify(&folder, &[]).ok().quiet();
    // The live check read the log before its own entry was written.
    let count: u64 = whole.field("entries").parse().unwrap();
    assert!(count > live.parse().unwrap() && count >= 10, "{whole:?} after {live}");
    stopped.verify(&folder, &["--witness", &stopped.witness]).ok().quiet();
    let json = stopped.verify(&folder, &["-o", "json"]).ok().json();
    assert_eq!(json["witness"], whole.field("witness"));

    let exported = stopped.cli.run_with("audit verify --file -", &[], &stopped.export).ok().quiet();
    let lines = stopped.export.lines().filter(|line| !line.starts_with("{\"checkpoint\"")).count();
    assert_eq!(exported.field("entries"), lines.to_string());
    let changed = stopped.export.replacen("b@example.com", "m@example.com", 1);
    stopped.cli.run_with("audit verify --file -", &[], &changed).fails(11, "the chain is broken at sequence");
    let cut = stopped.export.lines().skip(1).collect::<Vec<_>>().join("\n");
    stopped.cli.run_with("audit verify --file -", &[], &cut).fails(11, "sequence 1");
}

#[tokio::test]
async fn a_changed_entry_is_found() {
    let stopped = stopped().await;
    let folder = stopped.tampered("actor", |database| {
        let entry = AuditLogEntry { actor: "mallory".to_owned(), ..read(database, 4) };
        write(database, 4, &entry);
    });
    stopped.verify(&folder, &[]).fails(11, "sequence 4: the entry was changed");
    let folder = stopped.tampered("success", |database| {
        let failed = (1..=last(database))
            .map(|sequence| read(database, sequence))
            .find(|entry| !entry.success)
            .expect("a failure");
        let entry = AuditLogEntry { success: true, error: None, ..failed };
        write(database, entry.sequence, &entry);
    });
    stopped.verify(&folder, &[]).fails(11, "the entry was changed");
    // With a hash of its own the entry fits itself, and the next one no longer follows it.
    let folder = stopped.tampered("hash", |database| {
        let mut entry = AuditLogEntry { actor: "mallory".to_owned(), ..read(database, 4) };
        let previous: [u8; 32] = entry.previous_hash.as_ref().try_into().unwrap();
        entry.hash = prism_proto::audit_chain::hash(&previous, &entry).to_vec().into();
        write(database, 4, &entry);
    });
    stopped.verify(&folder, &[]).fails(11, "sequence 5: it does not follow the entry before");
    // The columns that the server searches by are no way round either.
    let folder = stopped.tampered("column", |database| {
        database.execute("UPDATE audit SET actor = 'nobody' WHERE sequence = 4", []).unwrap();
    });
    stopped.verify(&folder, &[]).fails(11, "sequence 4: its columns were changed");
    stopped.verify(&stopped.server.data_dir(), &[]).ok();
}

#[tokio::test]
async fn a_deleted_entry_is_found() {
    let stopped = stopped().await;
    for (name, sequence) in [("first", 1), ("middle", 5)] {
        let folder = stopped.tampered(name, |database| {
            database.execute("DELETE FROM audit WHERE sequence = ?1", [sequence]).unwrap();
        });
        stopped.verify(&folder, &[]).fails(11, &format!("sequence {sequence}: the entry is missing"));
    }
    // The gap closed by new numbers.
    let folder = stopped.tampered("closed", |database| {
        let last = last(database);
        let later: Vec<_> = (6..=last).map(|sequence| read(database, sequence)).collect();
        database.execute("DELETE FROM audit WHERE sequence >= 5", []).unwrap();
        for entry in later {
            let sequence = entry.sequence - 1;
            database
                .execute("INSERT INTO audit VALUES (?1, 'new', 0, '', '', '', x'', x'')", [sequence as i64])
                .unwrap();
            write(database, sequence, &AuditLogEntry { sequence, ..entry });
        }
    });
    stopped.verify(&folder, &[]).fails(11, "sequence 5");
}

#[tokio::test]
async fn reordered_entries_are_found() {
    let stopped = stopped().await;
    let folder = stopped.tampered("swapped", |database| {
        let (third, fourth) = (read(database, 3), read(database, 4));
        database.execute("UPDATE audit SET id = id || '-' WHERE sequence IN (3, 4)", []).unwrap();
        write(database, 3, &fourth);
        write(database, 4, &third);
    });
    stopped.verify(&folder, &[]).fails(11, "broken at sequence 3");
    let folder = stopped.tampered("renumbered", |database| {
        let (third, fourth) = (read(database, 3), read(database, 4));
        database.execute("UPDATE audit SET id = id || '-' WHERE sequence IN (3, 4)", []).unwrap();
        write(database, 3, &AuditLogEntry { sequence: 3, ..fourth });
        write(database, 4, &AuditLogEntry { sequence: 4, ..third });
    });
    stopped.verify(&folder, &[]).fails(11, "broken at sequence 3");
}

#[tokio::test]
async fn a_cut_tail_and_a_chain_made_anew_are_found_with_a_witness() {
    let stopped = stopped().await;
    let witness = ["--witness", stopped.witness.as_str()];
    let seen: u64 = stopped.witness.split_once(':').unwrap().0.parse().unwrap();
    let cut = stopped.tampered("cut", |database| {
        database.execute("DELETE FROM audit WHERE sequence >= ?1", [seen as i64]).unwrap();
    });
    stopped.verify(&cut, &[]).fails(11, "its end was cut off");
    stopped.verify(&cut, &witness).fails(11, &format!("broken at sequence {seen}: the log ends before it"));

    let anew = stopped.tampered("anew", |database| {
        let last = last(database);
        let mut previous = [0; 32];
        for sequence in 1..=last {
            let mut entry = AuditLogEntry { previous_hash: previous.to_vec().into(), ..read(database, sequence) };
            if sequence == 2 {
                "mallory".clone_into(&mut entry.actor);
            }
            previous = prism_proto::audit_chain::hash(&previous, &entry);
            entry.hash = previous.to_vec().into();
            write(database, sequence, &entry);
        }
    });
    stopped.verify(&anew, &[]).fails(11, "checkpoint");
    stopped.verify(&anew, &witness).fails(11, "the witness says otherwise");
    let empty = stopped.tampered("empty", |database| {
        database.execute("DELETE FROM audit", []).unwrap();
    });
    stopped.verify(&empty, &witness).fails(11, "the log ends before");
}

#[tokio::test]
async fn a_running_server_answers_for_itself() {
    let server = Prism::start(Options::new()).await;
    let cli = Cli::of(&server);
    let line = format!("audit verify --data-dir {}", server.data_dir().display());
    cli.run(&line).ok().quiet();
    let checks = || cli.run("audit list --operation GetAuditLog -o json").ok().out.lines().count();
    assert!(checks() > 0, "the live server was asked, and has recorded it");
    // Killed, it leaves an old endpoints.json and a write-ahead file: the log is whole all the same.
    let text = std::fs::read(server.data_dir().join("endpoints.json")).unwrap();
    server.kill();
    std::fs::write(server.data_dir().join("endpoints.json"), text).unwrap();
    let entries: u64 = cli.run(&line).ok().quiet().field("entries").parse().unwrap();
    assert!(entries >= 2, "{entries}");
    cli.run("audit verify --data-dir nowhere").fails(5, "no server runs on");
}

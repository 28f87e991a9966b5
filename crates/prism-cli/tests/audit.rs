//! Checkpoints: what is remembered of a server's log, what is verified of it, what is exported.

mod fake;
mod signed;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    sync::{Arc, Mutex},
};

use fake::{Fake, stderr, stdout};
use prost::Message as _;
use serde_json::Value;
use signed::{Log, chain, chain_of, public_key};

/// A server whose log can be exchanged.
fn serving(log: Log) -> (Fake, Arc<Mutex<Log>>) {
    let log = Arc::new(Mutex::new(log));
    let served = Arc::clone(&log);
    (Fake::start(move |call| served.lock().unwrap().answer(call)), log)
}

#[test]
fn a_log_that_goes_on_is_remembered() {
    let (fake, log) = serving(Log::new(chain(30), &[10]));
    let output = fake.run(&["whoami"]);
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
    assert_eq!(fake.calls()[0].header("prism-audit-witness"), None);
    let file = fake.config_dir().join("checkpoints.json");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    log.lock().unwrap().sign(20, false);
    for witness in ["10", "20", "20"] {
        let output = fake.run(&["whoami"]);
        assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
        assert_eq!(fake.calls().pop().unwrap().header("prism-audit-witness"), Some(witness));
    }
    // Retention leaves what was remembered among the checkpoints.
    log.lock().unwrap().cut(25);
    assert_eq!(fake.run(&["whoami"]).status.code(), Some(0));
    assert_eq!(fake.run(&["audit", "verify"]).status.code(), Some(0));
}

/// Away for so long that the log holds neither the entry that is remembered nor a checkpoint of it: the cut stands for both.
#[test]
fn who_was_away_for_long_raises_no_false_alarm() {
    for line in [&["whoami"][..], &["audit", "list"], &["audit", "verify"]] {
        let (fake, log) = serving(Log::new(chain(30), &[10]));
        assert_eq!(fake.run(&["whoami"]).status.code(), Some(0));
        {
            let mut log = log.lock().unwrap();
            log.cut(25);
            log.checkpoints.retain(|checkpoint| checkpoint.sequence > 10);
        }
        let output = fake.run(line);
        assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""), "{line:?}");
    }
    // A cut of somebody else's is none.
    let (fake, log) = serving(Log::new(chain(30), &[10]));
    fake.run(&["whoami"]);
    {
        let mut log = log.lock().unwrap();
        log.cut(25);
        let hash = log.checkpoints.last().unwrap().hash.to_vec();
        log.checkpoints = vec![signed::checkpoint(2, 25, hash.clone(), true), signed::checkpoint(1, 26, hash, false)];
    }
    let output = fake.run(&["whoami"]);
    assert_eq!(output.status.code(), Some(11));
    assert!(stderr(&output).contains("is none"), "{}", stderr(&output));
}

#[test]
fn a_rewound_server_is_found_by_the_next_call() {
    let (fake, log) = serving(Log::new(chain(30), &[10, 20]));
    fake.run(&["whoami"]);
    let rewound = Log::new(chain(15), &[10]);
    *log.lock().unwrap() = rewound;
    let output = fake.run(&["whoami", "-o", "json"]);
    assert_eq!(output.status.code(), Some(11));
    // The answer is printed all the same.
    assert_eq!(serde_json::from_str::<Value>(&stdout(&output)).unwrap()["actor"], "alice");
    let text = stderr(&output);
    for part in ["WARNING", "sequence 20", "sequence 10", "went back", "checkpoints.json", "audit forget"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // Refusals and streams tell it too, and it is told until it is forgotten.
    for line in [&["role", "list"][..], &["audit", "list"], &["whoami"]] {
        let output = fake.run(line);
        assert_eq!(output.status.code(), Some(11), "{line:?}: {}", stderr(&output));
    }
    let output = fake.run(&["audit", "forget", "-y"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(fake.run(&["whoami"]).status.code(), Some(0));
    assert_eq!(fake.run(&["audit", "forget"]).status.code(), Some(0));
}

#[test]
fn every_exchange_of_the_log_is_told() {
    let (fake, log) = serving(Log::new(chain(30), &[10]));
    fake.run(&["whoami"]);
    let mut other_key = Log::new(chain(30), &[]);
    other_key.seed = 2;
    other_key.sign(20, false);
    let mut forged = Log::new(chain(30), &[20]);
    forged.checkpoints[0].sequence = 21;
    let unsigned = Log::new(chain(30), &[]);
    for (exchanged, part) in [
        (Log::new(chain_of(30, "mallory"), &[20]), "rewritten"),
        (Log::new(chain_of(30, "mallory"), &[10]), "twice"),
        (other_key, "another key"),
        (forged, "signature is wrong"),
        (unsigned, "no longer signs"),
    ] {
        *log.lock().unwrap() = exchanged;
        let output = fake.run(&["whoami"]);
        assert_eq!(output.status.code(), Some(11), "{part}");
        assert!(stderr(&output).contains(part), "{part}: {}", stderr(&output));
    }
    *log.lock().unwrap() = Log::new(chain(30), &[10, 20]);
    assert_eq!(fake.run(&["whoami"]).status.code(), Some(0));
}

#[test]
fn a_memory_that_cannot_be_written_is_no_failure() {
    let (fake, _log) = serving(Log::new(chain(30), &[10]));
    fs::create_dir_all(fake.config_dir().join("checkpoints.lock")).unwrap();
    let output = fake.run(&["whoami"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stderr(&output).contains("cannot be remembered"), "{}", stderr(&output));
    fs::write(fake.config_dir().join("checkpoints.json"), "nonsense").unwrap();
    let output = fake.run(&["whoami"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stderr(&output).contains("cannot understand"), "{}", stderr(&output));
    let output = fake.command(&["whoami"]).env_remove("HOME").output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(stderr(&output).contains("home directory"), "{}", stderr(&output));
}

#[test]
fn a_live_log_is_verified_with_its_checkpoints() {
    let (fake, log) = serving(Log::new(chain(45), &[10, 40]));
    let verify = |arguments: &[&str]| {
        let output = fake.run(&[&["audit", "verify", "-o", "json"], arguments].concat());
        let json: Value = serde_json::from_str(&stdout(&output)).unwrap_or_default();
        (output.status.code(), json, stderr(&output))
    };
    let (code, json, text) = verify(&[]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!((&json["entries"], &json["checkpoints"], &json["lastCheckpoint"]), (&45.into(), &2.into(), &40.into()));
    assert_eq!((&json["publicKey"], &json["keySource"]), (&public_key(1).into(), &"log".into()));
    assert_eq!(verify(&[]).1["keySource"], "remembered");
    assert_eq!(verify(&["--public-key", &public_key(1)]).1["keySource"], "named");
    assert_eq!(verify(&["--public-key", &public_key(2)]).0, Some(11));

    log.lock().unwrap().cut(30);
    let (code, json, text) = verify(&[]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!((&json["entries"], &json["first"], &json["cut"]), (&15.into(), &31.into(), &30.into()));
    assert!(json["witness"].as_str().unwrap().starts_with("45:"));

    log.lock().unwrap().entries.remove(0);
    let (code, _, text) = verify(&[]);
    assert!(code == Some(11) && text.contains("sequence 31"), "{text}");
    *log.lock().unwrap() = Log { entries: chain(35), ..Log::new(chain(45), &[10, 40]) };
    let (code, _, text) = verify(&[]);
    assert!(code == Some(11) && text.contains("sequence 36: the log ends"), "{text}");
}

#[test]
fn exports_hold_checkpoints_and_are_verified() {
    let (fake, log) = serving(Log::new(chain(45), &[5, 10, 40]));
    log.lock().unwrap().cut(10);
    for flags in [&[][..], &["--ocsf"]] {
        let output = fake.run(&[&["audit", "export"], flags].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let lines: Vec<Value> = stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let raw = |line: &Value| match line.get("raw_data") {
            Some(raw) => serde_json::from_str(raw.as_str().unwrap()).unwrap(),
            None => line.clone(),
        };
        let raw: Vec<Value> = lines.iter().map(raw).collect();
        assert_eq!(raw.len(), 37);
        assert_eq!((&raw[0]["checkpoint"]["sequence"], &raw[0]["checkpoint"]["cut"]), (&"10".into(), &true.into()));
        assert_eq!((&raw[30]["sequence"], &raw[31]["checkpoint"]["sequence"]), (&"40".into(), &"40".into()));
        assert_eq!(lines[1].get("class_uid").is_some(), !flags.is_empty());

        fs::write(fake.folder().join("log"), &output.stdout).unwrap();
        let output = fake.run(&["audit", "verify", "--file", "log", "-o", "json"]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let json: Value = serde_json::from_str(&stdout(&output)).unwrap();
        assert_eq!((&json["entries"], &json["checkpoints"]), (&35.into(), &2.into()));

        let changed = fs::read_to_string(fake.folder().join("log")).unwrap().replacen("alice", "mallory", 4);
        fs::write(fake.folder().join("log"), changed).unwrap();
        assert_eq!(fake.run(&["audit", "verify", "--file", "log"]).status.code(), Some(11));
    }
}

#[test]
fn an_export_is_compared_with_what_is_remembered() {
    let (fake, log) = serving(Log::new(chain(45), &[40]));
    let old = fake.run(&["audit", "export"]).stdout;
    fs::write(fake.folder().join("old"), &old).unwrap();
    *log.lock().unwrap() = Log::new(chain(60), &[40, 55]);
    fake.run(&["whoami"]);
    let output = fake.run(&["audit", "verify", "--file", "old"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).contains("up to sequence 55"), "{}", stderr(&output));

    // A whole log computed anew, with the server's own key.
    *log.lock().unwrap() = Log::new(chain_of(60, "mallory"), &[40]);
    let forged = fake.run(&["audit", "export"]).stdout;
    fs::write(fake.folder().join("forged"), &forged).unwrap();
    let output = fake.run(&["audit", "verify", "--file", "forged"]);
    assert_eq!(output.status.code(), Some(11));
    assert!(stderr(&output).contains("sequence 55"), "{}", stderr(&output));
    // Of another server: only when that is said.
    let mut other = Log::new(chain(20), &[]);
    other.seed = 2;
    other.sign(20, false);
    *log.lock().unwrap() = other;
    let export = fake.run(&["audit", "export"]).stdout;
    fs::write(fake.folder().join("other"), &export).unwrap();
    let output = fake.run(&["audit", "verify", "--file", "other"]);
    assert!(output.status.code() == Some(11) && stderr(&output).contains("--public-key"), "{}", stderr(&output));
    let named = ["audit", "verify", "--file", "other", "--public-key", &public_key(2)];
    assert_eq!(fake.run(&named).status.code(), Some(0));
}

#[test]
fn an_export_is_read_from_standard_input() {
    let (fake, _log) = serving(Log::new(chain(5), &[5]));
    fs::write(fake.folder().join("log"), fake.run(&["audit", "export"]).stdout).unwrap();
    let input = fs::File::open(fake.folder().join("log")).unwrap();
    let output = fake.command(&["audit", "verify", "--file", "-"]).stdin(input).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("as remembered"), "{}", stdout(&output));
}

#[test]
fn a_stopped_server_must_hold_what_is_remembered() {
    let (fake, _log) = serving(Log::new(chain(30), &[10, 20]));
    assert_eq!(fake.run(&["whoami", "--data-dir", "prism-data"]).status.code(), Some(0));
    fs::remove_file(fake.data_dir().join("endpoints.json")).unwrap();
    let verify = |log: &Log| {
        let path = fake.data_dir().join("prism.db");
        let _ = fs::remove_file(&path);
        store(&rusqlite::Connection::open(&path).unwrap(), log);
        let output = fake.run(&["audit", "verify", "--data-dir", "prism-data"]);
        (output.status.code(), stdout(&output) + &stderr(&output))
    };
    let (code, text) = verify(&Log::new(chain(30), &[10, 20]));
    assert!(code == Some(0) && text.contains("as remembered"), "{text}");
    let (code, text) = verify(&Log::new(chain(15), &[10]));
    assert!(code == Some(11) && text.contains("sequence 20"), "{text}");
    let (code, text) = verify(&Log::new(chain_of(30, "mallory"), &[25]));
    assert!(code == Some(11) && text.contains("remembered"), "{text}");
    let (code, text) = verify(&Log::new(chain(30), &[]));
    assert!(code == Some(11) && text.contains("no longer with the log"), "{text}");
}

fn store(connection: &rusqlite::Connection, log: &Log) {
    connection
        .execute_batch(
            "CREATE TABLE audit (sequence INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, timestamp INTEGER NOT NULL,
             actor TEXT NOT NULL, operation TEXT NOT NULL, namespace TEXT NOT NULL, hash BLOB NOT NULL,
             entry BLOB NOT NULL) STRICT;
             CREATE TABLE checkpoints (sequence INTEGER PRIMARY KEY, hash BLOB NOT NULL, checkpoint BLOB NOT NULL,
             cut INTEGER NOT NULL) STRICT; BEGIN",
        )
        .unwrap();
    for entry in &log.entries {
        let (sequence, milliseconds) = (entry.sequence as i64, entry.timestamp.unwrap().seconds * 1000);
        let row = (
            sequence,
            &entry.id,
            milliseconds,
            &entry.actor,
            &entry.operation,
            "",
            &entry.hash[..],
            entry.encode_to_vec(),
        );
        connection.execute("INSERT INTO audit VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)", row).unwrap();
    }
    for signed in &log.checkpoints {
        let row = (signed.sequence as i64, &signed.hash[..], signed.encode_to_vec(), signed.cut);
        connection.execute("INSERT INTO checkpoints VALUES (?1, ?2, ?3, ?4)", row).unwrap();
    }
    connection.execute_batch("COMMIT").unwrap();
}

#[test]
fn a_checkpoint_is_made_now() {
    let (fake, _log) = serving(Log::new(chain(12), &[10]));
    let output = fake.run(&["audit", "checkpoint"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("12:") && stdout(&output).contains(&public_key(1)), "{}", stdout(&output));
}

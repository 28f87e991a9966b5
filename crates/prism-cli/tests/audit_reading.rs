//! How the audit log is read: whole and in sequence whatever its times say, in part, from pipes, as it grows.

mod fake;
mod signed;

use std::{
    fs,
    io::Write as _,
    process::Stdio,
    sync::{Arc, Mutex},
};

use fake::{Answer, Fake, Reply, stderr, stdout};
use prism_proto::admin::v1 as admin;
use signed::{Log, chain, chain_of, chain_with, public_key};
use tonic::Status;

fn serving(log: Log) -> Fake {
    Fake::start(move |call| log.answer(call))
}

/// More entries than one answer with a limit holds; the clock was a day ahead when the first were written.
fn log_of_a_clock_that_was_ahead() -> Log {
    let entries = chain_with(10_050, |entry| {
        if entry.sequence <= 5 {
            entry.timestamp.as_mut().unwrap().seconds += 86_400;
        }
    });
    Log::new(entries, &[10, 10_040])
}

#[test]
fn a_clock_that_was_once_ahead_is_no_tampering_and_loses_nothing() {
    let fake = serving(log_of_a_clock_that_was_ahead());
    let output = fake.run(&["audit", "verify", "-o", "json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["entries"], &json["first"]), (&10_050.into(), &1.into()));
    let output = fake.run(&["audit", "export"]);
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
    assert_eq!(stdout(&output).lines().filter(|line| !line.starts_with("{\"checkpoint\"")).count(), 10_050);
}

#[test]
fn an_export_tells_what_is_missing() {
    for (gone, place) in [(1..=5_u64, "sequence 1:"), (20..=20, "sequence 20:")] {
        let mut log = Log::new(chain(45), &[40]);
        log.entries.retain(|entry| !gone.contains(&entry.sequence));
        let output = serving(log.clone()).run(&["audit", "export"]);
        assert_eq!(output.status.code(), Some(11), "{place}");
        assert!(stderr(&output).contains(place), "{place}: {}", stderr(&output));
        // What is there is printed all the same.
        assert_eq!(stdout(&output).lines().count(), log.entries.len() + 1, "{place}");
    }
}

#[test]
fn a_part_of_the_log_is_exported_with_a_note() {
    let mut log = Log::new(chain_with(45, |entry| entry.namespace = "shop".to_owned()), &[40]);
    log.entries.retain(|entry| entry.sequence % 3 == 0);
    let fake = serving(log);
    let output = fake.run(&["audit", "export"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).contains("only a part of the log"), "{}", stderr(&output));
    assert_eq!(fake.run(&["audit", "verify"]).status.code(), Some(11));
}

#[test]
fn a_server_that_knows_no_checkpoints_is_refused() {
    let entries = chain(5);
    let fake = Fake::start(move |call| -> Reply {
        match call.method.as_str() {
            "GetAuditLog" => signed::audit_log(&entries, &call.message()),
            other => Err(Status::unimplemented(other)),
        }
    });
    for verb in ["verify", "export"] {
        let output = fake.run(&["audit", verb]);
        assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(1), ""));
        assert!(stderr(&output).contains("older than this command"), "{}", stderr(&output));
    }
}

/// A home that remembers sequence 40 of a log, and exports of it.
struct Exports {
    fake: Fake,
    log: Arc<Mutex<Log>>,
}

impl Exports {
    fn new() -> Self {
        let log = Arc::new(Mutex::new(Log::new(chain(45), &[40])));
        let served = Arc::clone(&log);
        let fake = Fake::start(move |call| served.lock().unwrap().answer(call));
        fake.run(&["whoami"]);
        Self { fake, log }
    }

    fn write(&self, log: Log) {
        let before = std::mem::replace(&mut *self.log.lock().unwrap(), log);
        let export = self.fake.run(&["audit", "export"]).stdout;
        fs::write(self.fake.folder().join("log"), export).unwrap();
        *self.log.lock().unwrap() = before;
    }

    fn verify(&self, more: &[&str]) -> (Option<i32>, String) {
        let output = self.fake.run(&[&["audit", "verify", "--file", "log"], more].concat());
        (output.status.code(), stderr(&output))
    }
}

#[test]
fn an_export_without_entries_is_none() {
    let exports = Exports::new();
    for text in ["", "\n\n"] {
        fs::write(exports.fake.folder().join("log"), text).unwrap();
        for more in [&[][..], &["--complete"]] {
            let (code, text) = exports.verify(more);
            assert!(code == Some(11) && text.contains("no entries"), "{more:?}: {text}");
        }
    }
}

#[test]
fn a_complete_export_reaches_as_far_as_what_is_remembered() {
    let exports = Exports::new();
    exports.write(Log::new(chain(45), &[40]));
    assert_eq!(exports.verify(&["--complete"]), (Some(0), String::new()));
    // An older one is whole, but not complete.
    exports.write(Log::new(chain(30), &[30]));
    let (code, text) = exports.verify(&[]);
    assert!(code == Some(0) && text.contains("up to sequence 40"), "{text}");
    let (code, text) = exports.verify(&["--complete"]);
    assert!(code == Some(11) && text.contains("ends at sequence 30"), "{text}");
    // One without signatures says so, and is no proof of who signed it.
    exports.write(Log::new(chain(45), &[]));
    let (code, text) = exports.verify(&[]);
    assert!(code == Some(0) && text.contains("no checkpoint in the export"), "{text}");
    let (code, text) = exports.verify(&["--public-key", &public_key(1)]);
    assert!(code == Some(11) && text.contains("nothing in the log is signed"), "{text}");
    // Of another log nothing is remembered.
    let mut other = Log::new(chain_of(20, "mallory"), &[]);
    other.seed = 2;
    other.sign(20, false);
    exports.write(other);
    let named = ["--complete", "--public-key", &public_key(2)];
    let (code, text) = exports.verify(&named);
    assert!(code == Some(2) && text.contains("nothing is remembered"), "{text}");
}

#[test]
fn an_export_is_read_from_a_pipe_that_is_named() {
    let exports = Exports::new();
    exports.write(Log::new(chain(45), &[40]));
    let text = fs::read(exports.fake.folder().join("log")).unwrap();
    let mut command = exports.fake.command(&["audit", "verify", "--file", "/dev/stdin"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&text).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
    assert!(stdout(&output).contains("45:"), "{}", stdout(&output));
}

#[test]
fn a_tail_that_breaks_before_the_first_match_goes_on_from_where_it_began() {
    let calls = Arc::new(Mutex::new(0));
    let entries = chain(3);
    let fake = Fake::start(move |call| -> Answer {
        let request: admin::GetAuditLogRequest = call.message();
        if !request.follow {
            return signed::audit_log(&entries, &request).into();
        }
        let mut calls = calls.lock().unwrap();
        *calls += 1;
        match *calls {
            // What tonic makes of a connection that broke.
            1 => Err(Status::unavailable("gone")),
            _ => signed::audit_log(&chain(5), &request),
        }
        .into()
    });
    let output = fake.run(&["audit", "tail", "--actor", "alice", "-o", "json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stdout(&output).lines().count(), 2, "{}", stdout(&output));
    let asked: Vec<admin::GetAuditLogRequest> = fake.calls().iter().map(fake::Call::message).collect();
    assert_eq!((asked[0].actor.as_deref(), asked[0].limit), (None, 1));
    let followed = asked.iter().filter(|request| request.follow);
    let places: Vec<_> = followed.map(|request| (request.resume_after.clone(), request.actor.clone())).collect();
    assert_eq!(places, vec![(Some("e3".to_owned()), Some("alice".to_owned())); 2]);
}

#[test]
fn a_tail_of_a_log_without_entries_begins_at_its_beginning() {
    let fake = Fake::start(|call| -> Reply { signed::audit_log(&[], &call.message()) });
    assert_eq!(fake.run(&["audit", "tail"]).status.code(), Some(0));
    let asked: admin::GetAuditLogRequest = fake.calls().pop().unwrap().message();
    assert!(asked.follow && asked.oldest_first && asked.resume_after.is_none(), "{asked:?}");
}

#[test]
fn a_tail_follows_what_it_has_shown() {
    let entries = chain(9);
    let fake = Fake::start(move |call| -> Reply {
        let request: admin::GetAuditLogRequest = call.message();
        if request.follow {
            return Ok(Vec::new());
        }
        // Two more came between the two questions.
        signed::audit_log(if request.actor.is_some() { &entries } else { &entries[..7] }, &request)
    });
    let output = fake.run(&["audit", "tail", "--actor", "alice", "--last", "3", "-o", "json"]);
    assert_eq!(stdout(&output).lines().count(), 3, "{}", stderr(&output));
    let asked: admin::GetAuditLogRequest = fake.calls().pop().unwrap().message();
    assert_eq!(asked.resume_after.as_deref(), Some("e9"));
}

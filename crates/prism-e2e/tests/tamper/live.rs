//! A server that was started again on what somebody has changed, and exports that somebody has changed.

use prism_e2e::cli::Outcome;

use super::{Stopped, entries, entry, forge, middle, run, signed_from, stopped, words, write};
use prism_proto::admin::v1::AuditLogEntry;
use rusqlite::Connection;

impl Stopped {
    /// Starts the server on changed data, and asks it in all ways; each must tell the sequence.
    async fn found_live(&self, name: &str, sequence: u64, change: impl FnOnce(&Connection)) {
        self.tampered(change);
        self.server.spawn();
        self.server.ready().await;
        let told = |how: &str, outcome: &Outcome| {
            let named = words(&outcome.err).contains(&sequence.to_string().as_str());
            assert!(outcome.code == Some(11) && named, "{name}, {how}, should show at {sequence}: {outcome:#?}");
        };
        for (who, shell) in [("a stranger", &self.auditor), ("an operator", &self.operator)] {
            let line = format!("audit verify --public-key {}", self.public_key);
            told(&format!("live, by {who}"), &shell.run(&line));
            for format in ["", " --ocsf"] {
                let exported = shell.run(&format!("audit export{format}"));
                assert!(matches!(exported.code, Some(0 | 11)), "{exported:#?}");
                let line = format!("audit verify --file - --public-key {}", self.public_key);
                told(&format!("export{format}, by {who}"), &shell.run_with(&line, &[], &exported.out));
            }
        }
        // It goes on, and so does what it adds: what was changed stays to be found offline as well.
        self.server.admin().create_namespace("later").await;
        self.server.signal("TERM");
        assert!(self.server.exit().await.success(), "{}", self.server.log());
        told("stopped again", &self.verify(&self.auditor, &[]));
        println!("{name}: found at {sequence}");
    }
}

#[tokio::test]
async fn entries_that_were_changed_are_found_after_a_start() {
    let stopped = stopped().await;
    let m = middle(&stopped);
    stopped
        .found_live("edited", m, |database| {
            write(database, m, &AuditLogEntry { actor: "mallory".to_owned(), ..entry(database, m) });
        })
        .await;
    let shows = signed_from(&stopped, m);
    stopped
        .found_live("a new chain", shows, |database| {
            forge(database, m, |entry| entry.actor = "mallory".to_owned());
        })
        .await;
    stopped
        .found_live("deleted", m, |database| run(database, &format!("DELETE FROM audit WHERE sequence = {m}")))
        .await;
    stopped
        .found_live("swapped", m, |database| {
            let (first, second) = (entry(database, m), entry(database, m + 1));
            run(database, &format!("DELETE FROM audit WHERE sequence IN ({m}, {})", m + 1));
            write(database, m, &AuditLogEntry { sequence: m, ..second });
            write(database, m + 1, &AuditLogEntry { sequence: m + 1, ..first });
        })
        .await;
}

/// What was cut off is written over by what comes after the start: with entries that nobody signed as these.
#[tokio::test]
async fn a_log_that_was_cut_off_is_found_after_a_start() {
    let stopped = stopped().await;
    let (m, last) = (middle(&stopped), stopped.last);
    stopped
        .found_live("the beginning", 1, |database| run(database, &format!("DELETE FROM audit WHERE sequence < {m}")))
        .await;
    let from = format!("DELETE FROM audit WHERE sequence >= {m}");
    stopped.found_live("the end", signed_from(&stopped, m), |database| run(database, &from)).await;
    stopped
        .found_live("the last", last, |database| {
            run(database, &format!("DELETE FROM audit WHERE sequence = {last}"));
        })
        .await;
    let first = stopped.signed[0];
    stopped.found_live("all", first, |database| run(database, "DELETE FROM audit")).await;
}

/// Deletes each line, swaps each with the next, and edits each; whatever is done to a line with an entry must be found.
#[tokio::test]
async fn every_change_of_an_export_is_found() {
    let stopped = stopped().await;
    stopped.server.spawn();
    stopped.server.ready().await;
    stopped.operator.run("audit checkpoint").ok();
    for format in ["", " --ocsf"] {
        let export = stopped.operator.run(&format!("audit export{format}")).ok().quiet().out;
        let lines: Vec<&str> = export.lines().collect();
        let check = |lines: &[&str]| {
            let line = format!("audit verify --file - --public-key {}", stopped.public_key);
            stopped.auditor.run_with(&line, &[], &(lines.join("\n") + "\n"))
        };
        let whole = check(&lines).ok().quiet();
        let is_entry = |line: &str| !line.contains("\"checkpoint\":") && !line.contains("\\\"checkpoint\\\":");
        let count = lines.iter().filter(|line| is_entry(line)).count();
        assert_eq!(whole.field("entries"), count.to_string());
        let last = lines.iter().rposition(|line| !is_entry(line)).expect("a checkpoint");
        let (mut changes, mut missed) = (0, Vec::new());
        let mut must_find = |what: String, lines: &[&str]| {
            let outcome = check(lines);
            changes += 1;
            if outcome.code != Some(11) || !outcome.out.is_empty() {
                missed.push(format!("{what}: {outcome:#?}"));
            }
        };
        for (index, line) in lines.iter().enumerate() {
            let without = [&lines[..index], &lines[index + 1..]].concat();
            let edited = |from: &str, to: &str| {
                let edited = line.replacen(from, to, 1);
                (edited != **line).then_some(edited)
            };
            if is_entry(line) {
                if index < last {
                    must_find(format!("line {index} deleted"), &without);
                    must_find(format!("cut off from line {index}"), &[&lines[..index], &lines[last..]].concat());
                }
                if index + 1 < lines.len() && is_entry(lines[index + 1]) {
                    let mut swapped = lines.clone();
                    swapped.swap(index, index + 1);
                    must_find(format!("lines {index} and the next swapped"), &swapped);
                }
                must_find(format!("line {index} twice"), &[&lines[..=index], &lines[index..]].concat());
            }
            // A name in the entry or the event, the first character of a hash, the time.
            let edits = [
                edited("127.0.0.1", "127.0.0.2"),
                edited("ListConfigs", "GetConfig"),
                edited("@example.com", "@example.org"),
                edited("\"sequence\":", "\"sequence\":1"),
                edited("\"sequence\":\"", "\"sequence\":\"1"),
                edited("\"status_id\":1", "\"status_id\":2"),
                edited("\"success\":true", "\"success\":false"),
                edited("\\\"success\\\":true", "\\\"success\\\":false"),
                edited("\"time\":", "\"time\":1"),
                edited("Create", "Delete"),
                edited("WhoAmI", "CanI"),
            ];
            for edited in edits.into_iter().flatten() {
                let other = [&lines[..index], &[edited.as_str()], &lines[index + 1..]].concat();
                must_find(format!("line {index} edited to {edited}"), &other);
            }
        }
        assert!(missed.is_empty(), "{} of {changes}:\n{}", missed.len(), missed.join("\n"));
        assert!(changes > 4 * count, "{changes} changes of {count} entries");
        println!("export{format}: {changes} changes found");
    }
    assert!(!entries(&super::database::open(&stopped.server.data_dir())).is_empty());
}

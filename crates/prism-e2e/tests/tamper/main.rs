//! Whoever can write the files of a stopped server cannot hide what was changed in its audit log (issue "Done when").

mod cut;
mod database;
mod live;
mod rewound;

use prism_e2e::checkpoints::Signer;
use prism_e2e::{Cli, Options, Prism};
use prism_proto::admin::v1::{AuditCheckpoint, AuditLogEntry};
use prost::Message as _;
use rusqlite::Connection;

use database::{Stopped, chained, checkpoints, entries, entry, forge, run, write, write_checkpoint};

/// A stopped server whose log was signed again and again, and to its end.
async fn stopped() -> Stopped {
    let server = Prism::start(Options::new()).await;
    let (admin, cli) = (server.admin(), Cli::of(&server));
    for name in ["a", "b", "c", "d"] {
        let user = admin.and("x-admin-user", &format!("{name}@example.com"));
        user.create_namespace(name).await;
        let twin = prism_proto::admin::v1::CreateNamespaceRequest { name: name.to_owned(), ..Default::default() };
        user.service().create_namespace(twin).await.unwrap_err();
        user.checkpoint().await;
        for _ in 0..3 {
            user.who_am_i().await.unwrap();
        }
    }
    admin.checkpoint().await;
    cli.run("whoami").ok().quiet();
    let stopped = Stopped::of(server).await;
    assert!(stopped.last >= 15 && stopped.signed.len() >= 5, "{} entries, {:?}", stopped.last, stopped.signed);
    stopped
}

/// What somebody does to a message.
type Edit<M> = fn(&mut M);

/// Who finds a change out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// Whoever has the files.
    Anyone,
    /// Whoever knows the server's public key.
    Key,
    /// Whoever has used the server.
    Memory,
}

/// What somebody does, who finds it, and at which sequence.
struct Case {
    name: String,
    by: By,
    sequence: u64,
    change: Box<dyn FnOnce(&Connection)>,
}

fn case(name: &str, by: By, sequence: u64, change: impl FnOnce(&Connection) + 'static) -> Case {
    Case { name: name.to_owned(), by, sequence, change: Box::new(change) }
}

/// Carries the cases out, each on the data as they were, and asks everyone who should find it.
fn check(stopped: &Stopped, cases: Vec<Case>) {
    let key = ["--public-key", stopped.public_key.as_str()];
    let mut wrong = Vec::new();
    let count = cases.len();
    for Case { name, by, sequence, change } in cases {
        stopped.tampered(change);
        let mut ask = |who: By, outcome: prism_e2e::cli::Outcome| {
            let finds = who == by || by == By::Anyone || (by == By::Key && who == By::Memory);
            if !finds {
                return;
            }
            let told = outcome.code == Some(11)
                && outcome.out.is_empty()
                && outcome.err.starts_with("error: ")
                && words(&outcome.err).contains(&sequence.to_string().as_str());
            if !told {
                wrong.push(format!("{name}, for {who:?}, should show at sequence {sequence}: {outcome:#?}"));
            }
        };
        ask(By::Anyone, stopped.verify(&stopped.auditor, &[]));
        ask(By::Key, stopped.verify(&stopped.auditor, &key));
        ask(By::Memory, stopped.verify(&stopped.operator, &[]));
    }
    stopped.restore();
    for outcome in [stopped.verify(&stopped.auditor, &key), stopped.verify(&stopped.operator, &[])] {
        outcome.ok().quiet();
    }
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
    println!("{count} changes found");
}

fn words(text: &str) -> Vec<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric()).collect()
}

/// A sequence in the midst of the log that was not signed itself, nor those beside it.
fn middle(stopped: &Stopped) -> u64 {
    let free = |sequence: &u64| (sequence - 1..=sequence + 2).all(|near| !stopped.signed.contains(&near));
    (5..stopped.last - 4).find(free).unwrap_or_else(|| panic!("{:?} of {}", stopped.signed, stopped.last))
}

/// The first sequence from this one on that was signed.
fn signed_from(stopped: &Stopped, sequence: u64) -> u64 {
    *stopped.signed.iter().find(|signed| **signed >= sequence).expect("the log is signed to its end")
}

#[tokio::test]
async fn untouched_it_is_whole_for_everyone() {
    let stopped = stopped().await;
    let whole = stopped.verify(&stopped.auditor, &["-o", "json"]).ok().quiet().json();
    assert_eq!((whole["entries"].as_u64(), whole["first"].as_u64()), (Some(stopped.last), Some(1)));
    assert_eq!(whole["lastCheckpoint"].as_u64(), Some(stopped.last), "the end is signed");
    assert_eq!((whole["publicKey"].as_str(), whole["keySource"].as_str()), (Some(&*stopped.public_key), Some("log")));
    let known = stopped.verify(&stopped.operator, &["-o", "json"]).ok().quiet().json();
    assert_eq!((known["keySource"].as_str(), &known["head"]), (Some("remembered"), &whole["head"]));
    let named = stopped.verify(&stopped.auditor, &["--public-key", &stopped.public_key, "-o", "json"]).ok().json();
    assert_eq!(named["keySource"], "named");
    let stranger = hex::encode(Signer::stranger().public_key());
    stopped.verify(&stopped.auditor, &["--public-key", &stranger]).fails(11, "signed with key");
    let witness = whole["witness"].as_str().unwrap().to_owned();
    stopped.verify(&stopped.auditor, &["--witness", &witness]).ok();
    let (sequence, hash) = witness.split_once(':').unwrap();
    let other = hash.replacen(|_: char| true, if hash.starts_with('0') { "1" } else { "0" }, 1);
    stopped
        .verify(&stopped.auditor, &["--witness", &format!("{sequence}:{other}")])
        .fails(11, "the witness says otherwise");
    let beyond = format!("{}:{hash}", stopped.last + 1);
    stopped.verify(&stopped.auditor, &["--witness", &beyond]).fails(11, "its end was cut off");
}

#[tokio::test]
async fn entries_that_are_deleted_or_cut_off() {
    let stopped = stopped().await;
    let (m, last) = (middle(&stopped), stopped.last);
    let delete =
        |range: String| move |database: &Connection| run(database, &format!("DELETE FROM audit WHERE {range}"));
    let mut cases = vec![
        case("the first", By::Anyone, 1, delete("sequence = 1".to_owned())),
        case("one", By::Anyone, m, delete(format!("sequence = {m}"))),
        case("one that was signed", By::Anyone, stopped.signed[1], delete(format!("sequence = {}", stopped.signed[1]))),
        case("the last", By::Anyone, last, delete(format!("sequence = {last}"))),
        case("several", By::Anyone, m, delete(format!("sequence BETWEEN {m} AND {}", m + 2))),
        case("every second", By::Anyone, 2, delete("sequence % 2 = 0".to_owned())),
        case("the end", By::Anyone, m, delete(format!("sequence >= {m}"))),
        case("the beginning", By::Anyone, 1, delete(format!("sequence < {m}"))),
        case("all", By::Anyone, 1, delete("true".to_owned())),
    ];
    for signed in stopped.signed.iter().copied().filter(|signed| *signed < last) {
        cases.push(case("all after a checkpoint", By::Anyone, signed + 1, delete(format!("sequence > {signed}"))));
        if signed < stopped.remembered {
            let shows = if signed < stopped.kept { stopped.kept } else { stopped.remembered };
            // With the checkpoints too, a log that ends early looks like one that has just ended there.
            cases.push(case("the end and what was signed of it", By::Memory, shows, move |database| {
                run(database, &format!("DELETE FROM audit WHERE sequence > {signed}"));
                run(database, &format!("DELETE FROM checkpoints WHERE sequence > {signed}"));
            }));
        }
    }
    cases.push(case("the gap closed by new numbers", By::Anyone, m, move |database| {
        let later = entries(database);
        run(database, &format!("DELETE FROM audit WHERE sequence >= {m}"));
        for entry in later.into_iter().filter(|entry| entry.sequence > m) {
            let sequence = entry.sequence - 1;
            write(database, sequence, &AuditLogEntry { sequence, ..entry });
        }
    }));
    let next = signed_from(&stopped, m);
    cases.push(case("the gap closed, and the chain made anew", By::Anyone, next, move |database| {
        let all = entries(database);
        run(database, &format!("DELETE FROM audit WHERE sequence >= {m}"));
        let mut previous = all[m as usize - 2].hash.clone();
        for entry in all.into_iter().filter(|entry| entry.sequence > m) {
            let sequence = entry.sequence - 1;
            let entry = chained(&previous, AuditLogEntry { sequence, ..entry });
            previous = entry.hash.clone();
            write(database, sequence, &entry);
        }
    }));
    check(&stopped, cases);
}

#[tokio::test]
async fn entries_that_are_edited() {
    let stopped = stopped().await;
    let m = middle(&stopped);
    let mut cases = Vec::new();
    // Columns that the server searches by, each of them alone.
    for (column, value) in [
        ("id", "'another'"),
        ("timestamp", "timestamp + 1"),
        ("actor", "'nobody'"),
        ("operation", "'GetNamespace'"),
        ("namespace", "'elsewhere'"),
        ("hash", "zeroblob(32)"),
        ("hash", "x''"),
        ("entry", "x''"),
        ("entry", "x'ff'"),
        ("entry", "zeroblob(100)"),
        ("entry", "substr(entry, 1, length(entry) - 1)"),
        // A field of a later version, and one that stands there twice: both decode to the same entry.
        ("entry", "CAST(entry || x'8a010161' AS BLOB)"),
        ("entry", "CAST(entry || x'5000' AS BLOB)"),
        ("entry", "(SELECT entry FROM audit WHERE sequence = 1)"),
        ("sequence", "1000000"),
        ("sequence", "-1"),
    ] {
        let sql = format!("UPDATE audit SET {column} = {value} WHERE sequence = {m}");
        let shows = if value == "-1" { 1 } else { m };
        cases.push(case(&sql.clone(), By::Anyone, shows, move |database| run(database, &sql)));
    }
    // Fields of the entry itself, with all columns to match.
    let edits: [(&str, Edit<AuditLogEntry>); 16] = [
        ("id", |entry| entry.id = "0190a1b2-0000-7000-8000-000000000001".to_owned()),
        ("timestamp", |entry| entry.timestamp.as_mut().unwrap().seconds -= 3600),
        ("nanos", |entry| entry.timestamp.as_mut().unwrap().nanos += 1),
        ("actor", |entry| entry.actor = "mallory".to_owned()),
        ("operation", |entry| entry.operation = "GetNamespace".to_owned()),
        ("resource", |entry| entry.resource = "namespace:other".to_owned()),
        ("namespace", |entry| entry.namespace = "other".to_owned()),
        ("metadata", |entry| drop(entry.metadata.insert("harmless".to_owned(), "true".to_owned()))),
        ("success", |entry| entry.success = !entry.success),
        ("error", |entry| entry.error = Some("a typing error".to_owned())),
        ("request_id", |entry| entry.request_id = "another".to_owned()),
        ("source_address", |entry| entry.source_address = "192.0.2.1:1".to_owned()),
        ("auth_method", |entry| entry.auth_method = "mtls".to_owned()),
        ("credential_id", |entry| entry.credential_id = "another".to_owned()),
        ("previous_hash", |entry| entry.previous_hash = vec![1; 32].into()),
        ("hash", |entry| entry.hash = vec![1; 32].into()),
    ];
    for (field, edit) in edits {
        cases.push(case(&format!("the {field} of one"), By::Anyone, m, move |database| {
            let mut changed = entry(database, m);
            edit(&mut changed);
            write(database, m, &changed);
        }));
        if !field.ends_with("hash") {
            // With a hash of its own the entry fits itself, and the next one no longer follows it.
            cases.push(case(&format!("the {field} of one, with its hash"), By::Anyone, m + 1, move |database| {
                let mut changed = entry(database, m);
                edit(&mut changed);
                write(database, m, &chained(&changed.previous_hash.clone(), changed));
            }));
            let shows = signed_from(&stopped, m);
            cases.push(case(&format!("the {field} of one, and a new chain"), By::Anyone, shows, move |database| {
                forge(database, m, edit);
            }));
        }
    }
    let last = stopped.last;
    cases.push(case("the last", By::Anyone, last, move |database| {
        forge(database, last, |entry| entry.actor = "mallory".to_owned());
    }));
    check(&stopped, cases);
}

#[tokio::test]
async fn entries_that_are_reordered_or_added() {
    let stopped = stopped().await;
    let m = middle(&stopped);
    let park = move |database: &Connection| {
        let (first, second) = (entry(database, m), entry(database, m + 1));
        run(database, &format!("DELETE FROM audit WHERE sequence IN ({m}, {})", m + 1));
        (first, second)
    };
    let insert = move |database: &Connection, chain: bool| {
        let all = entries(database);
        let mut added = all[m as usize - 1].clone();
        (added.id, added.actor) = ("inserted".to_owned(), "mallory".to_owned());
        run(database, &format!("DELETE FROM audit WHERE sequence >= {m}"));
        let mut previous = all[m as usize - 2].hash.clone();
        for (sequence, entry) in (m..).zip([added].into_iter().chain(all.into_iter().skip(m as usize - 1))) {
            let mut entry = AuditLogEntry { sequence, ..entry };
            if chain || sequence == m {
                entry = chained(&previous, entry);
            }
            previous = entry.hash.clone();
            write(database, sequence, &entry);
        }
    };
    let shows = signed_from(&stopped, m);
    check(
        &stopped,
        vec![
            case("two swapped as they are", By::Anyone, m, move |database| {
                let (first, second) = park(database);
                write(database, m, &second);
                write(database, m + 1, &first);
            }),
            case("two swapped with new numbers", By::Anyone, m, move |database| {
                let (first, second) = park(database);
                write(database, m, &AuditLogEntry { sequence: m, ..second });
                write(database, m + 1, &AuditLogEntry { sequence: m + 1, ..first });
            }),
            case("two swapped, and a new chain", By::Anyone, shows, move |database| {
                let (first, second) = park(database);
                write(
                    database,
                    m,
                    &AuditLogEntry { sequence: m, previous_hash: first.previous_hash.clone(), ..second },
                );
                write(database, m + 1, &AuditLogEntry { sequence: m + 1, ..first });
                forge(database, m, |_| {});
            }),
            case("one added in the midst", By::Anyone, m + 1, move |database| insert(database, false)),
            case("one added in the midst, and a new chain", By::Anyone, shows, move |database| insert(database, true)),
            case("one added before the first", By::Anyone, 1, move |database| {
                write(database, 0, &AuditLogEntry { id: "zero".to_owned(), ..entry(database, 1) });
            }),
            case("one added after a gap", By::Anyone, stopped.last + 1, {
                let last = stopped.last;
                move |database| {
                    let added = AuditLogEntry { id: "late".to_owned(), sequence: last + 2, ..entry(database, last) };
                    write(database, last + 2, &added);
                }
            }),
        ],
    );
    // One that is added at the end and fits there is all that a chain cannot show: it is told that nobody signed it.
    let last = stopped.last;
    stopped.tampered(|database| {
        let newest = entry(database, last);
        let added = AuditLogEntry { id: "late".to_owned(), sequence: last + 1, ..newest.clone() };
        write(database, last + 1, &chained(&newest.hash, added));
    });
    let verified = stopped.verify(&stopped.operator, &["-o", "json"]).json();
    assert_eq!(verified["entries"].as_u64(), Some(last + 1), "{verified}");
    assert_eq!(verified["lastCheckpoint"].as_u64(), Some(last), "{verified}");
}

#[tokio::test]
async fn what_was_signed() {
    let stopped = stopped().await;
    let (last, first, kept) = (stopped.last, stopped.signed[0], stopped.kept);
    let second = stopped.signed[1];
    let mut cases = Vec::new();
    // Their columns, each alone; and each byte that was signed.
    for (column, value) in [("hash", "zeroblob(32)"), ("hash", "x''"), ("cut", "1"), ("checkpoint", "x''")] {
        let sql = format!("UPDATE checkpoints SET {column} = {value} WHERE sequence = {second}");
        cases.push(case(&sql.clone(), By::Anyone, second, move |database| run(database, &sql)));
    }
    cases.push(case("its sequence column", By::Anyone, second + 1, move |database| {
        run(database, &format!("UPDATE checkpoints SET sequence = sequence + 1 WHERE sequence = {second}"));
    }));
    let edits: [(&str, Edit<AuditCheckpoint>); 6] = [
        ("hash", |signed| signed.hash = vec![1; 32].into()),
        ("time", |signed| signed.time.as_mut().unwrap().seconds += 1),
        ("cut", |signed| signed.cut = true),
        ("key_id", |signed| signed.key_id = "0000000000000000".to_owned()),
        ("public_key", |signed| signed.public_key = vec![1; 32].into()),
        ("signature", |signed| signed.signature = vec![1; 64].into()),
    ];
    for (field, edit) in edits {
        cases.push(case(&format!("the {field} of a checkpoint"), By::Anyone, second, move |database| {
            let mut signed = checkpoints(database).into_iter().find(|signed| signed.sequence == second).unwrap();
            edit(&mut signed);
            write_checkpoint(database, &signed);
        }));
    }
    cases.push(case("one replaced by an older one under its number", By::Anyone, second, move |database| {
        let older = checkpoints(database).remove(0);
        database
            .execute(
                "UPDATE checkpoints SET checkpoint = ?1, hash = ?2 WHERE sequence = ?3",
                (older.encode_to_vec(), older.hash.as_ref(), second as i64),
            )
            .unwrap();
    }));
    cases.push(case("all deleted", By::Memory, kept, |database| run(database, "DELETE FROM checkpoints")));
    cases.push(case("all but the first deleted", By::Memory, kept, move |database| {
        run(database, &format!("DELETE FROM checkpoints WHERE sequence > {first}"));
    }));
    // A chain of the attacker's own, signed with the attacker's own key.
    cases.push(case("one signed by a stranger", By::Anyone, last - 1, move |database| {
        let hash = entry(database, last - 1).hash;
        let time = checkpoints(database)[0].time;
        let forged = AuditCheckpoint { sequence: last - 1, hash, time, ..Default::default() };
        write_checkpoint(database, &Signer::stranger().sign(forged));
    }));
    let resign = move |database: &Connection| {
        let stranger = Signer::stranger();
        for signed in checkpoints(database) {
            let hash = entry(database, signed.sequence).hash;
            write_checkpoint(database, &stranger.sign(AuditCheckpoint { hash, ..signed }));
        }
    };
    cases.push(case("all signed anew by a stranger", By::Key, first, resign));
    cases.push(case("a new chain, and all signed anew by a stranger", By::Key, first, move |database| {
        forge(database, 1, |entry| entry.actor = "mallory".to_owned());
        resign(database);
    }));
    cases.push(case("a new chain, and what was signed is gone", By::Memory, kept, |database| {
        forge(database, 1, |entry| entry.actor = "mallory".to_owned());
        run(database, "DELETE FROM checkpoints");
    }));
    // Entries that are removed as if retention had done it.
    cases.push(case("a cut with the words of another checkpoint", By::Anyone, second, move |database| {
        run(database, &format!("DELETE FROM audit WHERE sequence <= {second}"));
        run(database, &format!("UPDATE checkpoints SET cut = 1 WHERE sequence = {second}"));
    }));
    cases.push(case("a cut that is not signed", By::Anyone, second, move |database| {
        run(database, &format!("DELETE FROM audit WHERE sequence <= {second}"));
        let signed = checkpoints(database).into_iter().find(|signed| signed.sequence == second).unwrap();
        write_checkpoint(database, &AuditCheckpoint { cut: true, ..signed });
    }));
    cases.push(case("a cut by a stranger", By::Anyone, second, move |database| {
        run(database, &format!("DELETE FROM audit WHERE sequence <= {second}"));
        let signed = checkpoints(database).into_iter().find(|signed| signed.sequence == second).unwrap();
        write_checkpoint(database, &Signer::stranger().sign(AuditCheckpoint { cut: true, ..signed }));
    }));
    check(&stopped, cases);
}
